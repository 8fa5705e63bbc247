"""Regression: one number for each text.

Rows: `text`, `score`. Its rows can be prepared and checked; training comes with the metrics that judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.registry import tasks
from finetune.tasks import TaskSpec

SPEC = TaskSpec(
    metrics=(), baselines=(), unit="row", text_roles=("text", "text_pair"), label_role="score", trains=False
)


@tasks.register("regression", spec=SPEC)
class Regression:
    """One text, one number."""

    columns = {"text": Column("text"), "text_pair": Column("text", required=False), "score": Column("number")}  # noqa: RUF012 -- read-only

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        encoder: Encoder,
        labels: Sequence[str],  # noqa: ARG002
    ) -> Encoded:
        """Return token ids; the score is a column of its own already."""
        return encoder.texts(rows["text"], rows.get("text_pair"))
