"""Augmentation by models: `contextual` and `back-translation`, on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.augmentation import Augmentation
from finetune.data.rows import Column
from finetune.errors import FinetuneError
from finetune.registry import augmenters

TEXT = {"text": Column("text")}
TOKENS = {"tokens": Column("tokens"), "tags": Column("tags")}
VOCABULARY = ["the", "cat", "dog", "saw", "an", "old", "new", "house", "not", "n", "##ew", "5", ".", "Paris"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(folder: Path, kind: str) -> int:
    """Save a tokenizer over the words above, of word pieces or of whole words with an end mark; return its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *VOCABULARY])}
    model = models.WordPiece(vocabulary, unk_token="[UNK]") if kind == "bert" else models.WordLevel(vocabulary, "[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    single = "[CLS] $A [SEP]" if kind == "bert" else "$A [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        eos_token="[SEP]", mask_token="[MASK]" if kind == "bert" else None, model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    return len(vocabulary)


def save_masked_model(folder: Path, *, head: bool = True) -> Path:
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel

    size = save_tokenizer(folder, "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    (BertForMaskedLM if head else BertModel)(config).save_pretrained(folder)
    return folder


def save_translator(folder: Path, seed: int, *, ends_after: int | None = 6) -> Path:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    size = save_tokenizer(folder, "t5")
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=3,
        decoder_start_token_id=0, n_positions=32, initializer_factor=20.0, tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if ends_after is not None:
        model.generation_config.exponential_decay_length_penalty = (ends_after, 100.0)
    model.generation_config.suppress_tokens = [0, 1, 2, 4]
    model.generation_config.num_beams = 4  # what the folder asks for does not count
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_masked_model(tmp_path_factory.mktemp("masked")))


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("translators")
    return str(save_translator(root / "there", 1)), str(save_translator(root / "back", 2))


def build(name: str, columns: dict[str, Column] = TEXT, **options: Any) -> Augmentation:
    return Augmentation([(name, augmenters.get(name).options(**options).model_dump())], columns, seed=1)


def results(augmentation: Augmentation, text: str, count: int = 40) -> set[str]:
    """Return all texts that copies of a row get; the text itself where nothing changes it."""
    found = (augmentation.augment({"text": text}, 0, copy) for copy in range(count))
    return {text if augmented is None else augmented.values["text"] for augmented in found}


def admissible(words: Sequence[str], text: str, old: str) -> set[str]:
    return {text.replace(old, word) for word in words if word != old}


def test_contextual_puts_whole_words_in_the_place_and_never_the_word_itself(masked_model: str) -> None:
    whole = ["the", "cat", "dog", "saw", "an", "old", "new", "house", "n", "Paris"]  # no part, number, mark, negation
    found = results(build("contextual", model=masked_model, top_k=100), "(cat) 5 IBM.", 200)
    assert found <= admissible(whole, "(cat) 5 IBM.", "cat")
    assert len(found) > 3


def test_contextual_draws_from_the_likeliest_words(masked_model: str) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(masked_model)
    model = AutoModelForMaskedLM.from_pretrained(masked_model).eval()
    batch = tokenizer("the old [MASK] .", return_tensors="pt")
    with torch.no_grad():
        ranked = model(**batch).logits[0, 3].argsort(descending=True).tolist()
    words = [word for word in tokenizer.convert_ids_to_tokens(ranked) if word.isalpha() and word not in ("not", "dog")]
    for top_k in (1, 2):
        found = results(build("contextual", model=masked_model, top_k=top_k), "the old dog.", 120)
        new = {text.split()[2].rstrip(".") for text in found if text.startswith("the old ")} - {"dog"}
        assert new == set(words[:top_k])


def test_contextual_keeps_the_case_and_reads_long_texts_around_the_word(masked_model: str) -> None:
    text = " ".join(["5"] * 60 + ["Cat"] + ["5"] * 60)
    # the model reads 32 tokens and the window has more: without its mask in sight a word stays
    assert results(build("contextual", model=masked_model), text, 2) == {text}
    found = results(build("contextual", model=masked_model), "5 5 5 Cat 5", 10)
    assert all(text.split()[3][0].isupper() for text in found)
    assert "5 5 5 Cat 5" not in found


@given(
    kinds=st.lists(st.tuples(st.sampled_from(["", "A", "B"]), st.integers(1, 3)), min_size=1, max_size=5),
    data=st.data(),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_contextual_keeps_the_tags_of_tokens(
    masked_model: str, kinds: list[tuple[str, int]], data: st.DataObject
) -> None:
    tags = [
        tag for kind, size in kinds for tag in ([f"B-{kind}", *[f"I-{kind}"] * (size - 1)] if kind else ["O"] * size)
    ]
    tokens = data.draw(st.lists(st.sampled_from(VOCABULARY), min_size=len(tags), max_size=len(tags)))
    augmented = build("contextual", TOKENS, model=masked_model, rate=0.7).augment(
        {"tokens": tokens, "tags": tags}, 0, 0
    )
    if augmented is not None:
        assert augmented.values["tags"] == tags
        assert len(augmented.values["tokens"]) == len(tokens)
        assert augmented.values["tokens"] != tokens


def test_a_model_that_is_no_masked_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="found nothing at"):
        results(build("contextual", model=str(tmp_path / "none")), "the cat")
    headless = save_masked_model(tmp_path / "headless", head=False)
    with pytest.raises(FinetuneError, match=r"expected the weights of AutoModelForMaskedLM.* without cls\."):
        results(build("contextual", model=str(headless)), "the cat")
    translator = save_translator(tmp_path / "translator", 1)
    with pytest.raises(FinetuneError, match="not loadable as AutoModelForMaskedLM"):
        results(build("contextual", model=str(translator)), "the cat")


def test_pickled_weights_and_own_code_are_refused(tmp_path: Path) -> None:
    import torch

    pickled = save_masked_model(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(FinetuneError, match="only pickle files"):
        results(build("contextual", model=str(pickled)), "the cat")
    coded = save_masked_model(tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(FinetuneError, match="its own code"):
        results(build("contextual", model=str(coded)), "the cat")


def test_back_translation_is_the_second_model_on_what_the_first_one_says(translators: tuple[str, str]) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    text = "the old cat saw an house."
    expected = text
    for folder in translators:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        batch = tokenizer(expected, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=256)
        expected = tokenizer.decode(tokens[0], skip_special_tokens=True)
    there, back = translators
    augmentation = build("back-translation", there=there, back=back)
    assert results(augmentation, text, 2) == {expected}
    assert expected != text
    augmented = augmentation.augment({"text": f"{text}\n\n{text}"}, 0, 0)
    assert augmented is not None
    assert augmented.values["text"] == f"{expected}\n\n{expected}"
    assert augmented.operation == "back-translation"


def test_the_prefix_reaches_the_model(translators: tuple[str, str]) -> None:
    there, back = translators
    whole = results(build("back-translation", there=there, back=back), "the old cat saw an house.", 1)
    told = results(build("back-translation", there=there, back=back, there_prefix="the old cat saw an "), "house.", 1)
    assert told == whole
    assert results(build("back-translation", there=there, back=back), "house.", 1) != whole


def test_a_text_that_a_model_would_cut_stays_as_it_is(tmp_path: Path, translators: tuple[str, str]) -> None:
    there, back = translators
    long = " ".join(["cat"] * 32)
    assert results(build("back-translation", there=there, back=back), long, 1) == {long}
    endless = str(save_translator(tmp_path / "endless", 1, ends_after=None))
    assert results(build("back-translation", there=endless, back=back, max_tokens=8), "the cat", 1) == {"the cat"}
    assert results(build("back-translation", there=there, back=back, max_tokens=3), "the cat", 1) == {"the cat"}
    assert results(build("back-translation", there=there, back=back), " \n ", 1) == {" \n "}
