"""MLflow: a run of an experiment, in a database of this machine or on a tracking server."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from finetune.artifacts import write_json
from finetune.errors import FinetuneError
from finetune.registry import trackers
from finetune.training.trackers import OpenTracker, Outcome, TrackedTraining, start
from finetune.urls import without_secrets

TRACKING_URI = "MLFLOW_TRACKING_URI"
STATUS: Mapping[Outcome, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
DEFAULTS = {
    # its own let a training wait for minutes until it is told that a server does not answer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which is for results
}


def _uri(uri: str) -> str:
    if without_secrets(uri) != uri:  # a recipe is stored with its run
        raise ValueError(
            f"expected a URI without user, password or query; give those in {TRACKING_URI}, or the user and password "
            "in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if "://" not in uri and uri != "databricks":
        raise ValueError(f"expected a server (https://host) or a database (sqlite:////folder/mlflow.db), found {uri!r}")
    return uri


def needed(options: Mapping[str, Any]) -> Sequence[str]:
    """Return the packages that are imported: those of databases only where no server has one."""
    elsewhere = (options["tracking_uri"] or os.environ.get(TRACKING_URI, "")).startswith(("http", "databricks"))
    return ("mlflow",) if elsewhere else ("mlflow", "sqlalchemy", "alembic")


@trackers.register("mlflow", needs=needed, install="'finetune-toolkit[mlflow]'")
def mlflow(
    training: TrackedTraining,
    *,
    tracking_uri: Annotated[str, AfterValidator(_uri)] | None = None,
    experiment: Annotated[str, Field(pattern=r"^[^'\\]{1,500}$")] | None = None,
) -> OpenTracker:
    """Log to the store of `tracking_uri`, else of MLFLOW_TRACKING_URI, else to a SQLite file in the run's folder.

    A training that goes on does so in its run, unless the recipe has changed, whose values MLflow keeps for good.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # looked at when it is imported
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow as library

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if (run := library.active_run()) is not None:
        raise FinetuneError(f"train.trackers: mlflow has an open run ({run.info.run_id}); end it (mlflow.end_run())")
    before = os.environ.get(TRACKING_URI)
    uri = tracking_uri or before
    _check_folder(uri or "")

    def end(outcome: Outcome) -> None:
        try:
            library.end_run(STATUS[outcome])
        finally:
            library.set_tracking_uri(before)  # this sets the variable, too

    try:
        library.set_tracking_uri(uri or _own_database(training.folder))
        return _started(training, uri, experiment or training.name, end)
    except BaseException:
        end("failed")
        raise


def _own_database(folder: Path) -> str:
    from sqlalchemy.engine import URL

    folder.mkdir(parents=True, exist_ok=True)
    return URL.create("sqlite", database=str((folder / "mlflow.db").resolve())).render_as_string()


def _check_folder(uri: str) -> None:
    """Raise FinetuneError for a file of SQLite in a folder that is not there: MLflow would try for minutes."""
    if not uri.startswith("sqlite"):
        return
    from sqlalchemy.engine import make_url

    folder = Path(make_url(uri).database or "").resolve().parent
    if not folder.is_dir():
        raise FinetuneError(f"train.trackers: mlflow: expected a folder for its database, found none at {folder}")


def _started(
    training: TrackedTraining, uri: str | None, experiment: str, end: Callable[[Outcome], None]
) -> OpenTracker:
    from accelerate.tracking import MLflowTracker

    path, key = training.folder / "run.json", _key(training, uri, experiment)
    stored = json.loads(path.read_text(encoding="utf-8")) if training.done_steps and path.is_file() else {}
    run_id = stored["run_id"] if stored.get("key") == key else None
    tracker = MLflowTracker(
        experiment,
        logging_dir=None if uri else _artifacts(training.folder).as_uri(),
        run_id=run_id,
        run_name=f"{training.name} seed {training.seed}",
    )
    start(tracker, None if run_id else training.configuration)
    write_json(path, {"run_id": tracker.tracker.info.run_id, "key": key})
    return OpenTracker(tracker, _logged(run_id) if run_id else {}, end)


def _key(training: TrackedTraining, uri: str | None, experiment: str) -> str:
    """Return what a training has to have in common with an interrupted one to go on in its run."""
    described = json.dumps([without_secrets(uri or ""), experiment, dict(training.configuration)])
    return hashlib.sha256(described.encode()).hexdigest()


def _artifacts(folder: Path) -> Path:
    """Return where the files lie that users add to a run of our own database: beside it, once training is complete."""
    growing = folder.resolve().parents[1]
    return growing.with_name(growing.name.removesuffix(".partial")) / "trackers" / folder.name / "artifacts"


def _logged(run_id: str) -> dict[str, int]:
    """Return up to which step a run has each value."""
    import mlflow as library

    client = library.MlflowClient()
    names = client.get_run(run_id).data.metrics
    return {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}
