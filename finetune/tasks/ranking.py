"""Ranking: which of several texts answers a query best, by a model that reads both together (a cross-encoder).

Rows, by the option `rows`: `graded`: `query`, `text`, `relevance` (0: not relevant; one row a pair); or `positives`:
`query`, `positive`, `negatives` (a list of texts). The model reads query and text as a pair, cut at `model.max_length`
(the longer one first, every cut counted), and gives one score (Nogueira & Cho 2019). Training, by the option `loss`:
`pointwise` is binary cross-entropy of each pair with its relevance, as a share of the greatest in the training split;
`listwise` is the cross-entropy between shares of a query's candidates in proportion to their relevance and the softmax
of their scores (ListNet's, Cao et al. 2007, with the targets of Bruch et al. 2019), and passes by a query without a
relevant text. A query's rows share a split and a batch, so that `batch_size` counts queries. Metrics are means over
queries: MAP, MRR, NDCG with linear gains, hit rate, as scikit-learn defines them where it does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.errors import FinetuneError
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec
from finetune.tasks.ranking_reports import describe, details, difficulty, example, sections
from finetune.tasks.sequences import pad_inputs
from finetune.tasks.voting import Voting, mean_of_scores

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.rankings import RankingPredictions

Rows = Literal["graded", "positives"]
Loss = Literal["pointwise", "listwise"]
COLUMNS: dict[str, dict[str, Column]] = {
    "graded": {"query": Column("text"), "text": Column("text"), "relevance": Column("number", minimum=0)},
    "positives": {"query": Column("text"), "positive": Column("text"), "negatives": Column("texts")},
}


def fit_targets(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the greatest relevance in training, by which the others are divided."""
    greatest = max((float(row.get("relevance", 1.0)) for row in rows), default=0.0)
    if not greatest:
        raise FinetuneError(
            "task ranking: expected training rows with a relevance above 0, found none. Check data.columns.relevance."
        )
    return {"greatest_relevance": greatest}


def declare(options: Mapping[str, Any]) -> TaskSpec:
    """Return the declaration for rows and loss as the options have them."""
    graded = options.get("rows", "graded") == "graded"
    return TaskSpec(
        kind="ranking",
        metrics=("ndcg@10", "map", "mrr", "hit-rate@1", "hit-rate@3"),
        baselines=("bm25", "tfidf-ranking"),
        text_roles=("query", "text") if graded else ("query", "positive"),
        label_role="relevance" if graded else None,
        question={"query": Column("text"), **({"text": Column("text")} if graded else {"texts": Column("texts")})},
        describe=functools.partial(describe, pointwise=options.get("loss", "pointwise") == "pointwise"),
        example=example,
        difficulty=difficulty,
        worst_means="The queries whose relevant texts were ranked lowest (by NDCG); [1] is how relevant a text is.",
        voting=Voting("the scores", mean_of_scores),
        details=details,
        sections=sections,
        unit="query",
        unit_role="query",
        fit_targets=fit_targets,
        together="query_key" if graded else "row",
        windows=False,
    )


@tasks.register("ranking", spec=declare)
class Ranking:
    """A query, and texts to be put in the order of how well they answer it."""

    def __init__(self, *, rows: Rows = "graded", loss: Loss = "pointwise") -> None:
        """Take rows of that form, and learn from each pair by itself or from a query's candidates together."""
        self.columns: Mapping[str, Column] = COLUMNS[rows]
        self._loss = loss

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head with one score."""
        return Head("sequence", outputs=1)

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        encoder: Encoder,
        labels: Sequence[str],  # noqa: ARG002
    ) -> Encoded:
        """Return the token ids of pairs: one a row, or one part of a row for each of its candidates."""
        return _encode_pairs(rows, encoder) if "text" in rows else _encode_lists(rows, encoder)

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest pair; `queries` numbers the queries of the batch, from 0, for each pair."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "relevance" not in features[0]:
            return Batch(inputs, {})
        # a number that a part has is stored as a list of it
        values = [row["relevance"][0] if isinstance(row["relevance"], list) else row["relevance"] for row in features]
        keys = [row.get("query_key", row["row"]) for row in features]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return Batch(
            inputs,
            {
                "relevance": torch.tensor(values, dtype=torch.float32),
                "queries": torch.tensor([numbers[key] for key in keys]),
            },
        )

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return one score for each pair, shape (pairs, 1)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return summed losses and the number of pairs (pointwise) or of queries with a relevant text (listwise)."""
        import torch

        scores, relevance = outputs.float()[:, 0], batch.targets["relevance"]
        if self._loss == "listwise":
            return listwise(scores, relevance, batch.targets["queries"])
        shares = (relevance / fitted.get("greatest_relevance", 1.0)).clamp(max=1.0)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, shares, reduction="none")
        return losses.sum(), torch.tensor(len(losses), device=losses.device)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,  # noqa: ARG002
    ) -> RankingPredictions:
        """Return the scores by query; rows that nobody has judged are an answer each."""
        import numpy as np

        from finetune.evaluation.predictions.rankings import RankingPredictions

        pairs = [pair for row in rows for pair in _pairs(row)]
        judged = bool(pairs) and pairs[0][2] is not None
        by_query = judged and "text" in rows[0]
        groups = _numbered([query for query, _, _ in pairs]) if by_query else features.row_ids
        said = RankingPredictions.grouped(
            queries=[query for query, _, _ in pairs],
            texts=[text for _, text, _ in pairs],
            scores=np.array([values[0] for values in outputs]),
            relevance=np.array([relevance for _, _, relevance in pairs] if judged else []),
            rows=features.row_ids,
            groups=groups,
        )
        assert judged or len(said) == len(rows), "a row that is asked about has an answer of its own"
        return said


