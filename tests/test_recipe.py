from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune import registry
from finetune.errors import RecipeError
from finetune.recipe import Gate, Part, Recipe, load_recipe
from tests.conftest import ROOT

BASE = """\
name: small
task: text-classification
data:
  source: rows.jsonl
model:
  id: ./model
"""

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads the base above with lines put behind it (from line 7 on) and overrides."""

    def load_text(lines: str = "", *overrides: str, base: str = BASE, **options: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(base + textwrap.dedent(lines), encoding="utf-8")
        return load_recipe(path, overrides, **options)

    return load_text


@pytest.fixture
def problems(load: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the problems of such a recipe as text, its folder left out."""

    def refused(*arguments: Any, **options: Any) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(*arguments, **options)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return refused


Problems = Callable[..., list[str]]


def test_five_mistakes_in_one_recipe_are_five_problems(problems: Problems) -> None:
    found = problems(
        """\
        train:
          learning_rte: 1e-5
          epochs: 0
        metrics: [acuracy]
        freeze: {name: encodr}
        sed: 3
        """
    )
    assert sorted(found) == [
        "recipe.yaml:10: metrics[0]: unknown metric 'acuracy', did you mean accuracy?",
        "recipe.yaml:11: freeze: unknown freezing strategy 'encodr', did you mean encoder?",
        "recipe.yaml:12: sed: unknown setting, did you mean seed?",
        "recipe.yaml:8: train.learning_rte: unknown setting, did you mean learning_rate?",
        "recipe.yaml:9: train.epochs: expected greater than or equal to 1, found 0",
    ]


def test_the_message_counts_the_problems_and_exits_2(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        load("sed: 3\nmetrcs: []\n")
    assert str(caught.value).splitlines()[0] == "2 problems in the recipe:"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("task: text-clasification", "task: unknown task 'text-clasification', did you mean text-classification?"),
        ("quantize: onnx-int4", "quantize: unknown quantization backend 'onnx-int4', did you mean onnx-int8?"),
        ("train: {schedule: cosin}", "train.schedule: unknown schedule 'cosin', did you mean cosine?"),
        ("train: {optimizer: adamww}", "train.optimizer: unknown optimizer 'adamww', did you mean adamw?"),
        (
            "train: {early_stopping: {metric: f1-macr}}",
            "train.early_stopping.metric: unknown metric 'f1-macr', did you mean f1-macro?",
        ),
        (
            "train: {early_stopping: {patince: 1}}",
            "train.early_stopping.patince: unknown setting, did you mean patience?",
        ),
    ],
)
def test_unknown_names_come_with_the_nearest_one(problems: Problems, lines: str, problem: str) -> None:
    base = BASE.replace("task: text-classification\n", "") if lines.startswith("task") else BASE
    assert problems(lines, base=base) == [f"recipe.yaml:{6 if base != BASE else 7}: {problem}"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            "freeze:\n  name: first-layers\n  count: 1\n  cuont: 1",
            "10: freeze.cuont: unknown setting, did you mean count?",
        ),
        (
            "train:\n  schedule:\n    name: cosine\n    warmup_ration: 0.1",
            "10: train.schedule.warmup_ration: unknown setting, did you mean warmup_ratio?",
        ),
        (
            "quantize:\n  name: onnx-int8\n  per_chanel: true",
            "9: quantize.per_chanel: unknown setting, did you mean per_channel?",
        ),
        ("quantize:\n  name: onnx-int8\n  opset: 30", "9: quantize.opset: expected less than or equal to 20, found 30"),
        (
            "freeze:\n  name: rules\n  rules:\n    - '*': frozn",
            "10: freeze.rules[0].*: expected trainable, frozen, or a factor above 0, found 'frozn'",
        ),
        ("freeze: first-layers", "7: freeze.count: expected a value, found nothing; this setting is required"),
    ],
)
def test_options_of_parts_are_checked_with_line_path_and_nearest_name(
    problems: Problems, lines: str, problem: str
) -> None:
    assert problems(lines) == [f"recipe.yaml:{problem}"]


def test_every_part_in_a_list_is_checked(problems: Problems) -> None:
    base = BASE.replace(
        "model:",
        "  clean:\n    - whitespce\n    - {name: html, keep_lnks: true}\n    - {keep_links: true}\n    - 5\n"
        "  split: {name: stratified, tran: 0.6}\nmodel:",
    )
    assert sorted(problems(base=base)) == [
        "recipe.yaml:10: data.split.tran: unknown setting, did you mean train?",
        "recipe.yaml:6: data.clean[0]: unknown cleaner 'whitespce', did you mean whitespace?",
        "recipe.yaml:7: data.clean[1].keep_lnks: unknown setting, did you mean keep_links?",
        "recipe.yaml:8: data.clean[2]: expected the name of a cleaner or a mapping with `name`, "
        "found {'keep_links': True}",
        "recipe.yaml:9: data.clean[3]: expected the name of a cleaner or a mapping with `name`, found 5",
    ]


