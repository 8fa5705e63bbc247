"""A model that writes, from the file of rows to its answers: trained, chosen by its texts, reported and asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from finetune import train as stage
from finetune.artifacts import PreparedData, Run
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate, write_report
from finetune.models.loading import weights_digest
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.checkpoints import save_checkpoint
from tests.conftest import FILLER, LABEL_WORDS, write_jsonl
from tests.tasks.written_world import BEGIN, END, PAD, bart, save, word_tokenizer

CPU = Runtime("cpu", threads=1)
KINDS = {word: label for label, words in LABEL_WORDS.items() for word in words}
GENERATION: dict[str, Any] = {"max_new_tokens": 12, "beams": 2, "no_repeat_ngram": 4, "validation_rows": 4}
SCRATCH: dict[str, Any] = {"architecture": "t5", "layers": 1, "hidden_size": 32, "heads": 2, "dropout": 0.0}


def raw_rows(count: int = 60) -> list[dict[str, Any]]:
    """Return orders, each with its answer in one or two wordings; every seventh answer is long."""
    rows: list[dict[str, Any]] = []
    words = list(KINDS)
    for number in range(count):
        word, other = words[number % 15], words[(number * 7 + number // 15) % 15]
        order = f"{FILLER[4 + number // 15]} {word} {FILLER[number % 4]} <b>{other}</b>"
        answers = [f"{KINDS[word]} <b>{KINDS[other]}</b>"]
        answers += [f"one {KINDS[word]} and then one {KINDS[other]}"] if number % 7 == 0 else []
        rows.append({"order": order, "answer": answers if number % 2 or len(answers) > 1 else answers[0]})
    return rows


def write_recipe(folder: Path, rows: Sequence[dict[str, Any]] | None = None, **sections: Any) -> Path:
    source = write_jsonl(folder / "orders.jsonl", rows or raw_rows())
    recipe: dict[str, Any] = {
        "name": "orders",
        "task": {"name": "seq2seq", "max_target_length": 24, "prefix": "kinds: "},
        "seed": 7,
        "data": {
            "source": str(source),
            "columns": {"source": "order", "target": "answer"},
            "near_duplicates": "off",
            "split": {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "tokenizer": {"name": "bpe", "vocabulary": 340, "template": "t5"},
        "model": {"scratch": SCRATCH, "max_length": 40},
        "train": {"epochs": 10, "batch_size": 6, "learning_rate": 5e-3, "threads": 1, "device": "cpu"},
        "generation": GENERATION,
    }
    for key, value in sections.items():
        both = isinstance(recipe.get(key), dict) and isinstance(value, dict)
        recipe[key] = {**recipe[key], **value} if both else value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


class Finished(NamedTuple):
    folder: Path
    run: Run
    report: dict[str, Any]
    data: PreparedData


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of the recipe above with its report, through the whole pipeline; don't write there."""
    folder = tmp_path_factory.mktemp("orders")
    job = Job(load_recipe(write_recipe(folder)), folder / "out", CPU)
    run = job.run(asked=True)
    return Finished(folder, run, job.report(run), job.data())


# --- the report


def test_a_report_says_how_good_the_texts_are_and_how_they_were_written(finished: Finished) -> None:
    report = finished.report
    assert set(report["metrics"]) == {
        *("rougeL", "chrf", "exact-match", "rouge1", "rouge2", "rougeLsum", "bleu", "perplexity"),
    }  # fmt: skip
    assert set(report["baselines"]) == {"copy-source", "lead-sentence"}
    assert report["metrics"]["rougeL"]["value"] > report["baselines"]["copy-source"]["rougeL"]["value"]
    assert report["generation"] == {"max_new_tokens": 12, "beams": 2, "no_repeat_ngram": 4, "sample": False}
    assert all("version" in report["signatures"][name] for name in ("bleu", "chrf"))
    assert {"value", "low", "high"} <= report["length_ratio"].keys()
    assert report["intervals"]["unit"] == "source"


