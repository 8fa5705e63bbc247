"""The command line: it parses, calls a stage, prints and exits; nothing else in the package prints or exits."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from finetune import __version__
from finetune.console import (
    ConsoleProgress,
    print_data,
    print_json,
    print_plan,
    print_preview,
    print_quantized,
    print_range_test,
    print_repeated_training,
    print_repeats,
    print_report,
    print_run,
    print_tuning,
    printable,
)
from finetune.data.rows import list_reasons
from finetune.errors import FinetuneError, GateFailed, Terminated
from finetune.processes import OtherProcessFailed, count, is_main, launch, leaving_in_order, say
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe, check_device, load_recipe

if TYPE_CHECKING:
    from finetune.artifacts import Run
    from finetune.pipeline import Job
    from finetune.repeats import Repeats
    from finetune.runtime import Runtime

# What the operating system says when the user's disk, paths or rights are at fault, and what helps
DISK_ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another place with --output, and run the command again",
    errno.EDQUOT: "your disk quota is used up. Free some space, or choose another place with --output",
    errno.EFBIG: "the file would be larger than this system allows. Choose another place with --output",
    errno.EACCES: "no permission. Choose another place with --output, or change the rights",
    errno.EPERM: "not permitted. Choose another place with --output, or change the rights",
    errno.EROFS: "this file system can only be read. Choose another place with --output",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another place with --output",
    errno.EISDIR: "expected a file, found a folder",
    errno.ENOENT: "no such file or folder. If it belongs to an artifact, add --force to make that again",
    errno.EEXIST: "something else is there already. Choose another place with --output",
}


GOES_ON = (
    "Finished stages and the last checkpoint are kept; the same command goes on from there, "
    "or starts the stage again if it had no checkpoint yet."
)


class Application(TyperGroup):
    """The commands, with one place where exceptions become messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; turn the user's mistakes, full disks and interrupts into one message each."""
        try:
            return super().invoke(ctx)
        except FinetuneError as error:
            _fail(str(error), error.exit_code)
        except OtherProcessFailed as error:
            sys.exit(error.code)
        except KeyboardInterrupt:
            _fail(f"interrupted. {GOES_ON}", 130, "")
        except Terminated:
            _fail(f"terminated. {GOES_ON}", 143, "")
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: no more to say
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            if error.errno not in DISK_ADVICE:
                raise
            where = f"{error.filename}: " if error.filename else ""  # some libraries do not name the file
            _fail(where + DISK_ADVICE[error.errno], 2)


def _fail(message: str, code: int, prefix: str = "error: ") -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
    said = say(f"{prefix}{message}")
    if said is not None:
        print(printable(said), file=sys.stderr, flush=True)
    sys.exit(code)


def _terminate(signum: int, frame: object) -> NoReturn:  # noqa: ARG001
    raise Terminated


app = typer.Typer(
    cls=Application,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw labelled text to a fine-tuned and quantized Hugging Face model, driven by a recipe.\n\n"
    "\b\nfinetune run recipes/quickstart.yaml        the whole loop\n"
    'finetune predict outputs/quickstart/run --text "Where is my parcel?"',
)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    if count() > 1:  # torch warns of what costs time alone: looking for parameters that a head leaves unused
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    app(prog_name="finetune")