def listwise(scores: torch.Tensor, relevance: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of queries, and how many have a relevant text; all of shape (pairs,).

    `queries` has the number of each pair's query, from 0.
    """
    import torch

    size = int(queries.max()) + 1
    inside = queries[None] == torch.arange(size, device=queries.device)[:, None]
    totals = (inside * relevance).sum(dim=1)
    normalizers = scores.masked_fill(~inside, -torch.inf).logsumexp(dim=1)
    shares = relevance / totals.clamp(min=torch.finfo(totals.dtype).tiny)[queries]
    return (shares * (normalizers[queries] - scores)).sum(), (totals > 0).sum()


def _encode_pairs(rows: Mapping[str, Sequence[Any]], encoder: Encoder) -> Encoded:
    """Encode one pair a row; `query_key` is the same for the rows of a query, and for no others."""
    import numpy as np
    import pyarrow as pa
    from xxhash import xxh3_64_intdigest

    keys = [xxh3_64_intdigest(query.encode("utf-8", "surrogatepass")) for query in rows["query"]]
    encoded = encoder.texts(rows["query"], rows["text"])
    encoded = encoded.with_features(query_key=pa.array(np.array(keys, dtype=np.uint64).view(np.int64)))
    if "relevance" not in rows:
        return encoded
    return encoded.with_features(relevance=pa.array(rows["relevance"], pa.float64()))


def _encode_lists(rows: Mapping[str, Sequence[Any]], encoder: Encoder) -> Encoded:
    """Encode the candidates of each row as its parts; where one is known to be relevant it is the first."""
    import numpy as np
    import pyarrow as pa

    known = "positive" in rows
    lists = (
        [[positive, *negatives] for positive, negatives in zip(rows["positive"], rows["negatives"], strict=True)]
        if known
        else [list(texts) for texts in rows["texts"]]
    )
    counts = np.array([len(texts) for texts in lists], dtype=np.int32)
    queries = [query for query, count in zip(rows["query"], counts, strict=True) for _ in range(count)]
    encoded = encoder.texts(queries, [text for texts in lists for text in texts])
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)

    def nest(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    features = {name: nest(values) for name, values in encoded.features.items()}
    if known:
        first = np.isin(np.arange(offsets[-1]), offsets[:-1]).astype(np.int32)
        each = pa.array(np.arange(len(first) + 1, dtype=np.int32))
        features["relevance"] = nest(pa.ListArray.from_arrays(each, pa.array(first)))
    parts = np.repeat(np.arange(len(lists)), counts)
    lost = np.bincount(parts, weights=encoded.tokens_lost, minlength=len(lists)).astype(np.int32)
    longest = np.zeros(len(lists), dtype=np.int32)  # what a limit of length is about is the pair
    np.maximum.at(longest, parts, encoded.whole_lengths)
    return Encoded(features, longest, lost, encoded.unknown_tokens, encoded.words, encoded.text_tokens)


def _pairs(row: Row) -> list[tuple[str, str, float | None]]:
    """Return the query, each candidate of a row, and how relevant it is, if that is known."""
    query = row["query"]
    if "text" in row:
        return [(query, row["text"], row.get("relevance"))]
    if "positive" in row:
        return [(query, row["positive"], 1.0), *((query, text, 0.0) for text in row["negatives"])]
    return [(query, text, None) for text in row["texts"]]


def _numbered(values: Sequence[str]) -> NDArray[Any]:
    """Return a number for each value, the same for equal ones, shape (values,)."""
    import numpy as np

    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)
