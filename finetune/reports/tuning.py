"""A search for people: Markdown with a table of all trials, Optuna's pictures, and the recipe of the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.reports.markdown import escape, table
from finetune.reports.plots import plain_label, save_figure
from finetune.reports.wording import many
from finetune.space import label

if TYPE_CHECKING:
    import optuna

    from finetune.recipe import Recipe

SHOWN_TRIALS = 200
ORDER = ("finished", "pruned", "failed", "unfinished")


def shown(value: Any) -> str:
    """Return a setting's value or a score as people read it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(label(value))


def scored(score: float | None) -> str:
    """Return a score as people read it."""
    return "" if score is None else f"{score:.4f}"


def counted(report: Mapping[str, Any]) -> str:
    """Return how many trials ended how: `17 finished, 3 pruned`."""
    counts = Counter(trial["state"] for trial in report["trials"])
    return ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state]) or "none begun"


def ranked(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the trials, the best first; those that were pruned follow, and then those that failed."""
    sign = -1 if report["higher_is_better"] else 1

    def rank(trial: Mapping[str, Any]) -> tuple[int, float, int]:
        score = trial["score"]
        return ORDER.index(trial["state"]), float("inf") if score is None else sign * score, trial["number"]

    return sorted(report["trials"], key=rank)


def caution(report: Mapping[str, Any]) -> str:
    """Return what the best score of several does not say."""
    compared = sum(trial["score"] is not None for trial in report["trials"])
    return (
        f"It is the best of {many(compared, 'validation score')}, and so partly luck: expect less of the same settings "
        "on other rows. The test split has not been looked at."
    )


def tuning_report(report: Mapping[str, Any]) -> str:
    """Return a search as Markdown."""
    best, pruning = report["best"], report["pruning"]
    halving = f"halving from evaluation {pruning['first']} on, by {pruning['factor']}"
    how = f"Search: {report['search']}, seed {report['seed']}, "
    how += "nothing pruned." if pruning["name"] == "none" else f"pruned by successive {halving}."
    direction = "higher" if report["higher_is_better"] else "lower"
    parts = [
        f"# Search for better settings of {escape(report['name'])}",
        f"{len(report['trials'])} of {many(report['planned'], 'trial')}: {counted(report)}. Score: "
        f"{escape(report['metric'])} on the validation split, {direction} is better. {how}",
        "## Best",
        _best(best, report) if best else "No trial could be finished.",
        "## Trials",
        _trials(report),
    ]
    failed = [trial for trial in report["trials"] if trial["failure"]]
    if failed:
        lines = [f"- {trial['number']}: {escape(trial['failure'], limit=1000)}" for trial in failed[:SHOWN_TRIALS]]
        parts += ["## Failures", "\n".join(lines)]
    for title, picture in report["pictures"].items():
        found = f"![{title}]({picture['file']})" if "file" in picture else f"Left out: {picture['left_out']}."
        parts += [f"## {title}", found]
        if "values" in picture:
            finished = sum(trial["state"] == "finished" for trial in report["trials"])
            parts.append(f"By PED-ANOVA, from {many(finished, 'finished trial')}: a guess where they are few.")
    return "\n\n".join(parts) + "\n"


def _best(best: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows = [(escape(name), escape(shown(value))) for name, value in best["values"].items()]
    said = f"Trial {best['number']}, {escape(report['metric'])} {scored(best['score'])}. {caution(report)}"
    return f"{said} Its recipe is `best.yaml`.\n\n{table(('setting', 'value'), rows, text_columns=2)}"


def _trials(report: Mapping[str, Any]) -> str:
    names, trials = list(report["space"]), ranked(report)
    header = ("trial", "state", *map(escape, names), escape(report["metric"]), "evaluations", "steps", "seconds")
    rows = [
        (
            str(trial["number"]),
            trial["state"],
            *(escape(shown(trial["values"][name])) if name in trial["values"] else "" for name in names),
            scored(trial["score"]),
            str(trial["evaluations"]),
            str(trial["steps"]),
            f"{trial['seconds']:.1f}",
        )
        for trial in trials[:SHOWN_TRIALS]
    ]
    note = "The score of a pruned trial is that of its last evaluation, of the others it is the best."
    more = f" All {len(trials)} are in report.json." if len(trials) > SHOWN_TRIALS else ""
    return f"{table(header, rows, text_columns=2 + len(names))}\n\n{note}{more}"


def best_recipe(recipe: Recipe, report: Mapping[str, Any]) -> str:
    """Return the best trial's recipe as YAML, with a comment that says where it comes from."""
    best, text = report["best"], recipe.to_yaml()
    values = [f"{name}: {shown(value)}" for name, value in best["values"].items()]
    lines = [
        f"the recipe {report['name']} with the best values that finetune tune found, in trial {best['number']}:",
        *(f"  {line}" for line in values),
        f"validation {report['metric']} {scored(best['score'])}. {caution(report)}",
    ]
    if any(path not in text for path in recipe.data.paths):
        lines.append("What gives access to data.source was left out: put it back, or extend this file.")
    return "".join(f"# {' '.join(line.splitlines())}\n" for line in lines) + text


def draw_study(study: optuna.Study, metric: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Draw Optuna's pictures of a study; return for each its file beside the report, or why it was left out.

    The importance of the settings is that of PED-ANOVA (Watanabe et al. 2023), Optuna's default.
    """
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    found: dict[str, dict[str, Any]] = {"History": {}, "Importance of the settings": {}}
    history, importance = found.values()
    if len(finished) < 2:
        history["left_out"] = f"it takes two finished trials, and there are {len(finished)}"
        importance["left_out"] = history["left_out"]
    elif not (values := _importances(study, finished)):
        importance["left_out"] = "the finished trials are too few, or too alike, to tell one setting from another"
    else:
        importance["values"] = values
    for picture, name in ((history, "history.png"), (importance, "importance.png")):
        if "left_out" in picture:
            (folder / name).unlink(missing_ok=True)
        else:
            _draw(study, metric, importance.get("values", {}), folder / name)
            picture["file"] = name
    return found


def _importances(study: optuna.Study, finished: Sequence[Any]) -> dict[str, float]:
    """Return the importance of the settings that varied; nothing where Optuna finds them all equal."""
    import warnings

    from optuna.importance import get_param_importances

    varied = [name for name in finished[0].params if len({repr(trial.params.get(name)) for trial in finished}) > 1]
    if len(varied) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few trials, of which it makes equal importances
        values = get_param_importances(study, params=varied)
    return values if max(values.values()) - min(values.values()) > 1e-9 else {}


def _draw(study: optuna.Study, metric: str, values: Mapping[str, float], target: Path) -> None:
    import warnings

    import matplotlib
    from matplotlib.ticker import MaxNLocator
    from optuna.visualization import matplotlib as pictures

    # Optuna draws with pyplot, and changes the style of all pictures to come
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matplotlib import pyplot

        pyplot.switch_backend("agg")  # no window is opened
        if target.stem == "history":
            axes = pictures.plot_optimization_history(study, target_name=plain_label(metric))
        else:
            axes = pictures.plot_param_importances(study, params=list(values), target_name=plain_label(metric))
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.set_size_inches(9, 4.5)
        if target.stem == "history":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # trials are numbered
        figure.set_layout_engine("constrained")
        save_figure(figure, target)
        pyplot.close(figure)
