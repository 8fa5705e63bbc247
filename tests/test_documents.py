from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from finetune.documents import override, parse_value, plain_scalar, read_document
from finetune.errors import FinetuneError, RecipeError


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """Return the message with which a file is refused, its folder left out."""
    with pytest.raises(FinetuneError) as caught:
        read_document(path)
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = plain_scalar(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["no", "No", "on", "off", "yes", "y", "2026-01-01", "2026-01-01T10:00:00Z", "12:30", "1_000", "0b1", "e5", "."],
)
def test_what_only_yaml_1_1_converts_is_text(text: str) -> None:
    assert plain_scalar(text) == text


def test_quoted_numbers_and_words_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a: '3'\nb: \"true\"\nc: '!x'\n")
    assert read_document(path).values == {"a": "3", "b": "true", "c": "!x"}


def test_keys_are_always_text(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "1: a\nno: b\nnull: c\n")).values == {"1": "a", "no": "b", "null": "c"}


def test_every_value_knows_the_line_that_wrote_it(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntrain:\n  epochs: 2\n\n  betas:\n    - 1\n    - 2\n")
    document = read_document(path)
    assert document.origin(("train", "epochs")) == f"{path}:3"
    assert document.origin(("train", "betas", 1)) == f"{path}:7"


def test_a_missing_setting_is_placed_at_its_nearest_parent(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ntrain:\n  epochs: 2\n")
    document = read_document(path)
    assert document.origin(("train", "schedule", "name")) == f"{path}:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "recipe.yaml:3: a: written twice; keep one of the two"),
        ("t:\n  b: 1\n  b: 2\n", "recipe.yaml:3: t.b: written twice; keep one of the two"),
        ("a: !!python/object/apply:os.system [ls]\n", "recipe.yaml:1: a: tags such as"),
        ("a: 1\nb: !secret x\n", "recipe.yaml:2: b: tags such as !secret are not allowed"),
        ("a: !!str 1\n", "recipe.yaml:1: a: tags such as"),
        ("a: &x [1]\nb: &y [*x, *x]\n", "recipe.yaml:2: b[0]: an alias inside an anchored value is not allowed"),
        ("a: &a\n  b: *a\n", "recipe.yaml:2: a.b: an alias inside an anchored value is not allowed"),
        ("a: &x {k: 1}\nb:\n  <<: *x\n", "recipe.yaml:3: b: merge keys (<<) are not YAML 1.2; use `extends`"),
        ("? [a, b]\n: 1\n", "recipe.yaml:1: expected a plain name as key"),
        ("- 1\n", "recipe.yaml:1: expected a mapping of settings, found [1]"),
        ("text\n", "recipe.yaml:1: expected a mapping of settings, found 'text'"),
        ("", "recipe.yaml: expected a recipe (a YAML mapping), found an empty file"),
        ("# nothing\n", "recipe.yaml: expected a recipe (a YAML mapping), found an empty file"),
        ("name: x\na: [1\nb: 2\n", "recipe.yaml:3: not valid YAML: while parsing a flow sequence"),
        ("\ta: 1\n", "recipe.yaml:1: not valid YAML:"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: not valid YAML: expected a single document"),
        ("a: *nowhere\n", "recipe.yaml:1: not valid YAML: found undefined alias"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper than 20 levels"),
        ("a: " + "[" * 50_000, "recipe.yaml: not valid YAML:"),
        ("a: 1\nb: " + "9" * 5000, "recipe.yaml:2: b: "),
    ],
)
def test_what_a_recipe_may_not_hold_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


def test_problems_of_the_text_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\na: 2\nb: !x 1\nc:\n  <<: {d: 1}\n")
    with pytest.raises(RecipeError) as caught:
        read_document(path)
    assert [problem.path for problem in caught.value.problems] == ["a", "b", "c"]


def test_an_alias_of_a_plain_anchor_is_its_value(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a: &x [1, 2]\nb: *x\n")).values == {"a": [1, 2], "b": [1, 2]}


def test_many_aliases_of_one_large_anchor_are_refused_as_well(tmp_path: Path) -> None:
    large = "[" + "1," * 400 + "1]"
    path = write(tmp_path, f"a: &x {large}\nb: [{'*x, ' * 1000}*x]\n")  # 6 kB that stand for 400,000 values
    with pytest.raises(FinetuneError):
        read_document(path)


def test_a_missing_recipe_is_reported_with_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path, "name: x\n", "quickstart.yaml")
    assert refusal(tmp_path / "quikstart.yaml") == "quikstart.yaml: no such recipe, did you mean quickstart.yaml?"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    assert refusal(tmp_path / "recipes") == "recipes: expected a recipe file, found a folder"


def test_other_bytes_than_utf_8_are_refused_with_their_position(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert refusal(path) == "recipe.yaml: expected UTF-8 text, found other bytes at position 9"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_document(path).values == {"name": "x"}


def test_a_file_beyond_the_size_limit_is_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\n" + "#" * 1_000_000)
    assert refusal(path) == "recipe.yaml: expected a recipe of at most 1000000 bytes, found 1000005"


def extended(folder: Path, base: str, child: str) -> dict[str, Any]:
    write(folder, base, "base.yaml")
    return read_document(write(folder, f"extends: base.yaml\n{child}", "child.yaml")).values


@pytest.mark.parametrize(
    ("base", "child", "merged"),
    [
        ("t: {a: 1, b: 2}", "t: {b: 3, c: 4}", {"t": {"a": 1, "b": 3, "c": 4}}),
        ("t: {u: {a: 1}, v: 2}", "t: {u: {b: 2}}", {"t": {"u": {"a": 1, "b": 2}, "v": 2}}),
        ("l: [1, 2, 3]", "l: [4]", {"l": [4]}),
        ("p: {name: x, a: 1}", "p: {name: y, b: 2}", {"p": {"name": "y", "b": 2}}),
        ("p: {name: x, a: 1}", "p: {name: x, b: 2}", {"p": {"name": "x", "a": 1, "b": 2}}),
        ("p: {name: x, a: 1}", "p: {b: 2}", {"p": {"name": "x", "a": 1, "b": 2}}),
        ("p: {name: x, a: 1}", "p: y", {"p": "y"}),
        ("p: x", "p: {b: 2}", {"p": {"name": "x", "b": 2}}),
        ("p: x", "p: {name: y, b: 2}", {"p": {"name": "y", "b": 2}}),
        ("p: {a: 1}", "p: null", {"p": None}),
    ],
)
def test_extends_merges_mappings_and_replaces_lists_and_parts_of_another_name(
    tmp_path: Path, base: str, child: str, merged: dict[str, Any]
) -> None:
    assert extended(tmp_path, base, child) == merged


def test_a_value_keeps_the_file_and_line_that_wrote_it_through_extends(tmp_path: Path) -> None:
    base = write(tmp_path, "t:\n  a: 1\n  b: 2\np: {name: x, a: 1}\n", "base.yaml")
    child = write(tmp_path, "extends: base.yaml\nt:\n  b: 3\np: {name: y}\n", "child.yaml")
    document = read_document(child)
    assert document.origin(("t", "a")) == f"{base}:2"
    assert document.origin(("t", "b")) == f"{child}:3"
    assert document.origin(("p", "a")) == f"{child}:4", "the option went with the part that it belonged to"


def test_extends_reaches_over_several_files(tmp_path: Path) -> None:
    write(tmp_path, "a: 1\nb: 1\nc: 1\n", "one.yaml")
    write(tmp_path, "extends: one.yaml\nb: 2\nc: 2\n", "two.yaml")
    three = write(tmp_path, "extends: two.yaml\nc: 3\n", "three.yaml")
    assert read_document(three).values == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("second", ["extends: one.yaml\n", "extends: ../{folder}/one.yaml\n"])
def test_a_circle_of_extends_is_refused_and_shown(tmp_path: Path, second: str) -> None:
    write(tmp_path, second.format(folder=tmp_path.name), "two.yaml")
    message = refusal(write(tmp_path, "extends: two.yaml\n", "one.yaml"))
    assert message.endswith("recipes extend each other in a circle: one.yaml -> two.yaml -> one.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [("nothing.yaml", "recipe.yaml:2: extends: no such file: nothing.yaml"), ("[a]", "expected the path of a recipe")],
)
def test_extends_that_names_no_recipe_is_refused(tmp_path: Path, value: str, message: str) -> None:
    assert message in refusal(write(tmp_path, f"name: x\nextends: {value}\n"))


def test_paths_belong_to_the_folder_of_the_file_that_wrote_them(tmp_path: Path) -> None:
    write(tmp_path, "data: {source: rows.jsonl}\nmodel: {id: ./model}\n", "base/base.yaml")
    child = write(tmp_path, "extends: ../base/base.yaml\nmodel: {id: ../mine}\n", "child/child.yaml")
    assert read_document(child).values == {
        "data": {"source": str(tmp_path / "base" / "rows.jsonl")},
        "model": {"id": str(tmp_path / "mine")},
    }


@pytest.mark.parametrize("model", ["bert-base-uncased", "org/model", "package:name/folder"])
def test_ids_of_the_hub_and_of_packages_are_no_paths(tmp_path: Path, model: str) -> None:
    assert read_document(write(tmp_path, f"model: {{id: '{model}'}}\n")).values == {"model": {"id": model}}


def overridden(folder: Path, text: str, *assignments: str) -> dict[str, Any]:
    return override(read_document(write(folder, text)), list(assignments)).values


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    found = overridden(tmp_path, "t: {a: 1, b: 2}\n", "t.a=2e-5", "t.c=[x, no]", "seed=1", "seed=2", "d.e.f=")
    assert found == {"t": {"a": 2e-5, "b": 2, "c": ["x", "no"]}, "seed": 2, "d": {"e": {"f": None}}}


def test_overrides_leave_the_document_as_it_was(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "t: {a: 1}\n"))
    override(document, ["t.a=2"])
    assert document.values == {"t": {"a": 1}}


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert overridden(tmp_path, "a: 1\n", "g.accuracy='>= 0.5'") == {"a": 1, "g": {"accuracy": ">= 0.5"}}


def test_paths_in_overrides_belong_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = overridden(tmp_path, "data: {source: rows.jsonl}\n", "data.source=other.jsonl", "model.id=../model")
    assert found == {
        "data": {"source": str(tmp_path / "here" / "other.jsonl")},
        "model": {"id": str(tmp_path / "model")},
    }


def test_malformed_overrides_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        overridden(tmp_path, "a: 1\n", "nothing", "a..b=1", "=3")
    assert [problem.where for problem in caught.value.problems] == ["--set nothing", "--set a..b=1", "--set =3"]


def test_an_override_that_is_no_yaml_names_itself(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"^--set metrics=\[accuracy.*not valid YAML"):
        overridden(tmp_path, "a: 1\n", "metrics=[accuracy")


def test_an_override_may_hold_no_tags_either() -> None:
    with pytest.raises(RecipeError, match="tags such as"):
        parse_value("!!python/name:os.system x", "--set a=...")