def test_what_is_required_and_missing_is_said(problems: Problems) -> None:
    assert problems(base="name: x\ntask: text-classification\ndata: {clean: []}\n") == [
        "recipe.yaml:1: model: expected a value, found nothing; this setting is required",
        "recipe.yaml:3: data.source: expected a value, found nothing; this setting is required",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs: 0", "epochs: expected greater than or equal to 1, found 0"),
        ("epochs: 2.0", "epochs: expected a valid integer, found 2.0"),
        ("epochs: '2'", "epochs: expected a valid integer, found '2'"),
        ("epochs: true", "epochs: expected a valid integer, found True"),
        ("batch_size: -1", "batch_size: expected greater than or equal to 1, found -1"),
        ("learning_rate: -1e-5", "learning_rate: expected greater than 0, found -1e-05"),
        ("learning_rate: 0", "learning_rate: expected greater than 0, found 0"),
        ("learning_rate: .nan", "learning_rate: expected less than 10, found nan"),
        ("learning_rate: .inf", "learning_rate: expected less than 10, found inf"),
        ("learning_rate: '2e-5'", "learning_rate: expected a valid number, found '2e-5'"),
        ("learning_rate: no", "learning_rate: expected a valid number, found 'no'"),
        ("gradient_accumulation: 0", "gradient_accumulation: expected greater than or equal to 1, found 0"),
        ("max_gradient_norm: 0", "max_gradient_norm: expected greater than 0, found 0"),
        ("max_steps: 0", "max_steps: expected greater than or equal to 1, found 0"),
        ("precision: fp16", "precision: expected 'auto', 'fp32', 'tf32' or 'bf16', found 'fp16'"),
        ("device: gpu", "device: expected auto, cpu, cuda, cuda:N or mps, found 'gpu'"),
        ("bucket_by_length: yes", "bucket_by_length: expected a valid boolean, found 'yes'"),
        ("early_stopping: 3", "early_stopping: expected a mapping of settings, found 3"),
    ],
)
def test_settings_out_of_bounds_or_of_another_type_are_refused(problems: Problems, setting: str, message: str) -> None:
    assert problems(f"train:\n  {setting}\n") == [f"recipe.yaml:8: train.{message}"]


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ("seed: -1", "seed"),
        ("seed: 4294967296", "seed"),
        ("train: 3", "train"),
        ("metrics: accuracy", "metrics"),
        ("metrics: [3]", "metrics[0]"),
    ],
)
def test_sections_and_lists_have_their_form(problems: Problems, lines: str, path: str) -> None:
    assert [problem.split(": ")[1] for problem in problems(lines)] == [path]


def test_a_list_that_is_expected_is_called_a_list(problems: Problems) -> None:
    assert problems("metrics: accuracy\n") == ["recipe.yaml:7: metrics: expected a list, found 'accuracy'"]


@pytest.mark.parametrize("name", ["../up", "a b", "", ".hidden", "-x", "a/b"])
def test_a_name_that_is_no_folder_name_is_refused(problems: Problems, name: str) -> None:
    (problem,) = problems(base=BASE.replace("small", f"'{name}'"))
    assert problem.startswith("recipe.yaml:1: name: ")
    assert problem.endswith(f"found {name!r}")


def test_a_revision_belongs_to_the_hub_alone(problems: Problems, load: Load) -> None:
    base = f"{BASE}  revision: main\n"
    assert problems(base=base)[0].startswith("recipe.yaml:5: model: `revision` belongs to a model of the Hub")
    assert load(base=base.replace("./model", "org/model")).model.revision == "main"


@pytest.mark.parametrize("digest", ["abc", "A" * 64, "g" * 64, "0" * 65])
def test_a_digest_has_64_hexadecimal_digits(problems: Problems, digest: str) -> None:
    assert problems(base=f"{BASE}  sha256: '{digest}'\n")[0].startswith("recipe.yaml:7: model.sha256: ")


def test_the_loss_is_no_metric_of_a_report(problems: Problems) -> None:
    assert problems("metrics: [loss]\n")[0].startswith("recipe.yaml:7: metrics[0]: ")