def test_samples_are_the_first_rows_of_the_split_as_they_are(finished: Finished) -> None:
    rows = finished.data.split("test").rows
    samples = finished.report["samples"]
    assert [(one["source"], one["wanted"]) for one in samples] == [
        (row["source"], row["target"][0]) for row in list(rows)[: len(samples)]
    ]
    assert len(samples) == 10 < len(rows)
    assert len({one["written"] for one in samples}) > 1
    words = finished.report["words"]
    assert [len(re.findall(r"\w+", one["written"])) for one in samples] == words["written"][:10]


def test_the_length_ratio_is_of_all_words(finished: Finished) -> None:
    words = finished.report["words"]
    assert finished.report["length_ratio"]["value"] == pytest.approx(sum(words["written"]) / sum(words["wanted"]))


def test_perplexity_is_that_of_the_models_own_files_over_all_references(finished: Finished) -> None:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(finished.run.model_folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished.run.model_folder)
    losses: list[float] = []
    for row in finished.data.split("test").rows:
        for target in row["target"]:
            labels = tokenizer(target, return_tensors="pt")["input_ids"]
            assert 2 < labels.shape[1] <= 24
            with torch.no_grad():
                source = tokenizer(f"kinds: {row['source']}", return_tensors="pt")["input_ids"]
                scores = torch.log_softmax(model(input_ids=source, labels=labels).logits, dim=-1)
            losses += (-scores[0].gather(1, labels[0][:, None])[:, 0]).tolist()
    expected = math.exp(math.fsum(losses) / len(losses))
    assert finished.report["metrics"]["perplexity"]["value"] == pytest.approx(expected, rel=1e-5)


def test_the_page_shows_texts_as_they_are_and_never_as_html(finished: Finished, tmp_path: Path) -> None:
    report = json.loads((finished.run.reports / "test.json").read_text())
    report["samples"][0]["written"] = "<script>alert(1)</script> | **bold** [link](http://x.example)"
    write_report(report, tmp_path)
    page = (tmp_path / "test.md").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| \\*\\*bold\\*\\* \\[link\\]" in page
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    for heading in ("## Samples", "## How they were written"):
        assert heading in page
    for line in ("generation.beams | 2", "settings of bleu", "settings of chrf", "words written by words wanted"):
        assert line in page


# --- the model's folder


