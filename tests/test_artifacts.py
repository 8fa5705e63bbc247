from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.artifacts import (
    FORMAT_VERSION,
    PreparedData,
    Run,
    as_os_error,
    building,
    feature_table,
    fingerprint,
    has_manifest,
    locked,
    partial_folder,
    publish,
    read_manifest,
    write_json,
    write_tensors,
    write_text,
)
from finetune.data.store import StreamWriter
from finetune.errors import FinetuneError
from tests.conftest import ROOT

COMPLETE = {
    "kind": "data", "labels": [], "roles": [], "features": [], "splits": {}, "limits": {}, "fingerprint": "f",
    "inputs": {},
}  # fmt: skip


def make_artifact(folder: Path, content: str, **manifest: object) -> Path:
    with building(folder) as partial:
        write_text(partial / "content.txt", content)
        publish(folder, {**COMPLETE, **manifest})
    return folder


def content(folder: Path) -> str:
    return (folder / "content.txt").read_text(encoding="utf-8")


def names(folder: Path) -> list[str]:
    """Return what is in a folder, locks left out."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# Files


def test_text_is_written_as_it_is_and_nothing_else_remains(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "é\nb\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\nb\r\n".encode()
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new " * 10_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert path.read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    assert names(tmp_path) == ["a.json"]


@pytest.fixture
def tiny_disk() -> Iterator[None]:
    """Let no file grow beyond 10,000 bytes: the nearest thing to a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("tiny_disk")
def test_a_disk_that_takes_no_more_leaves_the_old_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- its number says which
        write_text(tmp_path / "a.txt", "x" * 20_000)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.usefixtures("tiny_disk")
def test_a_disk_that_takes_no_more_leaves_the_old_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.arange(3)})
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- its number says which
        write_tensors(path, {"w": torch.zeros(20_000)})
    assert caught.value.errno == errno.EFBIG
    assert load_file(path)["w"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["a.safetensors"]


def test_views_of_one_tensor_can_be_written(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    whole = torch.arange(6).reshape(2, 3)
    write_tensors(tmp_path / "a.safetensors", {"whole": whole, "turned": whole.T})
    assert load_file(tmp_path / "a.safetensors")["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("I/O error: No space left on device (os error 28)", errno.ENOSPC),
        ("Error while serializing: Io(Os { code: 28, message: 'No space left on device' })", errno.ENOSPC),
        ("File too large (os error 27)", errno.EFBIG),
        ("Permission denied (os error 13)", errno.EACCES),
        ("Read-only file system (os error 30)", errno.EROFS),
        ("something else", errno.EIO),
        ("tensor of shape (28,)", errno.EIO),
    ],
)
def test_a_library_s_own_exception_becomes_the_os_error_in_it(tmp_path: Path, text: str, number: int) -> None:
    error = as_os_error(RuntimeError(text), tmp_path / "a")
    assert (error.errno, error.filename) == (number, str(tmp_path / "a"))


# Fingerprints


def test_the_fingerprint_of_given_values_never_changes() -> None:
    """If this fails, every artifact of every user becomes stale: raise FORMAT_VERSION and say so in the changelog."""
    assert FORMAT_VERSION == 3
    found = fingerprint({"b": [1, 2.5, None, True], "a": {"é": "x"}})
    assert found == "3ac541ec1b4828dd53ad9951a3bd613093b9936bb6ff939206f161139984471a"


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": 1.5}, {"a": None}, {"b": 1}, [["a", 1]]])
def test_other_values_have_another_fingerprint(other: object) -> None:
    assert fingerprint(other) != fingerprint({"a": 1})


# Folders


def test_an_artifact_is_there_only_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with building(folder) as partial:
        write_text(partial / "content.txt", "new")
        assert not folder.exists()
        publish(folder, {**COMPLETE, "rows": 3})
    manifest = read_manifest(folder, "data")
    assert manifest.pop("files").keys() == {"content.txt"}
    assert manifest == {**COMPLETE, "format_version": FORMAT_VERSION, "rows": 3}
    assert names(tmp_path) == ["data"]
    assert names(folder) == ["content.txt", "manifest.json"]


def test_the_old_artifact_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "data", "old")
    write_text(folder / "leftover.txt", "old")
    with building(folder) as partial:
        assert names(partial) == [], "a new one starts empty"
        write_text(partial / "content.txt", "new")
        assert content(folder) == "old"
        publish(folder, COMPLETE)
    assert content(folder) == "new"
    assert names(folder) == ["content.txt", "manifest.json"]
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_building_leaves_the_old_artifact_alone(tmp_path: Path, error: type[BaseException]) -> None:
    folder = make_artifact(tmp_path / "data", "old")
    with pytest.raises(error), building(folder) as partial:
        write_text(partial / "content.txt", "new")
        raise error
    assert content(folder) == "old"
    assert names(tmp_path) == ["data"]


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert not has_manifest(tmp_path / "data")
    with pytest.raises(FinetuneError, match=r"data: expected data \(a folder with a manifest\.json\), found none"):
        read_manifest(tmp_path / "data", "data")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"format_version": FORMAT_VERSION, "kind": "data"}, "expected run of format 3, found data of format 3"),
        ({"format_version": 99, "kind": "run"}, "expected run of format 3, found run of format 99"),
        ({"format_version": 1, "kind": "run"}, "expected run of format 3, found run of format 1"),
        ({"format_version": FORMAT_VERSION, "kind": "run", "format": "onnx"}, "damaged, lacks labels, limits, "),
        ({"kind": "run"}, "damaged; remove"),
        ([1], "damaged; remove"),
    ],
)
def test_a_manifest_of_another_kind_or_version_is_refused(tmp_path: Path, manifest: object, message: str) -> None:
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(FinetuneError, match=message):
        _ = Run(tmp_path).manifest


