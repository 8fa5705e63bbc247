"""Labels of a checkpoint are matched by name, and whatever is done to its head is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.models.heads import Head, output_layer
from finetune.models.loading import LoadedModel, ModelSettings, load_model
from tests.models.world import example, save

FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "electra", "deberta-v2", "modernbert", "t5", "bart"]
TAGGERS = ["bert", "roberta", "distilbert", "gpt2", "electra", "deberta-v2", "modernbert"]
CLASSES = {"sequence": "SequenceClassification", "tokens": "TokenClassification", "spans": "QuestionAnswering"}


def load(folder: Path, *labels: str, kind: Any = "sequence", **settings: Any) -> LoadedModel:
    return load_model(folder, Head(kind, labels, **settings), ModelSettings())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**example()).logits  # type: ignore[no-any-return]


def pairs() -> list[tuple[str, str]]:
    return [*(("sequence", family) for family in FAMILIES), *(("tokens", family) for family in TAGGERS)]


@pytest.mark.parametrize(("kind", "family"), pairs())
def test_labels_in_another_order_give_the_same_scores_under_their_own_names(
    kind: str, family: str, tmp_path: Path
) -> None:
    save(family, tmp_path, ["bad", "fair", "good"], kind=CLASSES[kind])
    as_it_was = load(tmp_path, "bad", "fair", "good", kind=kind)
    turned = load(tmp_path, "good", "bad", "fair", kind=kind)
    assert as_it_was.notices == []
    assert torch.equal(logits(turned.model), logits(as_it_was.model)[..., [2, 0, 1]])
    assert turned.model.config.id2label == {0: "good", 1: "bad", 2: "fair"}
    assert turned.notices == [
        "the checkpoint's head has the labels in another order (bad, fair, good); put in this task's"
    ]
    assert turned.new_parameters == frozenset()


@pytest.mark.parametrize(("kind", "family"), pairs())
def test_labels_that_the_checkpoint_knows_keep_their_scores_among_new_ones(
    kind: str, family: str, tmp_path: Path
) -> None:
    save(family, tmp_path, ["bad", "fair", "good"], kind=CLASSES[kind])
    before = logits(load(tmp_path, "bad", "fair", "good", kind=kind).model)
    loaded = load(tmp_path, "good", "awful", "superb", "bad", kind=kind)
    after = logits(loaded.model)
    assert after.shape[-1] == loaded.model.num_labels == loaded.model.config.num_labels == 4
    assert torch.allclose(after[..., [0, 3]], before[..., [2, 0]], atol=1e-6)
    assert loaded.notices == [
        "the checkpoint's head goes on for the labels good, bad; those made anew: awful, superb; those left out: fair"
    ]
    assert loaded.new_parameters
    assert {name.rpartition(".")[2] for name in loaded.new_parameters} <= {"weight", "bias"}


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_labels_of_other_names_get_a_new_last_layer_and_both_are_named(family: str, tmp_path: Path) -> None:
    save(family, tmp_path, ["cat", "dog"])
    before = load(tmp_path, "cat", "dog").model
    loaded = load(tmp_path, "good", "bad")
    assert not torch.allclose(logits(loaded.model), logits(before))
    (notice,) = loaded.notices
    assert "other labels (cat, dog) than this task's (good, bad)" in notice
    assert "data.label_map" in notice
    changed = {
        name for name, value in loaded.model.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == loaded.new_parameters


def test_labels_without_names_are_not_taken_for_this_tasks(tmp_path: Path) -> None:
    save("bert", tmp_path, ["LABEL_0", "LABEL_1"])
    loaded = load(tmp_path, "bad", "good")
    assert loaded.new_parameters == {"classifier.weight", "classifier.bias"}
    assert "LABEL_0, LABEL_1" in loaded.notices[0]


def test_another_number_of_other_labels_is_told_with_both_names(tmp_path: Path) -> None:
    save("roberta", tmp_path, ["cat", "dog", "cow"])
    loaded = load(tmp_path, "good", "bad")
    assert loaded.new_parameters == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert "does not fit and is made anew: classifier.out_proj.bias" in loaded.notices[0]
    assert "other labels (cat, dog, cow) than this task's (good, bad)" in loaded.notices[1]


def test_knowing_the_outside_tag_alone_is_no_reason_to_keep_a_head(tmp_path: Path) -> None:
    save("bert", tmp_path, ["O", "B-PER", "I-PER"], kind="TokenClassification")
    assert load(tmp_path, "O", "B-GENE", kind="tokens").new_parameters == {"classifier.weight", "classifier.bias"}
    (notice,) = load(tmp_path, "O", "B-GENE", "I-GENE", kind="tokens").notices
    assert "head is for other labels (O, B-PER, I-PER) than this task's" in notice


def test_label_names_of_a_checkpoint_without_a_head_do_not_matter(tmp_path: Path) -> None:
    save("bert", tmp_path, id2label={0: "good", 1: "fair", 2: "bad"})
    loaded = load(tmp_path, "bad", "good")
    assert loaded.new_parameters == {"classifier.weight", "classifier.bias"}
    assert loaded.notices == ["new, not from the checkpoint: classifier.bias, classifier.weight"]
    assert logits(loaded.model).shape == (2, 2)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_new_row_is_drawn_from_the_seed(family: str, tmp_path: Path) -> None:
    save(family, tmp_path, ["bad", "good"])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(logits(load(tmp_path, "bad", "good", "fair").model))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0][:, 2], drawn[2][:, 2])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_new_outputs_begin_with_their_prior_and_those_kept_with_their_own_bias(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "trained", ["bad", "good"])
    before = load(tmp_path / "trained", "bad", "good").model
    after = load(tmp_path / "trained", "good", "fair", "bad", "awful", prior=0.1).model
    bias, old = (model.get_submodule(output_layer(model, count)).bias for model, count in ((after, 4), (before, 2)))
    assert bias[[0, 2]].tolist() == old[[1, 0]].tolist()
    assert bias[[1, 3]].sigmoid().tolist() == pytest.approx([0.1, 0.1])
    turned = load(tmp_path / "trained", "good", "bad", prior=0.1).model
    assert turned.get_submodule(output_layer(turned, 2)).bias.tolist() == old[[1, 0]].tolist()


def test_a_prior_is_for_the_last_layer_and_not_for_another_that_is_as_wide(tmp_path: Path) -> None:
    labels = [f"label {number}" for number in range(16)]  # as many as the hidden layer is wide
    save("roberta", tmp_path)
    model = load(tmp_path, *labels, prior=0.1).model
    assert model.classifier.out_proj.bias.sigmoid().tolist() == pytest.approx([0.1] * 16)
    assert model.classifier.dense.bias.tolist() == [0.0] * 16


@pytest.mark.parametrize(
    ("outputs", "problem", "kept"), [(1, None, True), (1, "regression", True), (3, "regression", False)]
)
def test_numbers_go_on_from_numbers_only(outputs: int, problem: str | None, kept: bool, tmp_path: Path) -> None:
    save("bert", tmp_path, [f"LABEL_{index}" for index in range(outputs)])
    loaded = load(tmp_path, outputs=outputs, problem=problem)
    assert (loaded.new_parameters == frozenset()) is kept
    assert bool(loaded.notices) is not kept


def test_several_numbers_go_on_from_a_regression(tmp_path: Path) -> None:
    save("bert", tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"], problem_type="regression")
    assert load(tmp_path, outputs=3, problem="regression").new_parameters == frozenset()


def test_a_head_trained_for_another_kind_of_labels_is_kept_and_told(tmp_path: Path) -> None:
    save("bert", tmp_path, ["a", "b"], problem_type="multi_label_classification")
    loaded = load(tmp_path, "a", "b", problem="single_label_classification")
    assert loaded.new_parameters == frozenset()
    assert loaded.notices == [
        "the checkpoint's head was trained for multi_label_classification and goes on for single_label_classification"
    ]


def test_the_ends_of_an_answer_are_two_outputs_whatever_the_checkpoint_has_labels_for(tmp_path: Path) -> None:
    save("bert", tmp_path, ["a", "b", "c"])
    loaded = load(tmp_path, kind="spans")
    assert loaded.model.qa_outputs.weight.shape == (2, 16)
    assert loaded.new_parameters == {"qa_outputs.weight", "qa_outputs.bias"}
    assert any("not used" in notice and "classifier.bias, classifier.weight" in notice for notice in loaded.notices)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "modernbert"])
@pytest.mark.parametrize(
    "head",
    [
        Head("sequence", ("b", "a", "c"), problem="single_label_classification"),
        Head("sequence", ("b", "a"), problem="multi_label_classification"),
        Head("sequence", outputs=3, problem="regression"),
        Head("sequence", outputs=1),
        Head("tokens", ("O", "B-X", "I-X")),
        Head("spans"),
        Head("none"),
    ],
    ids=["single-label", "multi-label", "regression", "ranking", "tokens", "spans", "none"],
)
def test_a_models_own_folder_opens_unchanged_and_without_a_word(family: str, head: Head, tmp_path: Path) -> None:
    save(family, tmp_path / "base")
    settings = ModelSettings(dropout=0.2)
    first = load_model(tmp_path / "base", head, settings)
    first.model.save_pretrained(tmp_path / "own")
    again = load_model(tmp_path / "own", head, settings)
    assert (again.new_parameters, again.notices) == (frozenset(), [])
    weights = first.model.state_dict()
    assert weights.keys() == again.model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    again.model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "own" / "config.json").read_text()
