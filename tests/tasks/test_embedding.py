"""Bi-encoders: parts of a row, pooling, losses against sentence-transformers, and a run that it can open."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune.artifacts import FeatureTable, feature_table
from finetune.data.tokenization import Encoded, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.predictions.similarities import (
    Corpus,
    EmbeddingPredictions,
    RetrievalPredictions,
    unit_vectors,
)
from finetune.evaluation.statistics import point
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.registry import tasks
from finetune.tasks import Batch, open_task
from finetune.tasks.contrastive import also_right, cosent_losses, cosine_errors, in_batch_losses, triplet_losses
from finetune.tasks.embedding_reports import retrieval_details, retrieval_sections
from tests.conftest import FILLER, LABEL_WORDS, build_tiny_model

PAIRS = [
    {"anchor": "the apple", "positive": "my old apple"},
    {"anchor": "a very big saw with a hammer", "positive": "drill"},
    {"anchor": "rain again", "positive": "we had rain and fog today"},
]
TRIPLETS = [{**row, "negative": text} for row, text in zip(PAIRS, ["snow", "the red plum", "wind"], strict=True)]
SCORED = [
    {"text": "the apple", "text_pair": "a pear", "score": 4.0},
    {"text": "rain", "text_pair": "hammer", "score": 0.0},
]


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {role: [row[role] for row in rows] for role in rows[0]}


def encode(options: dict[str, Any], rows: list[dict[str, Any]], model: Path, length: int = 16) -> Encoded:
    task, _ = open_task("embedding", options)
    return task.encode(columns(rows), Encoder.of(load_tokenizer(model), Limits(length)), [])


def batch_of(options: dict[str, Any], rows: list[dict[str, Any]], model: Path) -> tuple[Batch, FeatureTable]:
    task, _ = open_task("embedding", options)
    features = feature_table(encode(options, rows, model).features)
    return task.collate(list(features), load_tokenizer(model)), features


def run(options: dict[str, Any], rows: list[dict[str, Any]], model: Path) -> tuple[torch.Tensor, Batch, FeatureTable]:
    """Return the outputs of the pretrained model for rows, with their batch and features."""
    task, _ = open_task("embedding", options)
    batch, features = batch_of(options, rows, model)
    loaded = load_model(model, task.head([]), ModelSettings()).model.eval()
    with torch.no_grad():
        return task.forward(loaded, batch.inputs), batch, features


@pytest.mark.parametrize(("kind", "rows"), [("pairs", PAIRS), ("triplets", TRIPLETS), ("scored", SCORED)])
def test_every_text_of_every_row_enters_the_loss_and_the_metric_once(
    kind: str, rows: list[dict[str, Any]], tiny_model: Path
) -> None:
    texts = [text for row in rows for text in row.values() if isinstance(text, str)]
    outputs, batch, features = run({"rows": kind, "maximum": 5.0}, rows, tiny_model)
    words = [len(text.split()) + 2 for text in texts]  # and the two special tokens
    assert [len(window["input_ids"]) for window in features] == words
    assert int(batch.inputs["attention_mask"].sum()) == sum(words)
    assert len(outputs) == len(features) == len(texts)
    task, _ = open_task("embedding", {"rows": kind, "maximum": 5.0})
    assert int(task.loss(outputs, batch, {})[1]) == len(rows)
    predictions = task.decode(list(outputs.numpy()), features, rows, [], {})
    assert len(predictions) == len(rows)
    if isinstance(predictions, RetrievalPredictions):
        candidates = {row[role] for row in rows for role in ("positive", "negative") if role in row}
        assert set(predictions.corpus.texts) == candidates


def test_a_row_is_as_long_as_its_longest_text_and_loses_what_all_lose(tiny_model: Path) -> None:
    encoded = encode({}, PAIRS, tiny_model, length=6)
    assert encoded.whole_lengths.tolist() == [5, 9, 8]
    assert encoded.tokens_lost.tolist() == [0, 3, 2]
    assert encoded.features["input_ids"].to_pylist()[0] == [[2, 5, 25, 3], [2, 7, 10, 25, 3]]


def test_a_text_alone_is_encoded_and_gives_its_vector(tiny_model: Path) -> None:
    task, spec = open_task("embedding", {})
    outputs, batch, features = run({}, [{"text": "rain"}, {"text": "the old saw"}], tiny_model)
    assert batch.targets == {}
    predictions = task.decode(list(outputs.numpy()), features, [{"text": "rain"}, {"text": "the old saw"}], [], {})
    assert isinstance(predictions, EmbeddingPredictions)
    answer = spec.describe(predictions, 1, {"text": "the old saw"})["embedding"]
    assert np.asarray(json.loads(json.dumps(answer)), dtype=np.float32).tolist() == outputs[1].tolist()
    assert max(len(str(value)) for value in answer) <= 14
    scored = encode({"rows": "scored"}, [{"text": "rain"}], tiny_model)
    assert scored.features["input_ids"].to_pylist() == [[2, 34, 3]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_vector_does_not_depend_on_padding(pooling: str, normalize: bool, still_model: Path) -> None:
    options = {"pooling": pooling, "normalize": normalize}
    together, _, _ = run(options, PAIRS, still_model)
    alone, _, _ = run(options, PAIRS[:1], still_model)
    torch.testing.assert_close(together[:2], alone, atol=1e-6, rtol=1e-5)
    lengths = together.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths)) == normalize


def test_pooling_is_the_mean_over_tokens_or_the_first_of_them(still_model: Path) -> None:
    for pooling in ("mean", "cls"):
        task, _ = open_task("embedding", {"pooling": pooling, "normalize": False})
        batch, _ = batch_of({}, PAIRS, still_model)
        model = load_model(still_model, task.head([]), ModelSettings()).model.eval()
        with torch.no_grad():
            tokens = model(**batch.inputs).last_hidden_state
            found = task.forward(model, batch.inputs)
        for place, length in enumerate(batch.inputs["attention_mask"].sum(dim=1).tolist()):
            expected = tokens[place, 0] if pooling == "cls" else tokens[place, :length].mean(dim=0)
            torch.testing.assert_close(found[place], expected, atol=1e-6, rtol=1e-5)


def vectors(parts: int, rows: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, parts, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def none_right(rows: int, parts: int) -> torch.Tensor:
    return torch.zeros(rows, rows * (parts - 1), dtype=torch.bool)


def test_in_batch_negatives_are_all_other_candidates_of_the_batch() -> None:
    found = in_batch_losses(vectors(3), none_right(7, 3), scale=20.0, symmetric=False)
    anchors, *others = (part / part.norm(dim=-1, keepdim=True) for part in vectors(3).unbind(1))
    for row in range(7):
        scores = [math.exp(20 * float(anchors[row] @ candidate)) for part in others for candidate in part]
        assert float(found[row]) == pytest.approx(-math.log(scores[row] / sum(scores)), abs=1e-9)


def test_equal_texts_are_no_negatives_of_each_other() -> None:
    #                      anchor, positive
    texts = torch.tensor([[0, 10], [1, 10], [2, 11], [0, 12], [3, 1]])
    expected = torch.zeros(5, 5, dtype=torch.bool)
    for row, other in [(0, 1), (1, 0)]:  # the same positive
        expected[row, other] = True
    for row, other in [(0, 3), (3, 0)]:  # the same anchor: each of its positives is right
        expected[row, other] = True
    expected[1, 4] = True  # the anchor itself
    assert also_right(texts).tolist() == expected.tolist()


def test_a_negative_that_is_the_positive_of_the_row_is_left_out() -> None:
    texts = torch.tensor([[0, 10, 20], [1, 11, 10], [2, 12, 22]])
    right = also_right(texts)
    assert right.nonzero().tolist() == [[0, 4]]


def test_the_loss_leaves_equal_texts_out(tiny_model: Path) -> None:
    task, _ = open_task("embedding", {})
    doubled = [*PAIRS, {"anchor": "snow", "positive": PAIRS[0]["positive"]}]
    outputs, batch, _ = run({}, doubled, tiny_model)
    right = none_right(4, 2)
    right[0, 3] = right[3, 0] = True
    expected = in_batch_losses(outputs.reshape(4, 2, -1), right, scale=20.0, symmetric=False)
    assert float(task.loss(outputs, batch, {})[0]) == pytest.approx(float(expected.sum()), rel=1e-6)


def test_cosent_wants_the_order_of_the_scores_and_no_more() -> None:
    scores = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    pairs = torch.tensor([[[1, 0], [0.0, 1]], [[1, 0], [1, 1]], [[1, 0], [1, 0]]], dtype=torch.float64)
    assert float(cosent_losses(pairs, scores, scale=20.0)[0]) == pytest.approx(0, abs=0.01)
    assert float(cosent_losses(pairs, scores.flip(0), scale=20.0)[0]) > 10
    assert cosent_losses(pairs, torch.ones(3, dtype=torch.float64), scale=20.0).tolist() == [0.0] * 3


def test_cosine_errors_are_squared_differences_from_the_score_between_0_and_1(tiny_model: Path) -> None:
    options = {"rows": "scored", "minimum": -1.0, "maximum": 4.0}
    outputs, batch, _ = run(options, SCORED, tiny_model)
    assert batch.targets["scores"][::2].tolist() == pytest.approx([1.0, 0.2])
    task, _ = open_task("embedding", options)
    total, count = task.loss(outputs, batch, {})
    cosines = (outputs[::2] * outputs[1::2]).sum(dim=-1)
    assert float(total) == pytest.approx(float((cosines[0] - 1) ** 2 + (cosines[1] - 0.2) ** 2), rel=1e-5)
    assert int(count) == 2


def given_losses() -> Iterator[Any]:
    labels = torch.tensor([0.2, 0.9, 0.9, 0.0, 0.4, 1.0, 0.6], dtype=torch.float64)
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    for parts in (2, 3):
        right = none_right(7, parts)
        for symmetric, options in ((False, {}), (True, both)):
            ours = in_batch_losses(vectors(parts), right, scale=20.0, symmetric=symmetric).mean()
            name = "MultipleNegativesRankingLoss"
            yield pytest.param(name, options, parts, None, ours, id=f"in-batch-{parts}-{symmetric}")
    yield pytest.param("CosineSimilarityLoss", {}, 2, labels, cosine_errors(vectors(2), labels).mean(), id="cosine")
    cosent = cosent_losses(vectors(2), labels, scale=20.0).mean()
    yield pytest.param("CoSENTLoss", {}, 2, labels, cosent, id="cosent")
    margin = triplet_losses(vectors(3), margin=0.2).mean()
    yield pytest.param("TripletLoss", {"triplet_margin": 0.2}, 3, None, margin, id="triplet")


@pytest.mark.parametrize(("name", "options", "parts", "labels", "ours"), list(given_losses()))
def test_losses_are_those_of_sentence_transformers(
    name: str, options: dict[str, Any], parts: int, labels: torch.Tensor | None, ours: torch.Tensor
) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses", exc_type=ImportError)

    class Vectors(torch.nn.Module):
        """A model whose features are the vectors already."""

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return features

    if name == "TripletLoss":
        options = {**options, "distance_metric": losses.TripletDistanceMetric.COSINE}
    theirs = getattr(losses, name)(Vectors(), **options)
    texts = [{"sentence_embedding": part} for part in vectors(parts).unbind(1)]
    assert float(ours) == pytest.approx(float(theirs(texts, labels)), abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_opens_the_folder_and_gives_the_same_vectors(
    pooling: str, normalize: bool, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    folder = build_tiny_model(tmp_path / "model")
    options = {"pooling": pooling, "normalize": normalize}
    task, _ = open_task("embedding", options)
    task.save_extras(folder, 6)  # type: ignore[attr-defined]
    outputs, _, _ = run(options, [{"text": text} for text in ("rain again", "the old saw")], folder)
    opened = library.SentenceTransformer(str(folder), device="cpu")
    assert opened.max_seq_length == 6
    found = opened.encode(["rain again", "the old saw"])
    np.testing.assert_allclose(found, outputs.numpy(), atol=1e-5)


def test_the_folder_says_how_texts_are_pooled(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model")
    open_task("embedding", {"normalize": False, "pooling": "cls"})[0].save_extras(folder, 64)  # type: ignore[attr-defined]
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, chosen in pooling.items() if chosen is True] == ["pooling_mode_cls_token"]


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(n_embd=24, n_head=2),
        transformers.XLMConfig(emb_dim=24, n_heads=2),
        transformers.DistilBertConfig(dim=24, n_heads=2),
        transformers.BartConfig(d_model=24),
        transformers.AlbertConfig(hidden_size=24, embedding_size=8),
    ],
    ids=lambda config: config.model_type,
)
def test_the_folder_says_how_wide_vectors_are_whatever_the_architecture_calls_it(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    open_task("embedding", {})[0].save_extras(tmp_path, 64)  # type: ignore[attr-defined]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rows": "pairs", "loss": "cosent"},
            "expected in-batch-negatives for rows: pairs, found cosent, which is for",
        ),
        ({"rows": "scored", "loss": "in-batch-negatives"}, "expected cosine or cosent for rows: scored"),
        ({"rows": "scored", "minimum": 5.0}, r"minimum: expected less than the maximum \(1\), found 5"),
    ],
)
def test_a_loss_for_other_rows_is_refused(options: dict[str, Any], message: str) -> None:
    entry = tasks.get("embedding")
    with pytest.raises(ValueError, match=message):
        entry.attributes["check"](entry.options.model_validate(options).model_dump())


@pytest.mark.parametrize("rows", ["pairs", "triplets", "scored"])
def test_the_first_loss_for_the_rows_fits_them(rows: str) -> None:
    entry = tasks.get("embedding")
    entry.attributes["check"](entry.options.model_validate({"rows": rows}).model_dump())


def test_answers_to_pairs_and_triplets_hang_together_by_anchor() -> None:
    specs = [open_task("embedding", {"rows": rows})[1] for rows in ("pairs", "triplets", "scored")]
    assert [(spec.unit, spec.unit_role) for spec in specs] == [("query", "anchor")] * 2 + [("row", None)]


def test_intervals_of_details_are_over_anchors() -> None:
    """Each row twice says nothing more of its anchor: intervals stay as wide as they were."""
    rows = [{"anchor": f"anchor {number}", "positive": f"positive {number}"} for number in range(20)]
    generator = np.random.default_rng(0)
    anchors, candidates = (unit_vectors(generator.normal(size=(20, 4))) for _ in range(2))
    topics = ["a", "b"] * 10
    once = RetrievalPredictions.of(anchors, candidates, Corpus.of(rows), topics)
    twice = once.take(np.tile(np.arange(20), 2))
    for one, two in zip(
        retrieval_details(once, 0)["recall_by_cutoff"], retrieval_details(twice, 0)["recall_by_cutoff"], strict=True
    ):
        assert two["recall"] == pytest.approx(one["recall"])
    assert retrieval_details(twice, 0)["anchors"] == 20
    mrr = [retrieval_details(found, 0)["by_topic"]["a"]["mrr"] for found in (once, twice)]
    assert mrr[1] == pytest.approx(mrr[0])


def test_the_report_says_when_rows_share_their_anchors() -> None:
    rows = [{"anchor": f"anchor {number % 3}", "positive": f"positive {number}"} for number in range(6)]
    vectors = unit_vectors(np.random.default_rng(0).normal(size=(6, 4)))
    found = RetrievalPredictions.of(vectors, vectors, Corpus.of(rows), [])
    table = retrieval_sections({"rows": 6, **retrieval_details(found, 0)})[0]
    assert table.note.startswith("6 rows with 3 different anchors, each asked")


def test_only_losses_of_single_rows_add_up_over_batches() -> None:
    adding = {
        (rows, loss)
        for rows, losses in {
            "pairs": ("in-batch-negatives",),
            "triplets": ("in-batch-negatives", "triplet-margin"),
            "scored": ("cosine", "cosent"),
        }.items()
        for loss in losses
        if open_task("embedding", {"rows": rows, "loss": loss})[1].adds_up
    }
    assert adding == {("triplets", "triplet-margin"), ("scored", "cosine")}


def test_vectors_that_are_no_numbers_are_an_error(tiny_model: Path) -> None:
    task, _ = open_task("embedding", {})
    outputs, _, features = run({}, PAIRS, tiny_model)
    broken = outputs.numpy().copy()
    broken[3, 2] = np.nan
    with pytest.raises(FinetuneError, match="expected vectors of finite numbers"):
        task.decode(list(broken), features, PAIRS, [], {})


def test_learning_pairs_brings_them_together(still_model: Path) -> None:
    """Twelve pairs that share no word: found by chance before, and all found after."""
    words = [word for group in LABEL_WORDS.values() for word in group]
    rows = [
        {"anchor": f"the {word}", "positive": f"again {FILLER[-1 - place]}"} for place, word in enumerate(words[:12])
    ]
    task, _ = open_task("embedding", {})
    batch, features = batch_of({}, rows, still_model)
    torch.manual_seed(0)
    model = load_model(still_model, task.head([]), ModelSettings()).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scores = []
    for _ in range(40):
        outputs = task.forward(model, batch.inputs)
        scores.append(point("recall@1", task.decode(list(outputs.detach().numpy()), features, rows, [], {})))
        total, count = task.loss(outputs, batch, {})
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert scores[0] < 0.5
    assert scores[-1] > 0.9