def test_the_models_folder_writes_as_the_recipe_says(finished: Finished) -> None:
    saved = json.loads((finished.run.model_folder / "generation_config.json").read_text())
    expected = {"max_new_tokens": 12, "num_beams": 2, "no_repeat_ngram_size": 4, "do_sample": False}
    assert expected.items() <= saved.items()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(finished.run.model_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished.run.model_folder)
    for sample in finished.report["samples"][:3]:
        ids = tokenizer(f"kinds: {sample['source']}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            (written,) = model.generate(input_ids=ids)
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == sample["written"]


def test_a_checkpoints_own_settings_give_way_to_the_recipes_and_its_tokens_stay(tmp_path: Path) -> None:
    model = bart(forced_eos_token_id=END)
    own = model.generation_config
    own.num_beams, own.max_length, own.no_repeat_ngram_size, own.forced_bos_token_id = 3, 4, 1, BEGIN
    checkpoint = save(tmp_path / "bart", model, word_tokenizer("<s> $A </s>"))
    path = write_recipe(
        tmp_path,
        model={"id": str(checkpoint), "scratch": None},
        tokenizer=None,
        train={"max_steps": 1},
        generation={"beams": 1, "no_repeat_ngram": 0, "max_new_tokens": 9},
    )
    run = Job(load_recipe(path), tmp_path / "out", CPU).run(asked=True)
    saved = json.loads((run.model_folder / "generation_config.json").read_text())
    saved.pop("transformers_version")
    assert saved == {
        "max_new_tokens": 9, "num_beams": 1, "do_sample": False, "decoder_start_token_id": END, "pad_token_id": PAD,
        "forced_bos_token_id": BEGIN, "bos_token_id": BEGIN, "eos_token_id": END,
    }  # fmt: skip
    longest = max(len(answer["text"].split()) for answer in Answering(run, CPU).texts(["the red apple", "snow"]))
    assert 4 < longest <= 9


# --- being asked


def test_answers_come_in_the_order_of_the_questions_whatever_their_length(finished: Finished) -> None:
    orders = [row["order"] for row in raw_rows(12)]
    orders[3:3] = ["my apple", f"{orders[0]} {orders[1]}"]
    answering = Answering(finished.run, CPU)
    answers = list(answering.texts([*orders, " ", orders[0]]))
    alone = [next(iter(answering.texts([order]))) for order in orders]
    assert [{**answer, "row": 1} for answer in answers[: len(orders)]] == alone
    assert answers[len(orders)] == {"row": len(orders) + 1, "error": "blank_source"}
    assert {**answers[-1], "row": 1} == answers[0]
    assert all(answer["settings"] == finished.report["generation"] for answer in alone)
    assert all(set(answer) - {"unfinished", "truncated_tokens"} == {"row", "text", "settings"} for answer in alone)
    assert len({answer["text"] for answer in alone}) > 3


def test_the_answers_are_those_of_the_report(finished: Finished) -> None:
    samples = finished.report["samples"]
    answers = Answering(finished.run, CPU).texts([sample["source"] for sample in samples])
    assert [answer["text"] for answer in answers] == [sample["written"] for sample in samples]


def test_a_cut_question_says_so(finished: Finished) -> None:
    (answer,) = Answering(finished.run, CPU).texts(["the apple near the pear " * 20])
    assert answer["truncated_tokens"] > 0
    assert isinstance(answer["text"], str)


# --- new rows, other settings


def test_a_file_of_new_rows_is_scored_with_other_settings_of_generation(finished: Finished, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", raw_rows(75)[60:])
    settings = {**GENERATION, "beams": 1, "max_new_tokens": 2}
    recipe = load_recipe(write_recipe(tmp_path, generation=settings))
    report = evaluate(finished.run, source=source, recipe=recipe, folder=tmp_path, runtime=CPU)
    assert (report["rows"], report["unfinished"]) == (15, 15)
    assert report["generation"]["max_new_tokens"] == 2
    whole = evaluate(finished.run, source=source, folder=tmp_path / "whole", runtime=CPU)
    assert whole["unfinished"] < 15
    assert whole["metrics"]["perplexity"] == report["metrics"]["perplexity"], "it is of what was wanted"
    assert whole["metrics"]["rougeL"] != report["metrics"]["rougeL"]


def test_other_settings_of_generation_make_a_new_report_and_no_new_run(tmp_path: Path) -> None:
    def statuses(**sections: Any) -> dict[str, str]:
        job = Job(load_recipe(write_recipe(tmp_path, **sections)), tmp_path / "out", CPU)
        job.report(job.run(asked=True))
        return {stage.name: stage.status for stage in job.stages}

    quick = {"train": {"max_steps": 2}}
    assert set(statuses(**quick).values()) == {"done"}
    assert set(statuses(**quick).values()) == {"skipped"}
    assert statuses(**quick, generation={"beams": 1}) == {"prepare": "skipped", "train": "skipped", "eval": "done"}
    assert Run(tmp_path / "out" / "run").recipe.generation.beams == 1, "by which predict writes from now on"
    assert statuses(**quick, generation={"beams": 1, "validation_rows": 2})["train"] == "skipped"
    judged = {"train": {"max_steps": 2, "early_stopping": {"metric": "rougeL"}}}
    assert statuses(**judged)["train"] == "done"
    assert statuses(**judged, generation={"beams": 1})["train"] == "done", "the best step is chosen by other texts"
    assert statuses(**judged, generation={"beams": 1, "validation_rows": 2})["train"] == "done", "or by fewer"


# --- chosen by what is written


JUDGED: dict[str, Any] = {
    "max_steps": 24, "eval_every": 6, "save_every": 3, "early_stopping": {"metric": "rougeL", "patience": 3},
}  # fmt: skip


def log_of(run: Run) -> list[dict[str, Any]]:
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in {"seconds"}} for line in lines]