def test_roles_that_the_task_does_not_have_are_refused_before_the_data_is_read(problems: Problems) -> None:
    base = BASE.replace("model:", "  columns:\n    txt: body\nmodel:")
    (problem,) = problems(base=base)
    assert problem.startswith("recipe.yaml:6: data.columns.txt: ")
    assert "did you mean text?" in problem


def test_fractions_that_do_not_add_up_are_refused_before_the_data_is_read(problems: Problems) -> None:
    base = BASE.replace("model:", "  split: {name: stratified, train: 0.5}\nmodel:")
    (problem,) = problems(base=base)
    assert problem.startswith("recipe.yaml:5: data.split")
    assert "add up to 1" in problem


# Gates


@pytest.mark.parametrize(
    ("line", "gate"),
    [
        ('accuracy: ">= 0.85"', Gate(path="accuracy", comparison=">=", bound=0.85)),
        ('accuracy.low: ">0.8"', Gate(path="accuracy.low", comparison=">", bound=0.8)),
        ('log-loss: "< 5e-1"', Gate(path="log-loss", comparison="<", bound=0.5)),
        ('f1-macro.high: " <=  1 "', Gate(path="f1-macro.high", comparison="<=", bound=1.0)),
        ('quantized.accuracy: ">= 0.8"', Gate(path="quantized.accuracy", comparison=">=", bound=0.8)),
        (
            'quantized.accuracy.drop.high: "<= -0.01"',
            Gate(path="quantized.accuracy.drop.high", comparison="<=", bound=-0.01),
        ),
        ('quantized.agreement: ">= 0.98"', Gate(path="quantized.agreement", comparison=">=", bound=0.98)),
        ('quantized.size_ratio: "<= 0.3"', Gate(path="quantized.size_ratio", comparison="<=", bound=0.3)),
    ],
)
def test_gates_name_a_result_a_comparison_and_a_bound(load: Load, line: str, gate: Gate) -> None:
    assert load(f"quantize: onnx-int8\ngates:\n  {line}\n").gates == (gate,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("accuracy: 0.85", 'expected a comparison such as ">= 0.85", found 0.85'),
        ("accuracy: '0.85'", "found '0.85'"),
        ("accuracy: '== 0.85'", "found '== 0.85'"),
        ("accuracy: '>= much'", "found '>= much'"),
        ("accuracy: '>= nan'", "found '>= nan'"),
        ("accurcy: '>= 0.85'", "did you mean accuracy?"),
        ("accuracy.drop: '<= 0.01'", "quantized.METRIC.drop"),
        ("accuracy.median: '>= 0.5'", "METRIC.low"),
        ("quantized.accuracy.dorp: '<= 0.01'", "quantized.METRIC.drop"),
        ("quantized.agreement.low: '>= 0.9'", "quantized.agreement"),
        ("quantized.size_ratio.high: '<= 0.9'", "quantized.size_ratio"),
        ("loss: '<= 1'", "unknown metric 'loss'"),
    ],
)
def test_a_gate_outside_the_grammar_is_refused(problems: Problems, line: str, message: str) -> None:
    (problem,) = problems(f"quantize: onnx-int8\ngates:\n  {line}\n")
    assert "gates" in problem
    assert message in problem


def test_no_gates_are_none(load: Load) -> None:
    assert load("gates:\n#  accuracy: '>= 0.5'\n").gates == ()


def test_an_argument_that_a_metric_does_not_take_is_named_once(problems: Problems) -> None:
    (problem,) = problems("gates:\n  ndcg@0: '>= 0.5'\n")
    assert problem.startswith("recipe.yaml:8: gates.ndcg@0: expected a number of ranks behind the @")


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("text-classification", "label_columns: [a, b]", "text-classification reads none"),
        ("multi-label", "label_columns: [a, b]\n  label_separator: '|'", "remove data.label_separator"),
        ("multi-label", "label_columns: [a, b]\n  columns: {labels: all}", "remove data.columns.labels"),
        ("multi-label", "label_separator: |", 'in quotes, such as "|"'),
    ],
)
def test_settings_of_several_labels_that_do_not_fit_are_refused(
    problems: Problems, task: str, setting: str, message: str
) -> None:
    base = f"name: small\nmodel: {{id: ./model}}\ntask: {task}\ndata:\n  source: rows.jsonl\n  {setting}\n"
    (problem,) = problems(base=base)
    assert message in problem


def test_each_bad_gate_is_a_problem_at_its_own_line(problems: Problems) -> None:
    found = problems("gates:\n  accurcy: '>= 0.5'\n  f1-macro: '>= 0.5'\n  log-loss: 0.5\n")
    assert [problem.split(": ")[:2] for problem in found] == [
        ["recipe.yaml:8", "gates.accurcy"],
        ["recipe.yaml:10", "gates.log-loss"],
    ]


