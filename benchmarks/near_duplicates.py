"""Near-duplicates planted among real texts: how many are found, whether what is found is true, how fast, what memory.

    python benchmarks/near_duplicates.py DATA [--rows 200000] [--seeds 42 43 44]

DATA is a folder with a train.jsonl of rows with a `text`, such as banking77's. Its texts, drawn and joined until they
have 20 words, are the rows; 5 % of the rows are others with one to three words changed. Recall counts the planted
rows whose similarity reaches the threshold, precision what is reported; both by sets of pieces of the texts themselves.
The search has one process, and one core of it: its CPU time is what counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path

from _measure import machine, median, run_child, table, write_section

THRESHOLD = 0.8
SIZE = 5
PLANTED = 0.05
WORDS = 20


def build_rows(source: Path, count: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the rows in random order, and the pairs of a row and its changed copy."""
    chance = random.Random(seed)
    texts = [json.loads(line)["text"].split() for line in source.open(encoding="utf-8")]
    vocabulary = [word for words in texts for word in words]
    rows: list[list[str]] = []
    for _ in range(count - round(count * PLANTED)):
        words: list[str] = []
        while len(words) < WORDS:
            words = words + chance.choice(texts)
        rows.append(words)
    origins = [chance.randrange(len(rows)) for _ in range(count - len(rows))]
    for origin in origins:
        words = list(rows[origin])
        for place in chance.sample(range(len(words)), chance.randint(1, 3)):
            words[place] = chance.choice(vocabulary)
        rows.append(words)
    order = list(range(count))
    chance.shuffle(order)
    place_of = {old: new for new, old in enumerate(order)}
    planted = [(place_of[origin], place_of[count - len(origins) + n]) for n, origin in enumerate(origins)]
    return [" ".join(rows[old]) for old in order], planted


def similarity(one: str, other: str) -> float:
    pieces = [{text[i : i + SIZE] for i in range(len(text) - SIZE + 1)} for text in (one.casefold(), other.casefold())]
    return len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])


def anonymous_memory() -> int:
    """Return the bytes of memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])


def measure_once(source: Path, count: int, seed: int) -> dict[str, float]:
    """Search one set of rows in this process."""
    import pyarrow as pa

    from finetune.data.duplicates import clusters_of, text_keys
    from finetune.data.near_duplicates import find_near_duplicates

    rows, planted = build_rows(source, count, seed)
    column = pa.chunked_array([pa.array(rows[start : start + 10_000]) for start in range(0, count, 10_000)])
    exact = clusters_of(text_keys([rows]))
    find_near_duplicates(column.slice(0, 100), exact[:100], seed=seed)  # the imports
    before = peak = anonymous_memory()
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.05):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    found = find_near_duplicates(column, exact, threshold=THRESHOLD, size=SIZE, seed=seed)
    seconds = time.process_time() - started
    finished.set()
    watcher.join()
    true = [(a, b) for a, b in planted if exact[a] != exact[b] and similarity(rows[a], rows[b]) >= THRESHOLD]
    correct = [similarity(rows[a], rows[b]) >= THRESHOLD for a, b in found.pairs.tolist()]
    return {
        "planted": len(true),
        "recall": sum(bool(found.clusters[a] == found.clusters[b]) for a, b in true) / len(true),
        "pairs": len(correct),
        "precision": sum(correct) / len(correct),
        "rows_per_second": count / seconds,
        "memory": peak - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a train.jsonl")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = (arguments.data / "train.jsonl").resolve()
    if not source.is_file():
        sys.exit(f"expected rows with a text at {source}, found nothing")
    if arguments.once:
        print(json.dumps(measure_once(source, arguments.rows, arguments.seeds[0])))
        return
    command = [sys.executable, __file__, str(source.parent), "--rows", str(arguments.rows), "--once", "--seeds"]
    found = [json.loads(run_child([*command, str(seed)], Path.cwd())[1]) for seed in arguments.seeds]
    middle = {name: median([one[name] for one in found]) for name in found[0]}
    rows = [
        [
            name,
            f"{one['planted']:.0f}",
            f"{one['recall']:.4f}",
            f"{one['pairs']:.0f}",
            f"{one['precision']:.4f}",
            f"{one['rows_per_second']:,.0f}",
            f"{one['memory'] / 1e6:,.0f} MB",
        ]
        for name, one in zip([*arguments.seeds, "median"], [*found, middle], strict=True)
    ]
    header = ["seed", "planted", "recall", "reported", "precision", "rows/s of one core", "RssAnon on top of the rows"]
    text = [
        f"{machine()}. {arguments.rows:,} rows of {WORDS} words or more, 5 % of them with one to three words changed; "
        f"planted are those of at least {THRESHOLD} in shingles of {SIZE} characters, which is the threshold.",
        table(header, rows),
    ]
    write_section("near-duplicates", "\n\n".join(text))


if __name__ == "__main__":
    main()
