"""Fixtures and settings that every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile(
    "soak", deadline=None, max_examples=5_000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def assets() -> Path:
    """Return the folder of large test models and footage, or skip with the reason."""
    folder = os.environ.get("EDGE_NODE_ASSETS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EDGE_NODE_ASSETS names no folder with the large test models and footage")
    return Path(folder)