def test_a_run_chosen_by_its_texts_goes_on_as_if_it_had_not_been_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"train": JUDGED, "generation": {"sample": True, "temperature": 0.8, "beams": 1}}
    recipe = load_recipe(write_recipe(tmp_path, **sections))
    data = prepare(recipe, tmp_path / "data")
    whole = train(recipe, data, tmp_path / "whole", runtime=CPU)
    saved: list[int] = []

    def interrupt(*arguments: Any, keep: int) -> None:
        save_checkpoint(*arguments, keep=keep)
        saved.append(arguments[1].step)
        if len(saved) == 3:  # step 9: between two evaluations
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, tmp_path / "run", runtime=CPU)
    assert saved == [3, 6, 9]
    resumed = train(recipe, data, tmp_path / "run", runtime=CPU, resume=True)
    assert log_of(resumed) == log_of(whole)
    assert weights_digest(resumed.model_folder) == weights_digest(whole.model_folder)
    scores = {line["step"]: line["validation"] for line in log_of(whole) if "validation" in line}
    assert list(scores) == [6, 12, 18, 24]
    assert {"loss", "rougeL", "chrf"} == set(scores[6])
    best = max(scores, key=lambda step: scores[step]["rougeL"])
    assert scores[whole.manifest["best_step"]]["rougeL"] == scores[best]["rougeL"] > 0
    assert whole.manifest["metrics"] == scores[whole.manifest["best_step"]]


def test_the_score_of_a_step_is_that_of_the_sample_of_validation_rows(tmp_path: Path) -> None:
    train_section = {"max_steps": 12, "early_stopping": {"metric": "chrf"}, "eval_every": 12}
    recipe = load_recipe(write_recipe(tmp_path, train=train_section, generation={"validation_rows": 1000}))
    run = train(recipe, prepare(recipe, tmp_path / "data"), tmp_path / "run", runtime=CPU)
    report = evaluate(run, split="validation", runtime=CPU)
    found = {name: report["metrics"][name]["value"] for name in ("rougeL", "chrf")}
    assert found == pytest.approx({name: run.manifest["metrics"][name] for name in found})


def test_without_validation_rows_nothing_is_written_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import inference

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be written")

    recipe = load_recipe(write_recipe(tmp_path, train={"max_steps": 2}, generation={"validation_rows": 0}))
    data = prepare(recipe, tmp_path / "data")
    monkeypatch.setattr(inference, "write_texts", never)
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    assert set(run.manifest["metrics"]) == {"loss"}


# --- what cannot be


def test_targets_longer_than_the_decoders_positions_are_refused_before_training(tmp_path: Path) -> None:
    scratch = {**SCRATCH, "architecture": "bart", "context": 40}
    path = write_recipe(tmp_path, task={"name": "seq2seq", "max_target_length": 41}, model={"scratch": scratch})
    with pytest.raises(FinetuneError, match="task.max_target_length: expected at most 40 tokens.*found 41"):
        Job(load_recipe(path), tmp_path / "out", CPU).run(asked=True)


def test_a_family_with_positions_writes_to_their_end(tmp_path: Path) -> None:
    scratch = {**SCRATCH, "architecture": "bart", "context": 40}
    generation = {"beams": 1, "min_new_tokens": 39, "max_new_tokens": 60}
    path = write_recipe(tmp_path, model={"scratch": scratch}, generation=generation, train={"max_steps": 2})
    job = Job(load_recipe(path), tmp_path / "out", CPU)
    report = job.report(job.run(asked=True))
    assert report["unfinished"] == report["rows"]
