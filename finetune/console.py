"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import UNITS
from finetune.progress import Bar

if TYPE_CHECKING:
    from finetune.artifacts import Run

UNDEFINED = "not defined"
PLAIN_EVERY_SECONDS = 10.0
SHOWN_FINDINGS, SHOWN_STEPS, SHOWN_TRIALS = 5, 3, 5


def printable(text: str) -> str:
    """Replace control characters, so that a column's name out of a file cannot steer the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


@dataclass
class ConsoleProgress:
    """Writes notes and bars to standard error."""

    verbose: bool = False
    _live: Any = field(default=None, repr=False)

    def note(self, message: str) -> None:
        """Print one message, above the bar if there is one."""
        message = printable(message)
        if self._live is not None:
            self._live.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        """Print one message if the user asked for more."""
        if self.verbose:
            self.note(message)

    @contextmanager
    def bar(self, title: str, total: int | None, start: int = 0) -> Iterator[Bar]:
        """Show a bar on a terminal, or a line now and then elsewhere."""
        if not sys.stderr.isatty() or self._live is not None:
            yield PlainBar(title, total, start)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        text = TextColumn("{task.fields[text]}", markup=False)
        with Progress(*columns, text, console=Console(stderr=True), transient=True) as live:
            self._live = live
            task = live.add_task(title, total=total, completed=start, text="")
            try:
                yield _RichBar(live, task)
            finally:
                self._live = None


@dataclass
class _RichBar:
    live: Any
    task: Any

    def advance(self, count: int = 1, text: str = "") -> None:
        self.live.update(self.task, advance=count, **({"text": text} if text else {}))


@dataclass
class PlainBar:
    """A bar for logs: a line when some time has passed, and one at the end."""

    title: str
    total: int | None
    done: int
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.first = self.done

    def advance(self, count: int = 1, text: str = "") -> None:
        """Move forward; print if it is time."""
        self.done += count
        now = time.monotonic()
        finished = self.total is not None and self.done >= self.total
        if now - self.last < PLAIN_EVERY_SECONDS and not (finished and now - self.started > PLAIN_EVERY_SECONDS):
            return
        self.last = now
        if self.total is None:
            line = f"{self.title} {self.done}  {text}"
        else:
            left = (now - self.started) / max(1, self.done - self.first) * (self.total - self.done)
            line = f"{self.title} {self.done}/{self.total}  {text}  {left:.0f} s left"
        print(" ".join(line.split()), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a result as the one JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_preview(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print rows before and after augmentation, side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("data.augment makes no row: its operations change nothing, or only to texts that are there already")
        return
    table = Table("operation", "before", "after", show_lines=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def print_data(report: Mapping[str, Any], *, last: bool = True) -> None:
    """Print what became of the rows, what was found, and, if nothing was done `last`, what to do next."""
    from finetune.reports.next_steps import next_steps
    from finetune.reports.wording import many

    dropped = ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items())
    sizes = ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())
    made = f" (+{report['augmented']['rows']:,} augmented)" if "augmented" in report else ""
    labels = f"; {len(report['labels']):,} labels" if "labels" in report else ""
    cut = sum(split["rows"] for split in report.get("truncated", {}).values())
    longer = f"; {cut:,} rows longer than the model reads" if "truncated" in report else ""
    print(f"\ndata       {report['rows_read']:,} rows read, {report['rows_kept']:,} kept, dropped: {dropped or 'none'}")
    print(f"           {sizes}{made}{labels}{longer}")
    serious = [finding for finding in report.get("warnings", []) if finding["severity"] != "note"]
    for finding in serious[:SHOWN_FINDINGS]:
        print(f"{finding['severity']:<10} " + printable(f"{finding['check']}: {finding['message']}"[:240]))
    steps = next_steps(report) if last else []
    for number, step in enumerate(steps[:SHOWN_STEPS]):
        print(f"{'' if number else 'next':<10} {step}")
    more = [many(len(serious) - SHOWN_FINDINGS, "more finding")] * (len(serious) > SHOWN_FINDINGS)
    more += [many(len(steps) - SHOWN_STEPS, "more step")] * (len(steps) > SHOWN_STEPS)
    if more:
        print(f"{'':<10} {' and '.join(more)}: see the report")


def print_plan(report: Mapping[str, Any]) -> None:
    """Print what a training will need, and what to change if something is too much."""
    from finetune.reports.plan import advised, memory_rows, work_rows

    parameters, schedule = report["parameters"], report["schedule"]
    first, last = schedule[0]["learning_rate"], schedule[-1]["learning_rate"]
    highest = max(schedule, key=lambda point: point["learning_rate"])
    most = f"{highest['learning_rate']:.2g} (step {highest['step']:,})"
    rows = [
        ("parameters", f"{parameters['trainable']:,} of {parameters['total']:,} are trained"),
        *work_rows(report),
        (
            "learning rate",
            f"{first:.2g} at first, {most} at most, {last:.2g} at last",
        ),
    ]
    print()
    for name, text in rows:
        print(f"{name:<16} {text}")
    print(f"\nmemory on {report['device']}, each part at its largest")
    for name, text in memory_rows(report):
        print(f"{name:<40} {text:>10}")
    for line in advised(report):
        print(f"\nwarning: {printable(line)}")
    print()


def print_range_test(report: Mapping[str, Any]) -> None:
    """Print what a learning-rate range test says, what to try, and what it cannot tell."""
    from finetune.reports.range_test import caveats, findings, suggestions

    print()
    for line in findings(report):
        print(line)
    for number, (setting, why) in enumerate(suggestions(report)):
        print(f"{'or ' if number else 'try'}  {setting:<40} {why}")
    for line in caveats(report):
        print(f"note: {line}")
    print()


def print_tuning(report: Mapping[str, Any]) -> None:
    """Print what a search found: the best trials, and what to do with the best."""
    from finetune.reports.tuning import caution, counted, ranked, scored, shown

    best = report["best"]
    print(f"\ntrials     {counted(report)}")
    for trial in ranked(report)[:SHOWN_TRIALS]:
        values = ", ".join(f"{name} {shown(value)}" for name, value in trial["values"].items())
        print(f"{trial['number']:>10} {scored(trial['score']):>7} {trial['state']:<9} {printable(values)}")
    print(f"best       trial {best['number']}: validation {printable(report['metric'])} {scored(best['score'])}")
    print(f"           {caution(report)}")


def print_run(run: Run) -> None:
    """Print what training gave."""
    found = run.manifest
    scores = ", ".join(f"{name} {_number(value)}" for name, value in found["metrics"].items())
    parameters = found["parameters"]
    print(
        f"training   best step {found['best_step']} of {found['last_step']} ({found['stopped_because']}); "
        f"validation {scores}"
    )
    print(f"           {parameters['trainable']:,} of {parameters['total']:,} parameters trained; {run.model_folder}")
    for finding in found.get("diagnosis", []):
        since = f" from step {finding['step']:,}" if finding["step"] is not None else ""
        print(printable(f"curves     {finding['name']}{since}: {finding['evidence']}"))
        if finding["change"]:
            print(printable(f"           to change: {'; '.join(finding['change'])}"))


def print_repeated_training(result: Mapping[str, Any]) -> None:
    """Print what several trainings of one recipe gave on validation."""
    for run in result["runs"]:
        scores = ", ".join(f"{name} {_number(value)}" for name, value in run["validation"].items())
        print(
            f"{run['name']:<10} best step {run['best_step']} of {run['last_step']} ({run['stopped_because']}); "
            f"validation {scores}"
        )
    scores = ", ".join(f"{name} {_spread(score)}" for name, score in result["validation"].items())
    print(f"{'mean':<10} validation {scores}; {result['folder']}")


def _spread(score: Mapping[str, float | None]) -> str:
    """Return a mean and its deviation: `0.912 ± 0.004`."""
    return UNDEFINED if score["mean"] is None else f"{_number(score['mean'])} ± {_number(score['deviation'])}"


def print_repeats(report: Mapping[str, Any]) -> None:
    """Print what several trainings of one recipe scored, each and together, and whether the gates hold."""
    from finetune.reports.repeats import columns, score_rows, scored_on

    print(f"\n{report['count']} {report['repeats']}, {scored_on(report)}")
    rows = score_rows(report)
    width = max(18, *(len(name) + 1 for name in rows))
    header = columns(report)
    wide = [
        max(10, len(name) + 2, *(len(cells[place]) + 2 for cells in rows.values())) for place, name in enumerate(header)
    ]
    print(" " * width + "".join(f"{name:>{size}}" for name, size in zip(header, wide, strict=True)))
    for name, cells in rows.items():
        print(f"{name:<{width}}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, wide, strict=True)))
    if missing := report["ensemble"].get("missing"):
        print(f"no score of an ensemble: {missing}")
    print_gates(report)


def print_report(report: Mapping[str, Any]) -> None:
    """Print an evaluation: metrics beside the baselines, gains, caveats, gates."""
    systems = {"model": report["metrics"], **report["baselines"]}
    intervals = report["intervals"]
    of_units = "" if intervals["unit"] == "row" else f", over {intervals['units']} {UNITS[intervals['unit']]}"
    print(f"\nscores on {report['rows']} rows of {report['split']}, with 95 % intervals{of_units}")
    width = max(18, *(len(name) + 1 for name in report["metrics"]))
    cells = {name: [_interval(scores[name]) for scores in systems.values()] for name in report["metrics"]}
    column = max(24, *(len(cell) + 2 for row in cells.values() for cell in row))
    print(" " * width + "".join(f"{name:>{column}}" for name in systems))
    for name, row in cells.items():
        print(f"{name:<{width}}" + "".join(f"{cell:>{column}}" for cell in row))
    for baseline, gains in report["gains"].items():
        name = next(iter(gains))
        print(f"gain over {baseline}: {name} {_difference(gains[name])}")
    if report.get("dropped"):
        places = report.get("dropped_lines", {})
        left = sum(report["dropped"].values())
        listed = ", ".join(
            f"{reason} {count}{_first_line(places.get(reason))}" for reason, count in report["dropped"].items()
        )
        print(f"not scored: {left} of {left + report['rows']} rows: {listed}")
    if report.get("unknown_labels"):
        print(printable(f"labels that the model does not know: {', '.join(report['unknown_labels'][:20])}"))
    if report.get("seen_in_training"):
        print(f"warning: {report['seen_in_training']} of these rows have a text that the model was trained on")
    print_gates(report)


def print_quantized(report: Mapping[str, Any]) -> None:
    """Print a before/after report."""
    print(
        f"\n{report['backend']}: {report['rows']} rows of {report['split']}, before and after (a drop is for the worse)"
    )
    for name, drop in report["drop"].items():
        before, after = (_number(report[when][name]["value"]) for when in ("before", "after"))
        print(f"{name:<18} {before} -> {after}   drop {_difference(drop, digits=4)}")
    speed = report["speed"]
    print(
        f"same answer in {report['agreement']:.1%} of the cases; size x{report['size_ratio']:.2f}; "
        f"{speed['batch_1']['speedup']:.2f} times faster at batch 1, {speed['batch_32']['speedup']:.2f} at batch 32"
    )
    print_gates(report)


def _first_line(lines: Sequence[int] | None) -> str:
    return f" (first in line {lines[0]})" if lines else ""


def print_gates(report: Mapping[str, Any]) -> None:
    """Print each gate and whether it holds."""
    for gate in report["gates"]:
        print(f"gate {gate['gate']}: {'holds' if gate['holds'] else 'FAILS'} (found {_number(gate['value'], 4)})")


def _interval(value: Mapping[str, float | None]) -> str:
    if value["value"] is None:
        return UNDEFINED
    joined = " to " if value["low"] is not None and value["low"] < 0 else "-"
    return f"{value['value']:.3f} ({value['low']:.3f}{joined}{value['high']:.3f})"


def _difference(value: Mapping[str, float | None], digits: int = 3) -> str:
    if value["value"] is None:
        return UNDEFINED
    return f"{value['value']:+.{digits}f} ({value['low']:+.{digits}f} to {value['high']:+.{digits}f})"


def _number(value: float | None, digits: int = 3) -> str:
    return UNDEFINED if value is None else f"{value:.{digits}f}"
