from __future__ import annotations

import pytest

from tests.planning.world import Plans


@pytest.fixture(scope="package")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """Tiny trainings of every kind; their models and data are made once."""
    return Plans(tmp_path_factory.mktemp("plans"))
