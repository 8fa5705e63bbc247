"""Finding and loading models: the right one, safely, with messages that help."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.models.heads import Head
from finetune.models.loading import (
    LoadedModel,
    ModelSettings,
    check_context,
    check_weights,
    context_length,
    find_model,
    load_model,
    load_tokenizer,
    weights_digest,
)
from finetune.recipe import ModelSection

LABELS = ("a", "b", "c")


def load_classifier(folder: Path, labels: tuple[str, ...] = LABELS, *, allow_code: bool = False) -> LoadedModel:
    return load_model(folder, Head("sequence", labels), ModelSettings(allow_code))


def test_a_local_folder_is_found(tiny_model: Path) -> None:
    assert find_model(ModelSection(id=str(tiny_model))) == tiny_model


def test_a_folder_inside_a_package_is_found_without_running_the_package(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "shipped_weights"
    shutil.copytree(tiny_model, package / "files" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('code of the package ran')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = find_model(ModelSection(id="package:shipped_weights/files/model"))
    assert found == (package / "files" / "model").resolve()
    assert "shipped_weights" not in sys.modules


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        (
            "package:no_such_package_here/model",
            "the module 'no_such_package_here', found none. Install the package that provides it",
        ),
        ("package:json/model", "has no folder 'model'"),
        ("package:json/../../etc", "has no folder"),
        ("/no/such/folder", "found nothing at /no/such/folder"),
        ("org/never-fetched", "neither in the local Hub cache"),
        ("not a model id!", "Hub id"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_message(model_id: str, message: str) -> None:
    with pytest.raises(FinetuneError, match="model.id|package") as caught:
        find_model(ModelSection(id=model_id))
    assert message in str(caught.value)


def test_a_hub_model_is_taken_from_the_local_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit = "a" * 40
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = find_model(ModelSection(id="org/tiny", revision=commit))
    assert folder.name == commit
    assert (folder / "model.safetensors").is_file()


def test_weights_with_another_hash_are_refused_and_both_hashes_named(tiny_model: Path) -> None:
    digest = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(tiny_model) == digest
    check_weights(tiny_model, digest)
    with pytest.raises(FinetuneError, match=digest) as caught:
        check_weights(tiny_model, "0" * 64)
    assert "0" * 64 in str(caught.value)


def pickled(tiny_model: Path, folder: Path) -> Path:
    shutil.copytree(tiny_model, folder)
    model = load_classifier(folder, LABELS).model
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickle_weights_need_permission(tiny_model: Path, tmp_path: Path) -> None:
    folder = pickled(tiny_model, tmp_path / "pickled")
    with pytest.raises(FinetuneError, match=r"pytorch_model\.bin.*can run code.*--allow-code"):
        find_model(ModelSection(id=str(folder)))
    with pytest.raises(FinetuneError, match="not loadable"):
        load_classifier(folder, LABELS)
    assert find_model(ModelSection(id=str(folder)), allow_code=True) == folder
    assert load_classifier(folder, LABELS, allow_code=True).new_parameters == frozenset()


def test_a_model_with_code_of_its_own_needs_permission(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise RuntimeError('code of the model ran')")
    with pytest.raises(FinetuneError, match="its own code.*--allow-code"):
        find_model(ModelSection(id=str(folder)))


def test_a_half_precision_checkpoint_is_trained_in_single_precision(tiny_model: Path, tmp_path: Path) -> None:
    load_classifier(tiny_model, LABELS).model.half().save_pretrained(tmp_path / "half")
    model = load_classifier(tmp_path / "half", LABELS).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_new_head_is_named_and_labels_are_kept_in_the_model(tiny_model: Path) -> None:
    loaded = load_classifier(tiny_model, LABELS)
    assert {"classifier.weight", "classifier.bias"} <= loaded.new_parameters
    assert any("classifier.weight" in notice for notice in loaded.notices)
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_head_for_other_labels_is_made_anew_with_a_notice(tiny_model: Path, tmp_path: Path) -> None:
    load_classifier(tiny_model, ("x", "y")).model.save_pretrained(tmp_path / "two")
    loaded = load_classifier(tmp_path / "two", LABELS)
    assert loaded.model.classifier.weight.shape[0] == 3
    assert any("does not fit" in notice for notice in loaded.notices)


def test_the_same_seed_draws_the_same_head(tiny_model: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_classifier(tiny_model, LABELS).model.classifier.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_of_another_architecture_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "other"
    shutil.copytree(tiny_model, folder)
    save_file({"something.else": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FinetuneError, match="another architecture"):
        load_classifier(folder, LABELS)


def test_rows_longer_than_the_model_reads_are_refused_before_training(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    check_context(tiny_model, tokenizer, 64)
    with pytest.raises(
        FinetuneError, match="at most 64 tokens.*found 65.*Set it to 64 or less; with model.overflow: window"
    ):
        check_context(tiny_model, tokenizer, 65)


def test_positions_that_lie_behind_the_padding_token_are_not_for_rows(tiny_model: Path, tmp_path: Path) -> None:
    for family, padding, longest in [("roberta", 1, 48), ("mpnet", 1, 48), ("roberta", 0, 49), ("bert", 0, 50)]:
        config = {"model_type": family, "max_position_embeddings": 50, "pad_token_id": padding}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert context_length(tmp_path, load_tokenizer(tiny_model)) == longest


def test_the_context_of_the_text_part_counts(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 40}}))
    assert context_length(tmp_path, load_tokenizer(tiny_model)) == 40


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"found no config\.json"):
        find_model(ModelSection(id=str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, r"found no config\.json, but tiny\.gguf of GGUF \(llama\.cpp\)"),
        ("model.safetensors", None, r"found no weights but tiny\.gguf of GGUF \(llama\.cpp\), which cannot be trained"),
        ("adapter_config.json", "{}", "found an adapter.*merge_and_unload"),
        ("config.json", '{"quantization_config": {"bits": 4}}', "found one that is quantized already"),
        ("config.json", "{", "expected a JSON file"),
    ],
)
def test_a_folder_in_another_form_says_what_to_take_instead(
    file: str, text: str | None, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(FinetuneError, match=message):
        find_model(ModelSection(id=str(folder)))


def test_a_folder_without_a_tokenizer_names_families_that_have_one(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        FinetuneError, match="expected a text model.*BERT.*family 'vit' whose tokenizer cannot be loaded"
    ):
        load_tokenizer(tmp_path)


def test_damaged_weights_are_one_clear_message(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(FinetuneError, match="not loadable as a text model"):
        load_classifier(tmp_path / "model")


def test_an_unknown_architecture_is_one_clear_message(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(FinetuneError, match="expected a configuration that transformers knows.*no-such-family"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_has_the_number_format_that_was_asked_for(dtype: str, tiny_model: Path, tmp_path: Path) -> None:
    load_classifier(tiny_model, ("c", "a")).model.half().save_pretrained(tmp_path / "half")
    loaded = load_model(tmp_path / "half", Head("sequence", LABELS), ModelSettings(dtype=dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_was_asked_for(attention: str, tiny_model: Path) -> None:
    loaded = load_model(tiny_model, Head("sequence", LABELS), ModelSettings(attention=attention))
    assert loaded.model.config._attn_implementation == attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_flash_attention_without_a_gpu_is_one_clear_message(tiny_model: Path) -> None:
    with pytest.raises(
        FinetuneError, match=r"model\.attention: flash_attention_2 needs an NVIDIA GPU.*every model has eager"
    ):
        load_model(tiny_model, Head("sequence", LABELS), ModelSettings(attention="flash_attention_2"))
