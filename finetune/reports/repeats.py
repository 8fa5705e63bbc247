"""What several trainings of one recipe scored, each and together, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.reports.markdown import UNDEFINED, escape, gates_table, interval, table

ABOUT = {
    "seeds": "The same rows, split and tokenized once, were learned from with several seeds. The deviation (of a "
    "sample: n - 1) says how far the score of one training moves with what is drawn in it: the weights of the new "
    "head, the order of the rows, dropout. It does not say how far the score would move on other rows; the intervals "
    "of each run do, and say nothing of the seeds.",
    "folds": "The rows that are not for test were divided in folds; each model was trained and validated without its "
    "own, and scored on it. The deviation (of a sample: n - 1) is over the folds: other rows to learn from and to be "
    "judged by, and fewer of both. Two models share most of their rows, so it is not the standard error of the mean, "
    "for which there is no unbiased estimate (Bengio and Grandvalet 2004).",
}


def repeats_report(report: Mapping[str, Any]) -> str:
    """Return the scores of the repeats, of what they say together, and of each, as Markdown."""
    kind, split = report["repeats"], report["split"]
    parts = [
        f"# {escape(report['recipe'])}: {report['count']} {kind}",
        f"Model {escape(report['model'])}, task {report['task']}, {escape(scored_on(report))}.",
        ABOUT[kind],
        table(["metric", *columns(report)], [[escape(name), *cells] for name, cells in score_rows(report).items()]),
        *_notes(report),
    ]
    if split == "validation":
        parts.append("The best step of each run was chosen on this split: its scores are flattered.")
    if report["gates"]:
        parts += ["## Gates", "They are held against the means.", gates_table(report["gates"])]
    parts += ["## Each run", _runs(report)]
    return "\n\n".join(parts) + "\n"


def scored_on(report: Mapping[str, Any]) -> str:
    """Return which rows the scores are about."""
    if "out_of_fold" in report:
        return f"{report['rows']} rows, each held out once"
    return f"{report['rows']} rows of {report['split']}"


def columns(report: Mapping[str, Any]) -> list[str]:
    """Return what the table of scores has beside the metrics."""
    together = ["all held-out rows"] if "out_of_fold" in report and "metrics" in report["out_of_fold"] else []
    return ["mean", "deviation", "lowest", "highest", *together, *(["ensemble"] if _voted(report) else [])]


def score_rows(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the cells of each metric, in the order of `columns`."""
    parts = [report[key]["metrics"] for key in ("out_of_fold", "ensemble") if "metrics" in report.get(key, {})]
    return {
        name: [
            *(number(score[key]) for key in ("mean", "deviation", "lowest", "highest")),
            *(interval(part[name]) for part in parts),
        ]
        for name, score in report["metrics"].items()
    }


def number(value: float | None) -> str:
    """Return a score as tables have it."""
    return UNDEFINED if value is None else f"{value:.3f}"


def _voted(report: Mapping[str, Any]) -> bool:
    return "metrics" in report["ensemble"]


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Return what the columns behind the spread are, and why one is not there."""
    found = []
    if "out_of_fold" in report:
        found.append(_about_out_of_fold(report["out_of_fold"]))
    ensemble = report["ensemble"]
    if _voted(report):
        apart = report["repeats"] == "folds" and report["split"] == "test"
        which = "the test split, which no fold has" if apart else "the same rows"
        found.append(
            f"The ensemble averages {ensemble['averages']}; it is scored on {which} ({ensemble['rows']} rows)."
        )
    else:
        found.append(f"There is no score of an ensemble: {escape(ensemble['missing'])}.")
    return found


def _about_out_of_fold(found: Mapping[str, Any]) -> str:
    if "metrics" not in found:
        return f"All held-out rows are not scored as one: {escape(found['missing'])}."
    return (
        "All held-out rows are what the models of all folds say of the rows that they did not see, scored as one; in "
        "brackets 95 % bootstrap intervals. A metric of order or correlation over all of them also compares what "
        "different models say, and may be lower for that alone (Forman and Scholz 2010)."
    )


def _runs(report: Mapping[str, Any]) -> str:
    names = list(report["metrics"])
    rows = [
        [
            escape(run["name"]),
            str(run["rows"]),
            f"{run['best_step']} of {run['last_step']}",
            *(interval(run["metrics"][name]) for name in names),
        ]
        for run in report["runs"]
    ]
    return table(["run", "rows", "best step", *map(escape, names)], rows)
