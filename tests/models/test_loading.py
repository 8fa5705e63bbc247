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
from finetune.models.loading import (
    check_context,
    check_weights,
    find_model,
    load_classifier,
    load_tokenizer,
    weights_digest,
)
from finetune.recipe import ModelSection

LABELS = ["a", "b", "c"]


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
    load_classifier(tiny_model, ["x", "y"]).model.save_pretrained(tmp_path / "two")
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
    with pytest.raises(FinetuneError, match="at most 64 tokens.*found 65"):
        check_context(tiny_model, tokenizer, 65)


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"found no config\.json"):
        find_model(ModelSection(id=str(tmp_path)))
