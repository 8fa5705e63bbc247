"""Models from scratch: the sizes that were asked for, under each family's names, and random weights from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune.errors import FinetuneError, RecipeError
from finetune.models.freezing import apply_freezing
from finetune.models.heads import Head
from finetune.models.loading import ModelSettings, load_model
from finetune.models.scratch import new_model, scratch_config, scratch_context
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.recipe import Scratch, load_recipe
from finetune.runtime import Runtime
from tests.conftest import RecipeMaker, make_rows, write_jsonl
from tests.tasks.written_world import BEGIN, END, PAD, VOCABULARY, word_tokenizer

CPU = Runtime("cpu", threads=1)
SIZES: dict[str, Any] = {"layers": 3, "hidden_size": 24, "heads": 4, "feed_forward_size": 40, "context": 20}
KINDS = {
    "bert": "masked", "roberta": "masked", "distilbert": "masked", "gpt2": "causal", "llama": "causal",
    "t5": "seq2seq", "bart": "seq2seq", "marian": "seq2seq", "pegasus": "seq2seq",
}  # fmt: skip
OWN_NAMES: dict[str, dict[str, int]] = {
    "bert": {
        "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 20,
    },
    "roberta": {  # its first position is behind the padding token's id
        "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 20 + PAD + 1,
    },
    "distilbert": {"n_layers": 3, "dim": 24, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 20},
    "gpt2": {"n_layer": 3, "n_embd": 24, "n_head": 4, "n_inner": 40, "n_positions": 20},
    "llama": {
        "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 6,
        "intermediate_size": 40, "max_position_embeddings": 20,
    },
    "t5": {"num_layers": 3, "num_decoder_layers": 3, "d_model": 24, "num_heads": 4, "d_ff": 40, "d_kv": 6},
}  # fmt: skip
for name in ("bart", "marian", "pegasus"):
    OWN_NAMES[name] = {
        "encoder_layers": 3, "decoder_layers": 3, "d_model": 24, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 20,
    }  # fmt: skip
every_family = pytest.mark.parametrize("family", OWN_NAMES)


def section(family: str, **settings: Any) -> Scratch:
    return Scratch(architecture=family, **{**SIZES, **settings})


def made(family: str, kind: str = "", *, seed: int = 0, head: Head | None = None, **settings: Any) -> Any:
    torch.manual_seed(seed)
    head = head or Head(kind or KINDS[family])  # type: ignore[arg-type]
    return new_model(section(family, **settings), word_tokenizer(), head, ModelSettings()).model


def read(model: Any, length: int) -> torch.Tensor:
    ids = torch.arange(length)[None] % (VOCABULARY - 4) + 4
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more)[0]  # type: ignore[no-any-return]


# --- sizes


@every_family
def test_sizes_arrive_under_the_familys_own_names(family: str) -> None:
    model = made(family)
    saved = model.config.to_dict()
    assert {name: saved[name] for name in OWN_NAMES[family]} == OWN_NAMES[family]
    assert saved["vocab_size"] == VOCABULARY == model.get_input_embeddings().weight.shape[0]
    assert read(model, 20).shape == (1, 20, VOCABULARY)


@every_family
def test_the_weights_have_the_sizes_of_the_recipe(family: str) -> None:
    """Settings that a family does not know would be kept in its configuration and change nothing."""
    shapes = [tuple(parameter.shape) for parameter in made(family).parameters()]
    feed_forward = sum(shape in {(24, 40), (40, 24)} for shape in shapes)
    stacks = 2 if KINDS[family] == "seq2seq" else 1
    assert feed_forward == stacks * 3 * (3 if family == "llama" else 2)
    other = [tuple(parameter.shape) for parameter in made(family, layers=2, feed_forward_size=None).parameters()]
    assert sum(shape in {(24, 96), (96, 24)} for shape in other) == feed_forward * 2 // 3, "four times the hidden size"


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "bart", "marian", "pegasus"])
def test_a_context_is_read_to_its_last_token_and_no_further(family: str) -> None:
    model = made(family)
    assert torch.isfinite(read(model, 20)).all()
    with pytest.raises((IndexError, RuntimeError)):
        read(model, 21)
    assert scratch_context(section(family)) == 20


def test_relative_positions_have_no_end() -> None:
    assert scratch_context(section("t5")) is None
    assert read(made("t5"), 50).shape == (1, 50, VOCABULARY)


@every_family
def test_special_tokens_are_the_tokenizers(family: str) -> None:
    config = made(family).config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (PAD, BEGIN, END)
    if KINDS[family] != "masked":
        generation = made(family).generation_config
        assert (generation.eos_token_id, generation.pad_token_id) == (END, PAD)
        assert generation.forced_eos_token_id is None, "the family's own would be another token here"
    if KINDS[family] == "seq2seq":
        assert config.decoder_start_token_id == made(family).generation_config.decoder_start_token_id == PAD


def test_the_notice_counts_the_parameters() -> None:
    torch.manual_seed(0)
    loaded = new_model(section("bert"), word_tokenizer(), Head("masked"), ModelSettings())
    hidden, inner, layers = 24, 40, 3
    embeddings = (VOCABULARY + 20 + 2) * hidden + 2 * hidden
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    head = hidden * hidden + hidden + 2 * hidden + VOCABULARY  # its weights are the embeddings'
    total = embeddings + layers * layer + head
    assert loaded.notices == [f"from scratch: bert with {total:,} random parameters"]
    assert loaded.new_parameters == frozenset()
    assert apply_freezing(loaded.model, "none", {}).total == total


# --- settings


def test_other_settings_go_by_the_familys_own_names() -> None:
    shared = made("llama", config={"num_key_value_heads": 2})
    assert shared.model.layers[0].self_attn.k_proj.weight.shape == (12, 24)
    assert made("t5", config={"feed_forward_proj": "gated-gelu"}).config.is_gated_act
    assert made("bert", initializer_range=0.3).config.initializer_range == 0.3
    assert made("bart", initializer_range=0.3).config.init_std == 0.3
    wide = made("bert", initializer_range=0.3).get_input_embeddings().weight[1:].detach().std()
    assert float(wide) == pytest.approx(0.3, rel=0.1)


def test_dropout_reaches_every_rate_and_the_rest_is_the_familys_own() -> None:
    assert made("bert", dropout=0.25).config.hidden_dropout_prob == 0.25
    assert {module.p for module in made("gpt2", dropout=0.25).modules() if isinstance(module, torch.nn.Dropout)} == {
        0.25
    }
    assert made("t5", dropout=0.0).config.dropout_rate == 0
    assert made("gpt2").config.resid_pdrop == transformers.GPT2Config().resid_pdrop


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama", "bart", "marian"])
def test_embeddings_are_tied_as_asked_for_and_otherwise_as_the_family_ties_them(family: str) -> None:
    sizes = {}
    for wanted in (True, False, None):
        model = made(family, tie_embeddings=wanted)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == (family != "llama" if wanted is None else wanted)
        sizes[wanted] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[False] - sizes[True] >= VOCABULARY * 24


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_a_family_that_always_ties_its_embeddings_cannot_have_them_apart(family: str) -> None:
    """Transformers takes the setting and goes on tying them."""
    assert made(family, "seq2seq", tie_embeddings=True).config.tie_word_embeddings
    with pytest.raises(FinetuneError, match="tie_embeddings"):
        made(family, "seq2seq", tie_embeddings=False)


# --- positions


def sinusoids(positions: int, size: int) -> np.ndarray[Any, Any]:
    """Return the table of Vaswani et al. (2017, section 3.5)."""
    table = np.zeros((positions, size))
    for position in range(positions):
        for pair in range(size // 2):
            angle = position / 10000 ** (2 * pair / size)
            table[position, 2 * pair], table[position, 2 * pair + 1] = np.sin(angle), np.cos(angle)
    return table


def test_sinusoidal_positions_are_the_formula_and_not_drawn() -> None:
    tables = [made("distilbert", seed=seed, positions="sinusoidal") for seed in (1, 2)]
    for model in tables:
        weight = model.distilbert.embeddings.position_embeddings.weight.detach().numpy()
        np.testing.assert_allclose(weight, sinusoids(20, 24), atol=1e-6)
    drawn = [made("distilbert", seed=seed, positions="learned") for seed in (1, 2)]
    one, two = (model.distilbert.embeddings.position_embeddings.weight for model in drawn)
    assert not torch.equal(one, two)


def test_sinusoidal_positions_are_not_learned() -> None:
    model = made("distilbert", positions="sinusoidal")
    apply_freezing(model, "none", {})
    name = "distilbert.embeddings.position_embeddings.weight"
    assert {key for key, parameter in model.named_parameters() if not parameter.requires_grad} == {name}
    learned = made("distilbert", positions="learned")
    assert apply_freezing(learned, "none", {}).trainable == apply_freezing(model, "none", {}).trainable + 20 * 24


@pytest.mark.parametrize(
    ("family", "positions"),
    [("bert", "learned"), ("llama", "rotary"), ("t5", "relative"), ("marian", "sinusoidal"), ("bart", "learned")],
)
def test_the_positions_that_a_family_has_may_be_named(family: str, positions: str) -> None:
    assert made(family, positions=positions).config == made(family).config


# --- the seed


@every_family
def test_the_same_seed_draws_the_same_weights(family: str) -> None:
    first, again, other = (dict(made(family, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(*(weights[next(iter(first))] for weights in (first, other)))


# --- heads


def test_a_head_has_the_tasks_labels_and_outputs() -> None:
    labelled = made("bert", head=Head("sequence", ("yes", "no", "maybe")))
    assert labelled.config.id2label == {0: "yes", 1: "no", 2: "maybe"}
    assert read(labelled, 5).shape == (1, 3)
    assert read(made("bert", head=Head("sequence", outputs=1, problem="regression")), 5).shape == (1, 1)
    begun = made("bert", head=Head("sequence", ("a", "b"), prior=0.2, problem="multi_label_classification"))
    assert torch.sigmoid(begun.classifier.bias).tolist() == pytest.approx([0.2, 0.2])


@every_family
def test_a_saved_model_comes_back_whole(family: str, tmp_path: Path) -> None:
    model = made(family)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, Head(KINDS[family]), ModelSettings())  # type: ignore[arg-type]
    assert not loaded.new_parameters
    torch.testing.assert_close(read(loaded.model, 9), read(model, 9))


# --- what cannot be made


@pytest.mark.parametrize(
    ("family", "kind", "settings", "message"),
    [
        ("brt", "masked", {}, r"expected a family that transformers knows.*found 'brt'. Did you mean bert"),
        ("bert", "masked", {"heads": 5}, "expected a hidden_size that its heads divide evenly, found 24 and 5 heads"),
        ("bert", "masked", {"positions": "rotary"}, r"\(bert has learned\), found rotary.*\(llama\)"),
        ("gpt2", "causal", {"positions": "sinusoidal"}, r"architecture with sinusoidal positions \(distilbert"),
        ("qwen2", "causal", {"positions": "learned"}, "qwen2 has its own"),
        ("bert", "masked", {"config": {"hidden_akt": "relu"}}, "has no 'hidden_akt'. Did you mean hidden_act"),
        ("bert", "masked", {"config": {"hidden_act": "nope"}}, "cannot make this model"),
        ("gpt2", "causal", {"config": {"n_embd": 64}}, "n_embd is said already by the settings of model.scratch"),
        ("gpt2", "causal", {"config": {"layer_norm_epsilon": "small"}}, "gpt2 cannot be made so"),
        ("blenderbot", "seq2seq", {}, "whose decoder is fed in a way of its own"),
        ("bert", "masked", {"config": {"vocab_size": 9}}, "vocab_size follows from the tokenizer"),
        ("bert", "causal", {}, "which reads in both directions"),
        ("gpt2", "seq2seq", {}, "expected an encoder that reads a text with a decoder"),
        ("t5", "masked", {}, "which has an encoder and a decoder"),
        ("t5", "seq2seq", {"initializer_range": 0.1}, "the family 't5' has none"),
        ("opt", "causal", {}, "calls it otherwise.*model.scratch.config"),
        ("mamba", "causal", {"feed_forward_size": None}, "model.scratch.heads: the family 'mamba' has none"),
    ],
)
def test_what_a_family_cannot_be_is_the_users_to_know(
    family: str, kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FinetuneError, match=message):
        made(family, kind, **settings)


def test_a_family_with_a_name_of_its_own_for_a_size_takes_it_from_config() -> None:
    shapes = [
        tuple(one.shape) for one in made("opt", "causal", feed_forward_size=None, config={"ffn_dim": 44}).parameters()
    ]
    assert shapes.count((44, 24)) == 3


def test_a_familys_fit_is_known_before_there_is_a_tokenizer() -> None:
    assert scratch_config(section("bert"), None, "masked").hidden_size == 24
    with pytest.raises(FinetuneError, match="which reads in both directions"):
        scratch_config(section("bert"), None, "causal")


# --- the recipe, and a run

BERT = {"architecture": "bert", "layers": 2, "hidden_size": 32, "heads": 2, "context": 32, "dropout": 0.0}
WORDPIECE = {"name": "wordpiece", "vocabulary": 220, "template": "bert", "min_frequency": 1}


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"model": {"id": ""}}, "model", "expected `id` .a pretrained model. or `scratch` .a new one., found neither"),
        (
            {"model": {"scratch": BERT, "sha256": "a" * 64}},
            "model",
            "`sha256` is for pretrained weights, and those of `scratch` are random; remove one",
        ),
        (
            {"model": {"scratch": BERT}, "freeze": {"name": "encoder"}},
            "freeze",
            "a model from scratch has nothing to keep as it is; remove it",
        ),
        (
            {"model": {"scratch": BERT, "id": ""}},
            "model.scratch",
            "a model from scratch needs a tokenizer: add `tokenizer`, or `model.id` to take that model's",
        ),
        ({"model": {"scratch": {**BERT, "layer": 2}}}, "model.scratch.layer", "unknown setting, did you mean layers"),
        ({"model": {"scratch": {"architecture": "bert"}}}, "model.scratch.layers", "this setting is required"),
        ({"model": {"scratch": {**BERT, "dropout": 1.0}}}, "model.scratch.dropout", "less than 1"),
    ],
)
def test_a_recipe_from_scratch_says_all_that_it_has_to(
    make_recipe: RecipeMaker, sections: dict[str, Any], place: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(make_recipe(**sections))
    assert f": {place}: " in str(raised.value)


def test_an_unknown_family_is_a_message_before_any_row_is_read(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(model={"id": "", "scratch": {**BERT, "architecture": "brt"}}, tokenizer=WORDPIECE)
    with pytest.raises(FinetuneError, match="found 'brt'"):
        Job(load_recipe(path), tmp_path / "out", CPU).run(asked=True)
    assert not (tmp_path / "out" / "data").exists()


def test_rows_longer_than_the_new_models_context_are_refused(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(model={"id": "", "scratch": {**BERT, "context": 16}}, tokenizer=WORDPIECE)
    with pytest.raises(FinetuneError, match="expected at most 16 tokens, the longest that this model reads; found 32"):
        Job(load_recipe(path), tmp_path / "out", CPU).data(asked=True)


def test_a_classifier_from_scratch_learns_with_the_tokenizer_that_prepare_trained(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    source = str(write_jsonl(tmp_path / "many.jsonl", make_rows(100)))
    path = make_recipe(
        data={"source": source},
        model={"id": "", "scratch": BERT},
        tokenizer=WORDPIECE,
        train={"epochs": 6, "learning_rate": 3e-3},
    )
    job = Job(load_recipe(path), tmp_path / "out", CPU)
    run = job.run(asked=True)
    report = job.report(run)
    assert report["model"] == "bert from scratch"
    assert report["metrics"]["accuracy"]["value"] > 0.8
    assert run.manifest["pretrained_sha256"] is None
    config = json.loads((run.model_folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 2, 32)
    assert set(config["label2id"]) == {"fruit", "tool", "weather"}
    model = transformers.AutoModel.from_pretrained(run.model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model_folder)
    assert len(tokenizer) == model.config.vocab_size <= 220
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(run.model_folder)
    assert sum(parameter.numel() for parameter in whole.parameters()) == run.manifest["parameters"]["total"]
    answers = list(Answering(run, CPU).texts(["the old hammer", "my red plum"]))
    assert [answer["label"] for answer in answers] == ["tool", "fruit"]
    again = Job(load_recipe(path), tmp_path / "out", CPU)
    again.report(again.run(asked=True))
    assert {stage.status for stage in again.stages} == {"skipped"}


def test_a_change_of_sizes_trains_anew_on_the_same_data(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    def job(**changes: Any) -> list[str]:
        scratch = {**BERT, "layers": 1, "hidden_size": 8, **changes}
        path = make_recipe(model={"id": "", "scratch": scratch}, tokenizer=WORDPIECE, train={"max_steps": 1})
        work = Job(load_recipe(path), tmp_path / "out", CPU)
        work.run(asked=True)
        return [stage.status for stage in work.stages]

    assert job() == ["done", "done"]
    assert job() == ["skipped", "skipped"]
    assert job(feed_forward_size=9) == ["skipped", "done"]


def test_a_new_model_may_read_with_a_pretrained_ones_tokenizer(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(model={"scratch": BERT}, train={"max_steps": 1})
    run = Job(load_recipe(path), tmp_path / "out", CPU).run(asked=True)
    config = json.loads((run.model_folder / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (32, 39)
    assert run.manifest["pretrained_sha256"] is None
