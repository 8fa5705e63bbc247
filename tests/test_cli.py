"""The real command line, in subprocesses, on a tiny model: results, exit codes, messages, interruptions."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, RecipeMaker, build_tiny_model, finetune, make_rows, write_jsonl

QUANTIZED = {"quantize": "onnx-int8"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole loop has run once: recipe.yaml, rows.jsonl, outputs/tiny, result.json."""
    folder = tmp_path_factory.mktemp("loop")
    build_tiny_model(folder / "model")
    write_jsonl(folder / "rows.jsonl", make_rows())
    (folder / "recipe.yaml").write_text(
        """\
name: tiny
task: text-classification
seed: 7
data:
  source: rows.jsonl
  columns: {text: body, label: intent}
  clean: [whitespace]
  near_duplicates: "off"
  split: {name: stratified, train: 0.6, validation: 0.2, test: 0.2}
model: {id: ./model, max_length: 32}
train: {epochs: 2, batch_size: 8, learning_rate: 5e-3, threads: 1}
quantize: onnx-int8
gates: {accuracy: ">= 0.0", quantized.accuracy.drop: "<= 1"}
"""
    )
    done = finetune("run", "recipe.yaml", "--json", cwd=folder)
    (folder / "result.json").write_text(done.stdout)
    (folder / "messages.txt").write_text(done.stderr)
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def test_run_prints_one_json_object_and_says_the_rest_on_standard_error(finished: Path) -> None:
    result = result_of(finished)
    assert [(stage["name"], stage["status"]) for stage in result["stages"]] == [
        ("prepare", "done"),
        ("train", "done"),
        ("eval", "done"),
        ("quantize", "done"),
    ]
    assert all(stage["seconds"] >= 0 for stage in result["stages"])
    assert result["data"]["splits"] == {"train": 54, "validation": 18, "test": 18}
    messages = (finished / "messages.txt").read_text()
    assert "restored the best model" in messages
    assert re.search(r"head +99 +99", messages), "the freezing table"


def test_a_second_run_skips_every_stage_and_gives_the_same_results(finished: Path) -> None:
    done = finetune("run", "recipe.yaml", "--json", cwd=finished)
    again = json.loads(done.stdout)
    assert {stage["status"] for stage in again.pop("stages")} == {"skipped"}
    assert again == {key: value for key, value in result_of(finished).items() if key != "stages"}
    assert [line for line in done.stderr.splitlines() if "skipped, nothing changed" in line] == [
        f"{stage}: skipped, nothing changed" for stage in ("prepare", "train", "eval", "quantize")
    ]


