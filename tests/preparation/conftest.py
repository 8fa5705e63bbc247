"""The world in which the tests of the whole preparation work."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune.prepare
from tests.preparation.world import World


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A folder with a tiny model; pictures, which take most of the time of a small preparation, are left out."""
    monkeypatch.setattr(finetune.prepare, "draw_preparation", lambda report, folder: {})
    return World(tmp_path, tiny_model)