def test_a_manifest_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "manifest.json", '{"format_version": 1, "ki')
    with pytest.raises(FinetuneError, match=r"manifest\.json: damaged; remove .* and make it again"):
        read_manifest(tmp_path, "data")


# What a kill leaves


def leave(folder: Path, *, published: bool, old: bool, partial: str | None) -> None:
    """Lay down what a kill may leave: the artifact, the one it replaces, and a partial one, complete or not."""
    if published:
        make_artifact(folder, "before")
    if old:
        make_artifact(folder.with_name("other"), "before").rename(folder.with_name(f"{folder.name}.old"))
    if partial:
        write_text(partial_folder(folder) / "content.txt", "after")
    if partial == "complete":
        write_json(partial_folder(folder) / "manifest.json", {"format_version": FORMAT_VERSION, "kind": "data"})


@pytest.mark.parametrize(
    ("published", "old", "partial", "expected"),
    [
        pytest.param(True, False, "complete", "after", id="before-the-first-rename"),
        pytest.param(False, True, "complete", "after", id="between-the-renames"),
        pytest.param(True, True, None, "before", id="before-the-old-one-was-removed"),
        pytest.param(False, False, "complete", "after", id="the-first-artifact-just-before-its-rename"),
        pytest.param(False, True, "unfinished", "before", id="the-new-one-lost-its-manifest"),
        pytest.param(True, False, "unfinished", "before", id="while-building"),
    ],
)
def test_what_a_kill_left_behind_is_put_right(
    tmp_path: Path, published: bool, old: bool, partial: str | None, expected: str
) -> None:
    folder = tmp_path / "data"
    leave(folder, published=published, old=old, partial=partial)
    with locked(folder):
        assert content(folder) == expected
        assert has_manifest(folder)
    assert names(tmp_path) == (["data", "data.partial"] if partial == "unfinished" else ["data"])


def test_a_kill_while_the_first_artifact_grew_leaves_none(tmp_path: Path) -> None:
    leave(tmp_path / "data", published=False, old=False, partial="unfinished")
    with locked(tmp_path / "data"):
        assert not (tmp_path / "data").exists()


