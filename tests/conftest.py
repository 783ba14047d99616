"""Fixtures that several test folders share."""

import os
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST = ("real/test_benchmarks.py", "jobs/test_slurm.py", "training/test_resume.py", "runfolder/test_saving.py")
"""Files that take minutes; begun last, they would keep one worker while the others have nothing left to do."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads would spin, workers' against each other's
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs, and in whatever those start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; see the Makefile's `test`."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


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
