"""What the benchmarks share: CPU time of child processes, peak private memory, and a plain Trainer to compare with."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Cost:
    """What a child process and its own children cost: seconds by the clock and of CPU, the peak of RssAnon in bytes.

    `resident` is the most that the child itself held, the files that it maps among it (`ru_maxrss`).
    """

    wall: float
    cpu: float
    memory: int
    resident: int = 0


def run_child(
    command: Sequence[str], cwd: Path, check: bool = True, env: dict[str, str] | None = None
) -> tuple[Cost, str]:
    """Run a command; return its cost (its own children included) and its standard output."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.returncode is None:
            peak = max(peak, sum(map(anonymous_memory, [process.pid, *descendants(process.pid)])))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output: list[str] = []
    errors: list[str] = []
    readers = [
        threading.Thread(target=lambda s=stream, t=target: t.append(s.read()))  # type: ignore[misc]
        for stream, target in ((process.stdout, output), (process.stderr, errors))
    ]
    for reader in readers:
        reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    for reader in readers:
        reader.join()
    if check and process.returncode:
        sys.exit(f"{' '.join(command)}\nexit {process.returncode}\n{errors[0]}")
    # kilobytes everywhere but on macOS
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak, resident), output[0]


def anonymous_memory(pid: int) -> int:
    """Return a process's RssAnon in bytes: its own memory, without files that it has mapped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    try:
        children = [
            int(text) for path in Path(f"/proc/{pid}/task").glob("*/children") for text in path.read_text().split()
        ]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def machine() -> str:
    """Return the machine and the versions, as one line of Markdown."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    packages = ("torch", "transformers", "accelerate", "onnxruntime", "scikit-learn")
    libraries = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, {libraries}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_section(title: str, text: str) -> None:
    """Put a section of `RESULTS.md` in place of the one of the same title, and print it."""
    path = ROOT / "benchmarks" / "RESULTS.md"
    found = path.read_text() if path.is_file() else "# Benchmark results\n\nWritten by the scripts beside this file.\n"
    head, *sections = found.split("\n## ")
    kept = [section for section in sections if not section.startswith(f"{title}\n")]
    new = f"{title}\n\n{text.strip()}\n"
    path.write_text("\n## ".join([head.rstrip("\n") + "\n", *(s.rstrip("\n") + "\n" for s in [*kept, new])]))
    print(f"## {new}")


def trainer_arguments(folder: Path, **settings: Any) -> Any:
    """Return transformers' TrainingArguments with everything but the training switched off."""
    from transformers import TrainingArguments

    defaults: dict[str, Any] = {
        "output_dir": str(folder), "report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True,
        "save_strategy": "no", "eval_strategy": "no", "dataloader_num_workers": 0,
    }  # fmt: skip
    return TrainingArguments(**{**defaults, **settings})


class Rows(list[dict[str, Any]]):
    """Rows as Trainer takes them: `input_ids`, `attention_mask`, `labels`."""

    column_names = ("input_ids", "attention_mask", "labels")


def trainer_rows(split: Any) -> Rows:
    return Rows(
        {"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"]), "labels": row["label_id"]}
        for row in split.features
    )
