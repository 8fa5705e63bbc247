"""Freezing strategies on the layouts of several families."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from finetune.errors import FinetuneError
from finetune.models.freezing import apply_freezing, layout_of

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
FAMILIES: dict[str, Any] = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, intermediate_size=32)),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, intermediate_size=32)
    ),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32)
    ),
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2)
    ),
    "llama": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2)
    ),
    "deberta-v2": lambda: transformers.DebertaV2ForSequenceClassification(
        transformers.DebertaV2Config(**SIZES, intermediate_size=32)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_embeddings_three_layers_and_a_head(family: str) -> None:
    layout = layout_of(FAMILIES[family]())
    assert len(layout.layers) == 3
    assert all(layout.layers)
    assert layout.embeddings
    assert layout.head
    assert all("layer" not in name and "h.0" not in name for name in layout.embeddings)
    rooms = [*layout.embeddings, *(name for layer in layout.layers for name in layer), *layout.head]
    assert len(rooms) == len(set(rooms))


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_the_encoder_leaves_the_head_alone(family: str) -> None:
    model = FAMILIES[family]()
    freezing = apply_freezing(model, "encoder", {})
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(layout_of(model).head)
    assert freezing.eval_modules == (model.base_model_prefix,)
    assert 0 < freezing.trainable < freezing.total


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_freezes_the_embeddings_too(family: str) -> None:
    model = FAMILIES[family]()
    freezing = apply_freezing(model, "first-layers", {"count": 2})
    rows = {row.group: row for row in freezing.table}
    assert [rows[f"layer {index}"].trainable > 0 for index in range(3)] == [False, False, True]
    assert rows["embeddings"].trainable == 0
    assert rows["head"].trainable == rows["head"].parameters
    assert len([name for name in freezing.eval_modules if name.endswith((".0", ".1"))]) == 2


def test_parameters_that_the_checkpoint_did_not_bring_are_never_frozen_with_the_encoder() -> None:
    model = FAMILIES["bert"]()
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    freezing = apply_freezing(model, "encoder", {}, new_parameters=pooler)
    assert not pooler & freezing.frozen
    assert "bert" not in freezing.eval_modules


def test_the_table_counts_every_parameter_once() -> None:
    model = FAMILIES["bert"]()
    freezing = apply_freezing(model, "first-layers", {"count": 1})
    assert freezing.total == sum(parameter.numel() for parameter in model.parameters())
    assert freezing.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_first_rule_that_matches_holds() -> None:
    model = FAMILIES["bert"]()
    rules = [{"bert.encoder.layer.2.*": "trainable"}, {"bert.*": "frozen"}, {"*": "trainable"}]
    freezing = apply_freezing(model, "rules", {"rules": rules})
    assert "bert.encoder.layer.1.output.dense.weight" in freezing.frozen
    assert "bert.encoder.layer.2.output.dense.weight" not in freezing.frozen
    assert "classifier.weight" not in freezing.frozen


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"bert.*": "frozen"}], "2 are not covered, such as classifier.weight"),
        ([{"brt.*": "frozen"}, {"*": "trainable"}], "'brt.*' matches no parameter"),
        ([{"*": "trainable"}, {"bert.*": "frozen"}], "'bert.*' matches no parameter that is left"),
        ([{"*": "frozen"}], "at least one trainable parameter"),
    ],
)
def test_rules_that_do_not_do_what_they_say_are_refused(rules: list[dict[str, str]], message: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        apply_freezing(FAMILIES["bert"](), "rules", {"rules": rules})
    assert message in str(caught.value)


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(FinetuneError, match="at most 3, the model's layers; found 9"):
        apply_freezing(FAMILIES["bert"](), "first-layers", {"count": 9})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_alone_can_be_frozen(family: str) -> None:
    model = FAMILIES[family]()
    freezing = apply_freezing(model, "embeddings", {})
    assert freezing.frozen == frozenset(layout_of(model).embeddings)


def test_all_but_biases_leaves_them_and_the_head() -> None:
    model = FAMILIES["bert"]()
    apply_freezing(model, "all-but-biases", {})
    layout = layout_of(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in layout.parameters if name.endswith(".bias") or name in layout.head}
    with pytest.raises(FinetuneError, match="a model with biases"):
        apply_freezing(FAMILIES["llama"](), "all-but-biases", {})


def test_rules_give_rates_too() -> None:
    model = FAMILIES["bert"]()
    chosen = [{"classifier.*": 2}, {"*.layer.2.*": "trainable"}, {"*.layer.1.*": 0.5}, {"*": "frozen"}]
    freezing = apply_freezing(model, "rules", {"rules": chosen})
    rates = {name: freezing.rates.get(name, 1.0) for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] if "layer" not in name else name.split("layer.")[1][0]: rate
            for name, rate in rates.items()} == {"classifier": 2.0, "2": 1.0, "1": 0.5}  # fmt: skip
    rows = {row.group: row.rates for row in freezing.table}
    assert (rows["layer 1"], rows["layer 2"], rows["layer 0"]) == ((0.5, 0.5), (1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_layer_decay_each_layer_learns_more_slowly_than_the_one_above(family: str) -> None:
    model = FAMILIES[family]()
    freezing = apply_freezing(model, "none", {}, layer_decay=0.5)
    layout = layout_of(model)
    assert {freezing.rates[name] for name in layout.embeddings} == {0.5**4}
    for index, layer in enumerate(layout.layers):
        assert {freezing.rates[name] for name in layer} == {0.5 ** (3 - index)}
    assert not set(layout.head) & set(freezing.rates)


def test_what_is_frozen_has_no_rate() -> None:
    freezing = apply_freezing(FAMILIES["bert"](), "first-layers", {"count": 2}, layer_decay=0.5)
    assert not freezing.frozen & set(freezing.rates)
    assert set(freezing.rates.values()) == {0.5}


def test_a_layer_decay_over_two_stacks_is_refused() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32)
    with pytest.raises(FinetuneError, match="one stack of layers"):
        apply_freezing(transformers.T5ForConditionalGeneration(config), "none", {}, layer_decay=0.9)