def test_a_skipping_run_imports_no_torch(finished: Path) -> None:
    code = (
        "import sys; from finetune import cli\n"
        "try: cli.app(['run', 'recipe.yaml'], prog_name='finetune')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=finished, env=environment, check=True, capture_output=True)


def test_repeating_from_nothing_gives_the_same_numbers_and_weights(finished: Path) -> None:
    done = finetune("run", "recipe.yaml", "--json", "--output", "again", "--force", cwd=finished)
    again, first = json.loads(done.stdout), result_of(finished)
    assert again["report"] == first["report"]
    for key in ("before", "after", "drop", "agreement", "size_ratio"):
        assert again["quantized"][key] == first["quantized"][key]
    weights = "run/model/model.safetensors"
    assert (finished / "again" / weights).read_bytes() == (finished / "outputs/tiny" / weights).read_bytes()


def test_results_have_the_documented_shapes(finished: Path) -> None:
    result = result_of(finished)
    assert {"rows_read", "rows_kept", "dropped", "splits"} <= result["data"].keys()
    assert {"best_step", "stopped_because", "metrics", "parameters"} <= result["run"].keys()
    assert result["run"]["parameters"]["total"] == result["run"]["parameters"]["trainable"] > 10_000
    report = result["report"]
    assert {"task", "split", "rows", "metrics", "baselines", "labels", "confusion"} <= report.keys()
    for scores in (report["metrics"], report["baselines"]["majority"], report["baselines"]["tfidf-logreg"]):
        assert set(scores["accuracy"]) == {"value", "low", "high"}
        assert scores["accuracy"]["low"] <= scores["accuracy"]["value"] <= scores["accuracy"]["high"]
    quantized = result["quantized"]
    assert {"before", "after", "drop", "agreement", "size_ratio", "speed"} <= quantized.keys()
    assert set(quantized["drop"]["accuracy"]) == {"value", "low", "high"}
    for size in ("batch_1", "batch_32"):
        assert set(quantized["speed"][size]["before"]) == {"median", "p95"}


def test_the_written_files_are_those_that_the_documentation_names(finished: Path) -> None:
    root = finished / "outputs" / "tiny"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {
        "data/manifest.json", "data/report.json", "data/report.md", "data/dropped.jsonl",
        "data/train.arrow", "data/validation.arrow", "data/test.arrow",
        "run/manifest.json", "run/recipe.yaml", "run/log.jsonl", "run/model/model.safetensors", "run/model/config.json",
        "run/model/tokenizer.json", "run/reports/test.json", "run/reports/test.md",
        "run/reports/test-confusion-matrix.png",
        "run/reports/loss.png",
        "run-onnx-int8/manifest.json", "run-onnx-int8/model/model.onnx", "run-onnx-int8/reports/quantization.json",
        "run-onnx-int8/reports/quantization.md", "run-onnx-int8/recipe.yaml",
    } <= found  # fmt: skip
    assert not [name for name in found if ".tmp" in name or ".partial" in name or ".old" in name]


def test_the_model_folder_is_an_ordinary_hugging_face_folder(finished: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = finished / "outputs/tiny/run/model"
    classifier = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    text = "we saw a storm today"
    [answer] = classifier([text])
    done = finetune("predict", "outputs/tiny/run", "--text", text, cwd=finished)
    ours = json.loads(done.stdout)
    assert ours["label"] == answer["label"]
    assert ours["probability"] == pytest.approx(answer["score"], abs=1e-5)


@pytest.mark.parametrize("run", ["run", "run-onnx-int8"])
def test_predict_answers_texts_files_and_standard_input_alike(finished: Path, run: str) -> None:
    texts = ["a hammer and a saw", "rain again today", "this old pear"]
    (finished / "new.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (finished / "new.txt").write_text("\n".join(texts) + "\n")
    folder = f"outputs/tiny/{run}"
    by_text = finetune("predict", folder, *[part for text in texts for part in ("--text", text)], cwd=finished).stdout
    assert [json.loads(line)["row"] for line in by_text.splitlines()] == [1, 2, 3]
    assert finetune("predict", folder, "--input", "new.jsonl", cwd=finished).stdout == by_text
    assert finetune("predict", folder, "--input", "new.txt", cwd=finished).stdout == by_text
    assert finetune("predict", folder, "-", cwd=finished, input="\n".join(texts)).stdout == by_text
    first = json.loads(by_text.splitlines()[0])
    assert set(first["probabilities"]) == {"fruit", "tool", "weather"}
    assert first["probability"] == max(first["probabilities"].values()) == first["probabilities"][first["label"]]


def test_predict_says_at_the_end_which_rows_have_no_answer_and_exits_2_if_none_has(finished: Path) -> None:
    some = finetune("predict", "outputs/tiny/run", "-", cwd=finished, input='this old pear\n \n{"body": 5}\n')
    assert [json.loads(line).get("error") for line in some.stdout.splitlines()] == [
        None, "blank_text", "wrong_type_of_text",
    ]  # fmt: skip
    assert some.stderr.splitlines()[-1] == "2 of 3 rows have no answer: blank_text 1, wrong_type_of_text 1"
    none = finetune("predict", "outputs/tiny/run", "--text", " ", cwd=finished, check=2)
    assert json.loads(none.stdout) == {"row": 1, "error": "blank_text"}
    assert none.stderr.splitlines()[-1].startswith("error: predict: expected rows that the run can read, found none")


def test_a_quantized_run_is_evaluated_like_any_other(finished: Path) -> None:
    report = json.loads(finetune("eval", "outputs/tiny/run-onnx-int8", "--json", cwd=finished).stdout)
    assert report["metrics"] == result_of(finished)["quantized"]["after"]
    assert (finished / "outputs/tiny/run-onnx-int8/reports/test.md").is_file()


def test_eval_scores_new_rows_through_the_runs_own_preparation(finished: Path) -> None:
    rows = [
        *make_rows()[:4],
        {"body": "  a   brand new\tsaw ", "intent": "tool"},
        {"body": "something else", "intent": "nonsense"},
        {"intent": "tool"},
    ]
    write_jsonl(finished / "fresh.jsonl", rows)
    report = json.loads(finetune("eval", "outputs/tiny/run", "--data", "fresh.jsonl", "--json", cwd=finished).stdout)
    assert report["rows"] == 5
    assert report["dropped"] == {"missing_text": 1, "unknown_label": 1}
    assert "a brand new saw" in {example["text"] for example in report["worst"]}
    assert (finished / "outputs/tiny/run/reports/fresh.json").is_file()


def test_other_splits_can_be_scored(finished: Path) -> None:
    report = json.loads(finetune("eval", "recipe.yaml", "--split", "validation", "--json", cwd=finished).stdout)
    assert (report["split"], report["rows"]) == ("validation", 18)
    failed = finetune("eval", "recipe.yaml", "--split", "tset", cwd=finished, check=2)
    assert "expected one of train, validation, test; found tset" in failed.stderr


def test_a_failed_gate_exits_3_says_by_how_much_and_still_writes_the_report(finished: Path) -> None:
    failed = finetune("eval", "recipe.yaml", "--set", "gates={accuracy: '>= 1.5'}", "--json", cwd=finished, check=3)
    value = json.loads(failed.stdout)["metrics"]["accuracy"]["value"]
    assert f"accuracy >= 1.5: found {value:.4f}, {1.5 - value:.4f} short of it" in failed.stderr
    failed = finetune("run", "recipe.yaml", "--set", "gates={quantized.size_ratio: '<= 0.001'}", cwd=finished, check=3)
    assert "quantized.size_ratio <= 0.001" in failed.stderr


def test_quiet_says_nothing_and_human_output_has_the_table(finished: Path) -> None:
    quiet = finetune("run", "recipe.yaml", "--quiet", cwd=finished)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    shown = finetune("run", "recipe.yaml", cwd=finished).stdout
    assert re.search(r"accuracy +\d\.\d{3} \(\d\.\d{3}-\d\.\d{3}\) +\d\.\d{3} \(", shown)
    assert "gate accuracy >= 0: holds" in shown


def test_a_stale_artifact_is_refused_with_what_changed_and_force_rebuilds_it(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = make_recipe(train={"epochs": 1})
    finetune("train", recipe, cwd=tmp_path)
    stale = finetune("train", recipe, "--set", "data.clean=[]", cwd=tmp_path, check=2)
    assert "changed: data.clean" in stale.stderr
    assert f"Run `finetune prepare {recipe}` first, or add --force" in stale.stderr
    finetune("train", recipe, "--set", "data.clean=[]", "--force", cwd=tmp_path)


# --- interruptions -----------------------------------------------------------------------------------------------


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "finetune", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # a suite that a shell runs in the background ignores Ctrl-C, and so would what it starts
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, preexec_fn=heed, **pipes)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = {"epochs": 60, "save_every": 5, "eval_every": 30}


def has_checkpoint(root: Path) -> bool:
    return any((root / "run.partial" / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, Any]]:
    """A recipe that trains long enough to be killed, and what it gives when it is not."""
    folder = tmp_path_factory.mktemp("long")
    write_jsonl(folder / "rows.jsonl", make_rows())
    recipe = {
        "name": "long",
        "task": "text-classification",
        "data": {"source": "rows.jsonl", "columns": {"text": "body", "label": "intent"}, "near_duplicates": "off"},
        "model": {"id": str(tiny_model), "max_length": 32},
        "train": {**LONG, "batch_size": 8, "learning_rate": 5e-3, "threads": 1},
    }
    (folder / "long.yaml").write_text(json.dumps(recipe))
    finetune("run", "long.yaml", "--output", "whole", cwd=folder)
    return folder, json.loads((folder / "whole/run/reports/test.json").read_text())


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_in_one_message_and_their_exit_code(
    uninterrupted: tuple[Path, dict[str, Any]], number: int, code: int, word: str
) -> None:
    folder, expected = uninterrupted
    output = f"signal-{code}"
    process = start("train", "long.yaml", "--output", output, cwd=folder)
    wait_for(lambda: has_checkpoint(folder / output), process)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == code
    assert messages.splitlines()[-1].startswith(word)
    assert "Traceback" not in messages
    assert not (folder / output / "run").exists(), "an unfinished run is no run"
    finetune("run", "long.yaml", "--output", output, cwd=folder)
    assert json.loads((folder / output / "run/reports/test.json").read_text()) == expected


@pytest.mark.parametrize("stage", ["prepare", "eval", "quantize"])
def test_a_kill_in_any_other_stage_costs_that_stage_and_nothing_else(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    folder = tmp_path / "copy"
    root = folder / "outputs" / "tiny"
    for name in {
        "prepare": ["data", "run", "run-onnx-int8"],
        "eval": ["run/reports", "run-onnx-int8"],
        "quantize": ["run-onnx-int8"],
    }[stage]:
        shutil.rmtree(root / name)
    process = start("run", "recipe.yaml", cwd=folder)
    # the first word about the stage comes when it starts: kill it in the middle of its work
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{stage} ..."):
            break
    time.sleep(0.3)
    process.kill()
    process.communicate()
    again = json.loads(finetune("run", "recipe.yaml", "--json", cwd=folder).stdout)
    assert again["report"] == result_of(finished)["report"]
    assert again["quantized"]["after"] == result_of(finished)["quantized"]["after"]
    assert not list(root.glob("*.partial")) + list(root.glob("*.old"))


def test_resume_demands_something_to_resume(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    failed = finetune("train", make_recipe(), "--resume", cwd=tmp_path, check=2)
    assert "--resume: expected an unfinished run with a checkpoint" in failed.stderr


def test_an_unfinished_run_of_another_recipe_is_not_thrown_away_unasked(
    uninterrupted: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = uninterrupted
    process = start("train", "long.yaml", "--output", "changed", cwd=folder)
    wait_for(lambda: has_checkpoint(folder / "changed"), process)
    process.kill()
    process.communicate()
    arguments = ("train", "long.yaml", "--output", "changed", "--set", "train.learning_rate=1e-3")
    refused = finetune(*arguments, cwd=folder, check=2)
    assert "unfinished run of another recipe (changed: train.learning_rate)" in refused.stderr
    assert has_checkpoint(folder / "changed")
    finetune(*arguments, "--set", "train.max_steps=2", "--force", cwd=folder)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_six_mistakes_in_a_recipe_are_six_lines(tmp_path: Path, rows_file: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        f"""\
name: bad
task: text-clasification
data:
  source: {rows_file}
  clean: [whitespace, {{name: html, keep_link: true}}]
model: {{id: ./nowhere}}
train:
  learning_rte: 2e-5
  epochs: five
gates: {{acuracy: ">= 0.9"}}
"""
    )
    failed = finetune("validate", "bad.yaml", cwd=tmp_path, check=2)
    assert failed.stdout == ""
    lines = failed.stderr.splitlines()
    assert lines[0] == "error: 6 problems in the recipe:"
    assert len(lines) == 7
    for expected in (
        "bad.yaml:2: task: unknown task 'text-clasification', did you mean text-classification?",
        "bad.yaml:5: data.clean[1].keep_link: unknown setting, did you mean keep_links?",
        "bad.yaml:8: train.learning_rte: unknown setting, did you mean learning_rate?",
        "bad.yaml:9: train.epochs: expected a valid integer, found 'five'",
        "bad.yaml:10: gates.acuracy: unknown metric 'acuracy', did you mean accuracy?",
        "bad.yaml:6: model.id: expected a model's folder, found nothing at ",
    ):
        assert any(line.strip().startswith(expected) for line in lines), (expected, lines)


def limit_file_size() -> None:
    """Let every file end at 20,000 bytes, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def poisoned_model(folder: Path) -> Path:
    """A model whose first layer holds a number that is none: what an exploding training leads to."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(build_tiny_model(folder) / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if name.endswith("query.weight"))[0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


BAD: dict[str, tuple[Callable[[Path, Any], list[Any]], str]] = {
    "missing recipe": (lambda p, make: ["train", "recpe.yaml"], "recpe.yaml: no such recipe"),
    "missing rows": (lambda p, make: ["prepare", make(data={"source": "gone.jsonl"})], "found nothing at"),
    "wrong column": (
        lambda p, make: ["prepare", make(data={"columns": {"text": "bodi", "label": "intent"}})],
        "expected a column 'bodi' for text; found body, intent. Did you mean body? Rename it",
    ),
    "wrong role": (
        lambda p, make: ["prepare", make(data={"columns": {"texts": "body"}})],
        "data.columns.texts: unknown role of text-classification, did you mean text?",
    ),
    "empty file": (
        lambda p, make: ["prepare", make(data={"source": str(write_jsonl(p / "empty.jsonl", []))})],
        "expected rows, found an empty file (0 bytes)",
    ),
    "label seen once": (
        lambda p, make: [
            "prepare",
            make(data={"source": str(write_jsonl(p / "once.jsonl", [*make_rows(), {"body": "x y", "intent": "odd"}]))}),
        ],
        "'odd' has 1 (line 91)",
    ),
    "one label": (
        lambda p, make: [
            "prepare",
            make(data={"source": str(write_jsonl(p / "one.jsonl", [r for r in make_rows() if r["intent"] == "tool"]))}),
        ],
        "expected at least 2 labels, found only 'tool'",
    ),
    "no model": (lambda p, make: ["train", make(model={"id": "./nowhere"})], "found nothing at"),
    "too long": (lambda p, make: ["prepare", make(model={"max_length": 65})], "expected at most 64 tokens"),
    "wrong weights": (
        lambda p, make: ["train", make(model={"sha256": "0" * 64})],
        "expected weights with SHA-256 0000",
    ),
    "no device": (lambda p, make: ["train", make(), "--device", "cuda"], "--device: expected one of auto, cpu"),
    "odd device": (lambda p, make: ["train", make(), "--device", "gpu"], "expected auto, cpu, cuda, cuda:N or mps"),
    "no run": (lambda p, make: ["predict", "outputs/none", "--text", "x"], "expected a run"),
    "no backend": (lambda p, make: ["quantize", make()], "the recipe names no backend"),
    "metric with code": (
        lambda p, make: ["eval", make(metrics=["evaluate:accuracy"])],
        "evaluate:accuracy runs code from outside this package",
    ),
    "output is a file": (lambda p, make: ["prepare", make(), "--output", str(p / "rows.jsonl")], "Choose another"),
    "a loss that is no number": (
        lambda p, make: ["train", make(model={"id": str(poisoned_model(p / "poisoned"))})],
        "expected a loss that is finite and falls, found a loss of nan at step 1",
    ),
    "two inputs": (lambda p, make: ["predict", "x", "-", "--text", "y"], "expected exactly one of"),
    "bad override": (lambda p, make: ["train", make(), "--set", "train.epochs"], "expected section.key=value"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_message(case: str, make_recipe: RecipeMaker, tmp_path: Path) -> None:
    if case == "no device":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has the device")
    arguments, expected = BAD[case][0](tmp_path, make_recipe), BAD[case][1]
    failed = finetune(*arguments, cwd=tmp_path, check=2)
    assert expected in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""
    assert not list(tmp_path.glob("outputs/*/*.partial"))


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_disk_without_room_is_one_message_and_leaves_nothing_half_written(
    make_recipe: RecipeMaker, tmp_path: Path, command: str
) -> None:
    recipe = make_recipe(train={"epochs": 1})
    if command == "train":
        finetune("prepare", recipe, cwd=tmp_path)
        limit = limit_file_size
    else:
        limit = limit_to_nothing
    failed = finetune(command, recipe, cwd=tmp_path, check=2, preexec_fn=limit)
    assert "Choose another place with --output" in failed.stderr
    assert "Traceback" not in failed.stderr
    artifact = {"prepare": "data", "train": "run"}[command]
    assert not (tmp_path / "outputs/tiny" / artifact).exists()
    finetune(command, recipe, cwd=tmp_path)
    assert (tmp_path / "outputs/tiny" / artifact / "manifest.json").is_file()


def limit_to_nothing() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_message(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    failed = finetune("prepare", make_recipe(), "--output", "locked/here", cwd=tmp_path, check=2)
    assert "no permission" in failed.stderr


def test_our_own_mistakes_keep_their_traceback_and_exit_1(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "finetune", broken / "finetune")
    (broken / "finetune/prepare.py").write_text("raise RuntimeError('a bug of ours')\n")
    failed = finetune("prepare", make_recipe(), cwd=tmp_path, check=1, env={"PYTHONPATH": str(broken)})
    assert "Traceback" in failed.stderr
    assert "a bug of ours" in failed.stderr


def test_a_pipe_that_closes_early_is_no_error_message(finished: Path) -> None:
    lines = "\n".join(["rain"] * 3000)
    command = f"{sys.executable} -m finetune predict outputs/tiny/run - | head -n 1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=finished, input=lines, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["row"] == 1
    assert done.stderr == ""
