"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout. Absent: skip, or fail where AUMN_REQUIRE_SHARED is set."""
    folder = Path(os.environ.get("AUMN_SHARED", REPOSITORY.parent / "shared")) / "data"
    if folder.is_dir():
        return folder
    if os.environ.get("AUMN_REQUIRE_SHARED"):
        pytest.fail(f"AUMN_REQUIRE_SHARED is set, but there is no {folder}")
    pytest.skip(f"needs the real data in {folder}; set AUMN_SHARED to the folder that holds data/ and tools/")


@pytest.fixture(scope="session")
def shared_tools(shared_data: Path) -> Path:
    """The scripts that make benchmarks of the real data."""
    return shared_data.parent / "tools"
