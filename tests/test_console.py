"""Progress on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import console
from finetune.artifacts import Run
from finetune.console import ConsoleProgress, PlainBar
from tests.conftest import ROOT


def test_a_log_gets_plain_lines_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(float(second) for second in range(4, 44, 4))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    bar = PlainBar("training", 10, 0, started=0.0, last=0.0)
    for step in range(10):
        bar.advance(1, f"loss {1 / (step + 1):.2f}")
    assert capsys.readouterr().err.splitlines() == [
        "training 3/10 loss 0.33 28 s left",
        "training 6/10 loss 0.17 16 s left",
        "training 9/10 loss 0.11 4 s left",
        "training 10/10 loss 0.10 0 s left",
    ]


def test_details_are_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleProgress().detail("small print")
    assert capsys.readouterr().err == ""
    ConsoleProgress(verbose=True).detail("small print")
    assert capsys.readouterr().err == "small print\n"


def test_a_terminal_gets_a_bar_with_the_text_beside_it_and_notes_above_it() -> None:
    code = (
        "from finetune.console import ConsoleProgress\n"
        "p = ConsoleProgress()\n"
        "with p.bar('training', 4) as bar:\n"
        "    for n in range(4): bar.advance(1, f'loss [{n}]'); p.note(f'note [{n}]')\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=follower, stdout=subprocess.DEVNULL, env=environment
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode()
    assert "4/4" in text
    assert "loss [3]" in text, "brackets in the text are no markup"
    assert "note [0]" in text


def test_text_from_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleProgress().note("columns: \x1b[31mbody\x07, intent\nnext line")
    assert capsys.readouterr().err == "columns: \ufffd[31mbody\ufffd, intent\nnext line\n"


def test_a_run_is_printed_with_its_diagnosis_and_an_older_one_without(capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"name": "overfitting", "step": 1200, "evidence": "a\x1bb rose", "change": ["more rows", "fewer steps"]}
    found = {
        "best_step": 3, "last_step": 4, "stopped_because": "all epochs done", "metrics": {"loss": 0.5},
        "parameters": {"total": 10, "trainable": 5},
    }  # fmt: skip
    for diagnosis in ({}, {"diagnosis": [finding, {"name": "fine", "step": None, "evidence": "well", "change": []}]}):
        run = Run(Path("nowhere"))
        run.__dict__["manifest"] = {**found, **diagnosis}
        console.print_run(run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == lines[2:4]
    assert lines[4:] == [
        "curves     overfitting from step 1,200: a\ufffdb rose",
        "           to change: more rows; fewer steps",
        "curves     fine: well",
    ]
