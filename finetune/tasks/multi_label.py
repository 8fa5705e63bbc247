"""Multi-label text classification: any number of labels for each text.

Rows: `text`, `labels` (a list, which may be empty). Its rows can be prepared and checked; training comes with the
metrics that judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.registry import tasks
from finetune.tasks import TaskSpec

SPEC = TaskSpec(
    metrics=(), baselines=(), unit="row", text_roles=("text", "text_pair"), label_role="labels", trains=False
)


@tasks.register("multi-label", spec=SPEC)
class MultiLabel:
    """One text, any number of labels out of a fixed list."""

    columns = {"text": Column("text"), "text_pair": Column("text", required=False), "labels": Column("labels")}  # noqa: RUF012 -- read-only

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids and, where the rows have labels, a 0 or 1 for each label there is."""
        encoded = encoder.texts(rows["text"], rows.get("text_pair"))
        if "labels" not in rows:
            return encoded
        import pyarrow as pa

        targets = [[int(label in found) for label in labels] for found in map(set, rows["labels"])]
        return encoded.with_features(label_ids=pa.array(targets, pa.list_(pa.int32())))