def test_a_gate_on_the_quantized_model_needs_a_backend(problems: Problems) -> None:
    """Otherwise nothing would ever check it, and the job would end as if it held."""
    (problem,) = problems("gates:\n  quantized.accuracy.drop: '<= 0.01'\n")
    assert "quantize" in problem.split(": ", 2)[2]


@pytest.mark.parametrize(
    ("value", "comparison", "holds"), [(0.5, ">=", True), (0.5, ">", False), (float("nan"), "<=", False)]
)
def test_a_gate_holds_by_its_comparison(value: float, comparison: str, holds: bool) -> None:
    assert Gate(path="accuracy", comparison=comparison, bound=0.5).holds(value) is holds


# Overrides


def test_an_override_is_checked_like_the_recipe_and_named_as_the_origin(problems: Problems) -> None:
    found = problems("train:\n  epochs: 0\n", "train.learning_rte=1", "train.batch_size=x")
    assert sorted(found) == [
        "--set train.batch_size=x: train.batch_size: expected a valid integer, found 'x'",
        "--set train.learning_rte=1: train.learning_rte: unknown setting, did you mean learning_rate?",
        "recipe.yaml:8: train.epochs: expected greater than or equal to 1, found 0",
    ]


def test_what_is_inside_an_overriding_mapping_comes_from_the_override(problems: Problems) -> None:
    lines = "train:\n  schedule:\n    name: cosine\n    warmup_ratio: 0.1\n"
    assignment = "train.schedule={name: cosine, warmup_ratio: 5}"
    assert problems(lines, assignment) == [
        f"--set {assignment}: train.schedule.warmup_ratio: expected less than 1, found 5"
    ]


def test_overrides_change_parts_and_their_options(load: Load) -> None:
    lines = "train: {schedule: {name: cosine, warmup_ratio: 0.1}}\n"
    assert load(lines, "train.schedule.warmup_ratio=0.2").train.schedule.options["warmup_ratio"] == 0.2
    assert load(lines, "train.schedule=linear").train.schedule == Part(
        name="linear", options={"warmup_steps": 0, "warmup_ratio": 0.0}
    )


def test_gates_whose_names_have_dots_can_be_set_on_the_command_line(load: Load) -> None:
    recipe = load(
        "quantize: onnx-int8\ngates: {accuracy: '>= 0.5'}\n",
        "gates.accuracy='>= 0.6'",
        "gates.quantized.accuracy.drop='<= 0.01'",
    )
    assert [str(gate) for gate in recipe.gates] == ["accuracy >= 0.6", "quantized.accuracy.drop <= 0.01"]


# Inputs


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The folder that the base recipe names."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.usefixtures("model_folder")
@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("row.jsonl", "expected a file of rows, found nothing at rows.jsonl, did you mean row.jsonl?"),
        ("rows.jsonl/", "expected rows, found an empty folder at rows.jsonl"),
        ("rows.jsonl", None),
        ("rows.jsonl/part.jsonl", None),
    ],
)
def test_the_files_of_rows_have_to_exist_when_inputs_are_checked(
    load: Load, problems: Problems, tmp_path: Path, there: str, message: str | None
) -> None:
    if there.endswith("/"):
        (tmp_path / there).mkdir()
    else:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_text("{}\n", encoding="utf-8")
    assert load().data.source == str(tmp_path / "rows.jsonl")
    if message is None:
        assert load(check_inputs=True).data.source == str(tmp_path / "rows.jsonl")
    else:
        assert problems(check_inputs=True) == [f"recipe.yaml:4: data.source: {message}"]


# Resolved


FULL = """\
seed: 7
freeze: {name: rules, rules: [{'*.bias': frozen}, {'*': trainable}]}
train:
  epochs: 2
  learning_rate: 1
  max_gradient_norm: null
  optimizer: {name: adamw, weight_decay: 0, betas: [0.8, 0.99]}
  schedule: {name: cosine, warmup_ratio: 2e-5}
  early_stopping: {metric: f1-macro, patience: 2}
metrics: [accuracy, 'evaluate:./metric.py']
quantize: {name: onnx-int8, per_channel: false}
gates: {accuracy: '>= 0.85', quantized.accuracy.drop.high: '<= 1e-2'}
"""