def _device(value: str | None) -> str | None:
    try:
        return value if value is None else check_device(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _version(show: bool) -> None:
    if show:
        print(f"finetune {__version__}")
        raise typer.Exit


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.")]
TargetArgument = Annotated[
    Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A run's folder (outputs/NAME/run), or a recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; repeatable, values are YAML."
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the artifacts go.  [default: outputs/NAME]")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, all else on standard error.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and results.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Do it again even if nothing changed; rebuild what is stale.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", callback=_device, metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads.")]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow pickle weights, models with code of their own and evaluate's modules."),
]


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved recipe, every default written out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe: every problem at once, with file and line. Imports no torch and writes nothing.

    \b
    finetune validate recipes/quickstart.yaml
    finetune validate recipes/quickstart.yaml --show --set train.epochs=2
    """
    checked = load_recipe(recipe, overrides or [], check_inputs=True)
    if as_json:
        print_json({"valid": True, "recipe": checked.resolved()})
    elif show:
        print(checked.to_yaml(), end="")
    else:
        print(f"{recipe}: valid")


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    check_only: Annotated[
        bool, typer.Option("--check", help="Only check the rows: write nothing, exit 3 if a check finds an error.")
    ] = False,
    preview: Annotated[
        int | None, typer.Option("--preview", min=1, metavar="N", help="Show N rows that data.augment would make.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Clean, check, split and tokenize the rows, with a report on every row that was dropped or cut.

    \b
    finetune prepare recipes/quickstart.yaml
    finetune prepare recipes/quickstart.yaml --check
    finetune prepare recipes/quickstart.yaml --set data.source=data/messy.jsonl --output /tmp/messy --json
    """
    if check_only and preview:
        raise FinetuneError("prepare: expected --check or --preview, found both")
    if check_only or preview:
        _prepare_nothing(load_recipe(recipe, overrides or [], check_inputs=True), preview, as_json, quiet, verbose)
        return
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    data = _repeated(job).data(asked=True)
    if as_json:
        print_json({**data.report, "folder": str(data.folder)})
    elif not quiet:
        print_data(data.report)
        print(f"report: {data.folder / 'report.md'}")


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Do three steps, and a few more, to tell how long training will take.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Tell what training will need (memory, steps, tokens, disk, time), and what to change if that is too much.

    Prepares the data first if that was not done, and trains nothing.

    \b
    finetune plan recipes/quickstart.yaml
    finetune plan recipes/quickstart.yaml --measure --set train.batch_size=128
    """
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    report = job.plan(measure=measure)
    if as_json:
        print_json(report)
    elif not quiet:
        print_plan(report)
        print(f"report: {job.plan_folder / 'plan.md'}")


@app.command(name="lr-find")
def lr_find(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    lowest: Annotated[float, typer.Option("--from", metavar="RATE", help="The first learning rate.")] = 1e-7,
    highest: Annotated[
        float, typer.Option("--to", metavar="RATE", help="The last one; sgd and adafactor may need 1.")
    ] = 1e-2,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Optimizer steps from the first to the last.")
    ] = 100,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Let the learning rate rise from step to step, draw the loss, and say which rates to try.

    Prepares the data first if that was not done. Changes neither the recipe nor a run.

    \b
    finetune lr-find recipes/quickstart.yaml
    finetune lr-find recipes/quickstart.yaml --set train.optimizer=sgd --to 1
    """
    from finetune.training.range_test import Sweep

    sweep = Sweep(lowest, highest, steps)
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    report = job.lr_find(sweep)
    if as_json:
        print_json(report)
    elif not quiet:
        print_range_test(report)
        print(f"picture: {job.lr_find_folder / 'lr-find.png'}")


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from a checkpoint; an error if there is none.")
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Train in so many processes of this machine.")
    ] = 1,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Fine-tune the model and keep the best one; prepares the data first if that was not done.

    An interrupted training goes on from its last checkpoint when the same command is given again.

    \b
    finetune train recipes/quickstart.yaml
    finetune train recipes/quickstart.yaml --set train.epochs=2 --set freeze=encoder --output outputs/trial
    """
    if processes > 1:
        _train_in_processes(recipe, overrides or [], processes, threads)
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force, resume=resume)
    with leaving_in_order():
        run = _repeated(job).run(asked=True)
    if not is_main():
        return
    if as_json:
        print_json(_run_result(run, job))
    elif not quiet:
        _print_run(run, job)


def _train_in_processes(recipe: Path, overrides: list[str], processes: int, threads: int | None) -> NoReturn:
    """Give the command line to several processes, and end as they do."""
    loaded = load_recipe(recipe, overrides, check_inputs=True)  # a mistake in it needs no processes
    if loaded.repeated:
        raise FinetuneError("--processes: with `seeds` or `folds` each training is one process; leave it out")
    if count() > 1:
        raise FinetuneError("--processes: a launcher has started several processes already; leave it out")
    arguments = list(sys.argv[1:])
    place = next(number for number, argument in enumerate(arguments) if argument.startswith("--processes"))
    del arguments[place : place + (1 if "=" in arguments[place] else 2)]
    code, message = launch(arguments, processes, threads or loaded.train.threads)
    if message:
        print(printable(message), file=sys.stderr, flush=True)
    sys.exit(code)


@app.command()
def tune(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=256, metavar="N", help="Processes that train trials side by side.")
    ] = 1,
    worker: Annotated[int | None, typer.Option("--worker", hidden=True)] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Search for better settings: train with many values of those in the recipe's `tune`, and write the best down.

    Judged by the validation split; the test split is not looked at. The same command goes on with a search that was
    interrupted. --force throws its trials away.

    \b
    finetune tune recipes/tune-small.yaml
    finetune tune recipes/tune-small.yaml --workers 2 --set tune.trials=40
    """
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    if worker is not None:  # one of the processes that the command below starts
        from finetune.tuning.processes import end_with_parent

        end_with_parent()
        job.work()
        return
    launch = None
    if workers > 1:
        from finetune.tuning.processes import launcher, threads_of_each

        options = [*(part for assignment in overrides or [] for part in ("--set", assignment))]
        options += ["--output", str(job.root), "--threads", str(job.runtime.threads or threads_of_each(workers))]
        options += ["--device", job.runtime.device, *["--allow-code"] * allow_code, *["--verbose"] * verbose]
        launch = launcher(["tune", str(recipe), *options], workers, job.progress)
    report = job.tune(launch)
    if as_json:
        print_json(report)
    elif not quiet:
        print_tuning(report)
        print(f"report     {job.tune_folder / 'report.md'}")
        print(f"next       finetune run {shlex.quote(report['best_recipe'])}")


