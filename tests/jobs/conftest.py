"""A real SLURM cluster for the tests of a module."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.jobs.slurm_cluster import PROGRAMS, Cluster, cluster


def require_slurm() -> None:
    """Not installed: skip, or fail where AUMN_REQUIRE_SLURM is set."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        text = f"needs root and SLURM, which `make install-slurm` installs; missing: {', '.join(missing) or 'root'}"
        (pytest.fail if os.environ.get("AUMN_REQUIRE_SLURM") else pytest.skip)(text)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """Four nodes on this machine."""
    require_slurm()
    with cluster() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        yield found