@pytest.mark.parametrize("lines", ["", FULL])
def test_the_resolved_recipe_is_read_back_as_the_same_recipe(load: Load, tmp_path: Path, lines: str) -> None:
    recipe = load(lines)
    written = tmp_path / "elsewhere" / "resolved.yaml"
    written.parent.mkdir()
    written.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(written) == recipe
    assert load_recipe(written).to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize(
    "column",
    ["no", "2e-5", "1e5", "007", "0x1F", "0o17", "1_000", "true", "null", "~", "", " x ", "2026-01-01", "12:30:00",
     "a: b", "a #b", "- x", "<<", "=", "!x", "&x", "*x", "%", "@x", "'", '"', "é\U0001f600", "a\nb", "\x07", "x" * 300],
)  # fmt: skip
def test_any_text_survives_the_resolved_recipe(load: Load, tmp_path: Path, column: str) -> None:
    recipe = load()
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"columns": {"text": column}})})
    written = tmp_path / "resolved.yaml"
    written.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(written).data.columns == {"text": column}


def test_every_default_is_written_out(load: Load, tmp_path: Path) -> None:
    assert load().resolved() == {
        "name": "small",
        "task": "text-classification",
        "seed": 42,
        "data": {
            "source": str(tmp_path / "rows.jsonl"),
            "columns": {},
            "workers": 1,
            "clean": [],
            "missing": "drop",
            "labels": [],
            "label_map": {},
            "label_columns": [],
            "tag_scheme": "iob2",
            "duplicates": "drop",
            "near_duplicates": {
                "action": "keep", "threshold": 0.8, "shingles": "characters", "size": 5, "permutations": 128,
            },
            "conflicts": "drop",
            "rare_labels": "error",
            "leaks": "error",
            "group_by": [],
            "checks": {},
            "split": {
                "name": "stratified", "train": 0.8, "validation": 0.1, "test": 0.1,
                "folds": None, "fold": 0, "bins": 10,
            },
        },
        "model": {
            "id": str(tmp_path / "model"), "max_length": 128, "overflow": "truncate", "dtype": "float32",
        },
        "freeze": "none",
        "train": {
            "epochs": 3,
            "batch_size": 32,
            "gradient_accumulation": 1,
            "gradient_checkpointing": False,
            "learning_rate": 5e-5,
            "layer_decay": 1.0,
            "optimizer": {"name": "adamw", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8},
            "schedule": {"name": "linear", "warmup_steps": 0, "warmup_ratio": 0.0},
            "max_gradient_norm": 1.0,
            "early_stopping": {"metric": "loss", "min_delta": 0.0},
            "keep_checkpoints": 1,
            "eval_batch_size": 64,
            "bucket_by_length": True,
            "sampling": "all",
            "device": "auto",
            "precision": "auto",
            "trackers": [],
        },
        "metrics": [],
    }  # fmt: skip


def test_setting_something_to_null_that_has_another_default_survives(load: Load, tmp_path: Path) -> None:
    recipe = load("train: {max_gradient_norm: null}\n")
    written = tmp_path / "resolved.yaml"
    written.write_text(recipe.to_yaml(), encoding="utf-8")
    assert recipe.train.max_gradient_norm is None
    assert load_recipe(written).train.max_gradient_norm is None


@pytest.mark.parametrize(
    ("section", "setting", "parts"),
    [
        ("data", "split", registry.splitters),
        ("train", "optimizer", registry.optimizers),
        ("train", "schedule", registry.schedules),
        ("", "freeze", registry.freezers),
    ],
)
def test_the_recipe_s_default_parts_have_the_defaults_of_the_parts(
    load: Load, section: str, setting: str, parts: registry.Registry
) -> None:
    recipe = load()
    part = getattr(getattr(recipe, section) if section else recipe, setting)
    assert part.options == parts.get(part.name).options().model_dump()


def test_a_recipe_is_frozen(load: Load) -> None:
    recipe = load()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 1  # type: ignore[misc]


def test_equal_recipes_share_no_options(load: Load) -> None:
    first, second = load(), load()
    assert first == second
    first.train.optimizer.options["betas"].append(0.0)
    assert second.train.optimizer.options["betas"] == [0.9, 0.999]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_that_comes_with_the_toolkit_loads(path: Path) -> None:
    made_by_another = "/outputs/" in load_recipe(path).model.id
    recipe = load_recipe(path, check_inputs=not made_by_another)
    assert recipe.name == path.stem


def test_a_run_that_is_not_there_yet_is_told_how_to_make_it(load: Load, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"found nothing at .*model\. A run makes it: `finetune run` the recipe first first"
    ):
        (tmp_path / "rows.jsonl").write_text("{}")
        load("", f"model.id={tmp_path}/outputs/first/run/model", check_inputs=True)