@app.command(name="eval")
def evaluate(
    target: TargetArgument,
    overrides: SetOption = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="train, validation or test.")] = "test",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="New labelled rows to score instead.")
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Score a run: metrics with intervals, beside the baselines, and the worst examples. Exits 3 if a gate fails.

    \b
    finetune eval outputs/quickstart/run
    finetune eval recipes/quickstart.yaml --split validation --json
    finetune eval outputs/quickstart/run-onnx-int8 --data data/messy.jsonl
    """
    if data is not None and split != "test":
        raise FinetuneError("eval: expected --split or --data, found both")
    job, run, folder = _target(target, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    asked = job if run else _repeated(job)  # a run is judged by itself, whatever it was made with
    if data is None and split == "test":
        asked.require_test_split()
    report = asked.report(run or asked.run(), split=split, source=data, folder=folder)
    if as_json:
        print_json(report)
    elif not quiet:
        _print_report(report)
    _require(report)


@app.command()
def quantize(
    target: TargetArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Make a smaller, faster run of the same shape and score both on the same rows. Exits 3 if a gate fails.

    \b
    finetune quantize recipes/quickstart.yaml
    finetune quantize outputs/quickstart/run --set quantize=onnx-int8
    """
    job, run, _ = _target(target, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    job.require_backend()
    job.require_test_split()
    quantized, report = job.quantized(run or _repeated(job).run())
    if as_json:
        print_json({**report, "folder": str(quantized.folder)})
    elif not quiet:
        print_quantized(report)
        print(f"run: {quantized.folder}")
    _require(report)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, quantized or not.")],
    dash: Annotated[
        str | None, typer.Argument(metavar="[-]", help="- reads texts from standard input, one a line.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; repeatable.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="Rows (.jsonl, .csv, .tsv), or one text a line."),
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Print a JSON line with the answer for each row, in the order of the rows.

    \b
    finetune predict outputs/quickstart/run --text "My parcel never came."
    finetune predict outputs/quickstart/run-onnx-int8 --input new.jsonl > answers.jsonl
    cat texts.txt | finetune predict outputs/quickstart/run -
    """
    if str(input_file) == "-":  # as most tools have it
        dash, input_file = "-", None
    given = [dash is not None, bool(text), input_file is not None]
    if sum(given) != 1 or (dash is not None and dash != "-"):
        raise FinetuneError("predict: expected exactly one of --text, --input FILE or - (standard input)")
    if input_file is not None and not input_file.is_file():
        raise FinetuneError(
            f"--input: expected a file, found {'a folder' if input_file.is_dir() else 'nothing'} at {input_file}"
        )
    from finetune.pipeline import find_run
    from finetune.predict import Answering

    found = find_run(run)
    on_piece = _show_piece if text and sys.stdout.isatty() and sys.stderr.isatty() else None
    answering = Answering(found, _runtime(found.recipe, _flags(device, threads, allow_code)), on_piece)
    rows, errors = 0, Counter[str]()
    for answer in _answers(answering, text, input_file):
        print(json.dumps(answer, ensure_ascii=False), flush=input_file is None)
        rows += 1
        errors.update([str(answer["error"]).partition(":")[0]] if "error" in answer else [])
    if errors:
        _tell_unanswered(rows, errors)


def _show_piece(text: str) -> None:
    """Show on a terminal what is being written; the answer itself follows on standard output."""
    print(printable(text), end="", file=sys.stderr, flush=True)


def _tell_unanswered(rows: int, errors: Counter[str]) -> None:
    """Say on standard error how many rows have no answer, and why; raise FinetuneError if none has one."""
    missing, why = errors.total(), list_reasons(dict(errors.most_common()))
    if missing == rows:
        raise FinetuneError(f"predict: expected rows that the run can read, found none among {rows} ({why})")
    print(f"{missing} of {rows} rows have no answer: {why}", file=sys.stderr, flush=True)


def _prepare_nothing(recipe: Recipe, preview: int | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Do what `prepare` does with the rows without writing anything; exit 3 if a check finds an error."""
    from finetune.prepare import check, preview_augmentation

    if preview is not None:
        rows = preview_augmentation(recipe, preview, progress=_progress(quiet, verbose))
        if as_json:
            print_json([dict(zip(("operation", "before", "after"), row, strict=True)) for row in rows])
        else:
            print_preview(rows)
        return
    report = check(recipe, progress=_progress(quiet, verbose))
    if as_json:
        print_json(report)
    elif not quiet:
        print_data(report)
    errors = [found["check"] for found in report["warnings"] if found["severity"] == "error"]
    if errors:
        raise GateFailed(f"the data has {len(errors)} error{'s' * (len(errors) > 1)}: {', '.join(errors)}")


def _answers(answering: Any, text: list[str] | None, input_file: Path | None) -> Iterator[dict[str, Any]]:
    from finetune.data.sources import known_suffixes

    if text:
        return answering.texts(text)  # type: ignore[no-any-return]
    if input_file is None:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        return answering.lines(sys.stdin)  # type: ignore[no-any-return]
    if input_file.suffix.removeprefix(".").lower() in set(known_suffixes()) - {"txt"}:
        return answering.file(input_file)  # type: ignore[no-any-return]
    try:
        lines = input_file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        lines = [] if lines == [""] else lines
    except UnicodeDecodeError as error:
        raise FinetuneError(
            f"{input_file}: expected UTF-8 text, found other bytes at position {error.start}; re-save the file as UTF-8"
        ) from None
    return answering.lines(lines)  # type: ignore[no-any-return]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    force: ForceOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_code: AllowCodeOption = False,
) -> None:
    """Do all of it: prepare, train, eval, quantize, skipping what did not change. Exits 3 if a gate fails.

    \b
    finetune run recipes/quickstart.yaml
    finetune run recipes/quickstart.yaml --json > result.json
    """
    job = _job(recipe, overrides, output, _flags(device, threads, allow_code), quiet, verbose, force)
    job.rebuild_stale = True
    asked = _repeated(job)
    asked.require_test_split()
    data = asked.data(asked=True)
    trained = asked.run(asked=True)
    results: dict[str, Any] = {"data": data.report, "run": _run_result(trained, job), "report": asked.report(trained)}
    if job.recipe.quantize:
        results["quantized"] = job.quantized(trained)[1]
    if as_json:
        print_json({"stages": [stage.as_json() for stage in asked.stages], **results})
    elif not quiet:
        print_data(results["data"], last=False)
        _print_run(trained, job)
        _print_report(results["report"])
        if "quantized" in results:
            print_quantized(results["quantized"])
        print(f"\nReports: {trained.reports}")
    _require(results["report"], results.get("quantized"))


def _flags(device: str | None, threads: int | None, allow_code: bool) -> dict[str, Any]:
    return {"device": device, "threads": threads, "allow_code": allow_code}


def _job(
    recipe: Path,
    overrides: list[str] | None,
    output: Path | None,
    flags: Mapping[str, Any],
    quiet: bool,
    verbose: bool,
    force: bool,
    *,
    resume: bool = False,
) -> Job:
    loaded = load_recipe(recipe, overrides or [], check_inputs=True)
    return _job_of(loaded, output or Path("outputs") / loaded.name, flags, quiet, verbose, force, resume, str(recipe))


def _job_of(
    recipe: Recipe,
    root_folder: Path,
    flags: Mapping[str, Any],
    quiet: bool,
    verbose: bool,
    force: bool,
    resume: bool,
    recipe_name: str,
) -> Job:
    from finetune.pipeline import Job

    return Job(
        recipe,
        root_folder,
        _runtime(recipe, flags),
        _progress(quiet, verbose),
        rebuild_stale=force,
        force=force,
        resume=resume,
        recipe_name=recipe_name,
    )


def _repeated(job: Job) -> Job | Repeats:
    """Return the job, or that of all its repeats if the recipe has `seeds` or `folds`."""
    if not job.recipe.repeated:
        return job
    from finetune.repeats import Repeats

    return Repeats(job)


def _runtime(recipe: Recipe, flags: Mapping[str, Any]) -> Runtime:
    from finetune.runtime import Runtime

    settings = recipe.train
    return Runtime(
        device=flags["device"] or settings.device,
        threads=flags["threads"] or settings.threads,
        precision=settings.precision,
        allow_code=flags["allow_code"],
    )


def _progress(quiet: bool, verbose: bool) -> Progress:
    return Silent() if quiet or not is_main() else ConsoleProgress(verbose)


def _target(
    target: Path,
    overrides: list[str] | None,
    output: Path | None,
    flags: Mapping[str, Any],
    quiet: bool,
    verbose: bool,
    force: bool,
) -> tuple[Job, Run | None, Path | None]:
    """Return the job, the run if the target names one, and where reports go if not into the run."""
    if target.suffix.lower() in {".yaml", ".yml"} and not target.is_dir():
        return _job(target, overrides, output, flags, quiet, verbose, force), None, None
    from finetune.pipeline import find_run

    found = find_run(target, or_what=" or a recipe (a .yaml file)")
    _refuse_settings_of_the_past(overrides or [])
    recipe = load_recipe(found.folder / "recipe.yaml", overrides or [])
    job = _job_of(recipe, output or found.folder.parent, flags, quiet, verbose, force, False, str(target))
    return job, found, output


# What a finished run can still be asked with: the rest was decided when it was made
SETTINGS_OF_A_RUN = ("metrics", "gates", "quantize", "seed", "data.columns", "train.eval_batch_size", "train.device")


def _refuse_settings_of_the_past(overrides: list[str]) -> None:
    for assignment in overrides:
        path = assignment.partition("=")[0]
        if not any(path == allowed or path.startswith(f"{allowed}.") for allowed in SETTINGS_OF_A_RUN):
            raise FinetuneError(
                f"--set {assignment}: this run was made with other settings already; expected one of "
                f"{', '.join(SETTINGS_OF_A_RUN)}. Give the recipe instead of the run to make another run."
            )


def _print_run(run: Run, job: Job) -> None:
    if job.recipe.repeated:
        print_repeated_training(_run_result(run, job))
    else:
        print_run(run)


def _print_report(report: Mapping[str, Any]) -> None:
    if "repeats" in report:
        print_repeats(report)
    else:
        print_report(report)


def _run_result(run: Run, job: Job) -> dict[str, Any]:
    if job.recipe.repeated:
        from finetune.repeats import summary

        return {**summary(run), "folder": str(run.folder)}
    keys = (
        "best_step",
        "last_step",
        "stopped_because",
        "metrics",
        "diagnosis",
        "parameters",
        "freezing",
        "labels",
        "device",
        "precision",
    )
    return {**{key: run.manifest[key] for key in keys if key in run.manifest}, "folder": str(run.folder)}


def _require(*reports: Mapping[str, Any] | None) -> None:
    from finetune.gates import require

    require([gate for report in reports if report for gate in report["gates"]])