HOLD = """
import sys
from collections.abc import Iterator
from pathlib import Path
from finetune.artifacts import building
with building(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(FinetuneError, match=f"^{folder}: another finetune process is writing here"), locked(folder):
            pass
        with locked(tmp_path / "run"):  # another artifact beside it is free
            pass
        holder.send_signal(signal.SIGKILL)
    assert content(make_artifact(folder, "mine")) == "mine"


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), locked(tmp_path / "data"):
        raise ValueError("stop")
    assert content(make_artifact(tmp_path / "data", "after")) == "after"


# Splits


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    """Prepared data with one split of three rows, written in two batches."""
    import pyarrow as pa

    folder = tmp_path / "data"
    rows = pa.table(
        {
            "line": [2, 5, 9],
            "text": ["a b", "é", "d e f"],
            "label": ["x", "y", "x"],
            "input_ids": pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int32())),
            "label_id": pa.array([0, 1, 0], pa.int32()),
        }
    )
    with building(folder) as partial:
        with StreamWriter(partial / "train.arrow", rows.schema) as writer:
            for batch in rows.to_batches(max_chunksize=2):
                writer.write(batch)
        names = {"roles": ["text", "label"], "features": ["input_ids", "label_id"], "labels": ["x", "y"]}
        publish(folder, {**COMPLETE, **names, "splits": {"train": 3}})
    return PreparedData(folder)


def test_a_split_is_read_as_it_was_written(data: PreparedData) -> None:
    split = data.split("train")
    assert (len(split), split.lines, split.features.lengths) == (3, [2, 5, 9], [2, 1, 3])
    expected = [{"text": "a b", "label": "x"}, {"text": "é", "label": "y"}, {"text": "d e f", "label": "x"}]
    assert list(split.rows) == [split.rows[index] for index in range(3)] == expected
    assert split.features.row_ids.tolist() == [0, 1, 2]
    assert list(split.features) == [
        {"input_ids": [1, 2], "label_id": 0, "row": 0},
        {"input_ids": [3], "label_id": 1, "row": 1},
        {"input_ids": [4, 5, 6], "label_id": 0, "row": 2},
    ]
    assert split.features.scalars("label_id").tolist() == [0, 1, 0]


def test_windows_are_as_long_as_their_features_are_together() -> None:
    import pyarrow as pa

    lists = pa.list_(pa.list_(pa.int32()))
    columns = {
        "input_ids": pa.array([[[1, 2], [2, 3, 4]], [[5]], [[6], [7], [8, 9]]], lists),
        "label_ids": pa.array([[[1], [1, 1]], [[1, 2, 3, 4]], [[], [1], [1, 1, 1]]], lists),
    }
    features = feature_table(columns)
    assert features.lengths == features.lengths_of(("input_ids",)) == [2, 3, 1, 1, 1, 2]
    assert features.lengths_of(("label_ids",)) == [1, 2, 4, 0, 1, 3]
    assert features.lengths_of(("input_ids", "label_ids")) == [3, 5, 5, 1, 2, 5]
    assert features.lengths_of(("label_ids", "input_ids")) == [3, 5, 5, 1, 2, 5]


def test_lengths_of_a_split_in_several_pieces_are_in_its_order(data: PreparedData) -> None:
    assert data.split("train").features.lengths_of(("input_ids", "input_ids")) == [4, 2, 6]


def test_rows_and_features_are_sequences_from_both_ends(data: PreparedData) -> None:
    rows, features = data.split("train").rows, data.split("train").features
    assert features[-1] == features[2] == {"input_ids": [4, 5, 6], "label_id": 0, "row": 2}
    assert rows[-3] == rows[0] == {"text": "a b", "label": "x"}
    for sequence in (rows, features):
        for index in (3, -4):
            with pytest.raises(IndexError):
                sequence[index]


def test_windows_share_the_target_and_the_weight_of_their_row() -> None:
    import pyarrow as pa

    ids = pa.array([[[1, 2], [2, 3, 4]], [[5]], [[6], [7], [8, 9]]], pa.list_(pa.list_(pa.int32())))
    features = feature_table({"input_ids": ids, "label_id": pa.array([1, 0, 1], pa.int32())})
    assert (features.row_ids.tolist(), features.lengths) == ([0, 0, 1, 2, 2, 2], [2, 3, 1, 1, 1, 2])
    assert [features[1], features[2], features[-1]] == [
        {"input_ids": [2, 3, 4], "label_id": 1, "row": 0, "weight": 0.5},
        {"input_ids": [5], "label_id": 0, "row": 1, "weight": 1.0},
        {"input_ids": [8, 9], "label_id": 1, "row": 2, "weight": 1 / 3},
    ]
    assert features.scalars("label_id").tolist() == [1, 1, 0, 1, 1, 1]
    assert features.keys(None) is None
    assert features.keys("row").tolist() == [0, 0, 1, 2, 2, 2]
    assert features.keys("label_id").tolist() == [1, 1, 0, 1, 1, 1]


def test_an_unknown_split_is_refused_with_those_that_exist(data: PreparedData) -> None:
    with pytest.raises(FinetuneError, match="--split: expected one of train; found tset"):
        data.split("tset")


def test_a_split_that_changed_since_it_was_written_is_refused(data: PreparedData) -> None:
    path = data.folder / "train.arrow"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(FinetuneError, match=r"damaged \(train\.arrow has other content\); prepare again with --force"):
        data.split("train")


def test_the_manifest_file_is_json_with_the_format_version_first(data: PreparedData) -> None:
    manifest = json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))
    assert next(iter(manifest)) == "format_version"


def test_the_numbers_of_all_windows_come_one_after_another() -> None:
    import pyarrow as pa

    ids = pa.array([[[1, 2], [2, 3, 4]], [[5]]], pa.list_(pa.list_(pa.int32())))
    labels = pa.array([[[-100, 2], [-100, -100, 4]], [[5]]], pa.list_(pa.list_(pa.int32())))
    features = feature_table({"input_ids": ids, "label_ids": labels})
    assert features.values("label_ids").tolist() == [-100, 2, -100, -100, 4, 5]
    assert feature_table({"label_ids": labels.slice(1), "input_ids": ids.slice(1)}).values("label_ids").tolist() == [5]
