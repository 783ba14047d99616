"""aumn as a wheel, away from its repository: what it brings along, and what `aumn init` makes of it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("aumn", "configs", "jobs", "slurm", "pyproject.toml", "README.md", "LICENSE")


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False)


def succeed(*argv: object, cwd: Path) -> str:
    done = run(*argv, cwd=cwd)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of an environment's programs: aumn from a wheel, made of a source distribution; the rest is shared."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run(["cp", "-a", *(REPOSITORY / name for name in SOURCES), root], check=True)
    succeed(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('.')", cwd=root)
    offline = ("--quiet", "--no-deps", "--no-index")
    (source,) = root.glob("*.tar.gz")
    succeed(sys.executable, "-m", "pip", "wheel", *offline, "--no-build-isolation", source, cwd=root)
    succeed(sys.executable, "-m", "venv", "--without-pip", root / "venv", cwd=root)
    (site,) = (root / "venv").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = root.glob("*.whl")
    succeed(sys.executable, "-m", "pip", "--python", root / "venv", "install", *offline, wheel, cwd=root)
    assert (site / "aumn" / "py.typed").exists()
    return root / "venv" / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_brings_configurations_jobs_and_batch_scripts(installed, tmp_path):
    succeed(installed / "aumn", "init", "mine", cwd=tmp_path)
    for part in ("configs", "jobs", "slurm"):
        laid_out = {path.name: path.read_text() for path in (tmp_path / "mine" / part).iterdir()}
        assert laid_out == {path.name: path.read_text() for path in (REPOSITORY / part).iterdir()}
    shown = succeed(installed / "aumn", "submit", "jobs/thumos14.yaml", "--dry-run", cwd=tmp_path / "mine")
    assert f"{tmp_path}/mine/slurm/train.sbatch configs/thumos14.yaml" in shown

    shutil.rmtree(tmp_path / "mine" / "slurm")  # a folder of one's own need not have the scripts
    shown = succeed(installed / "aumn", "submit", "jobs/thumos14.yaml", "--dry-run", cwd=tmp_path / "mine")
    (script,) = (word for word in shown.split() if word.endswith("/train.sbatch"))
    assert Path(script).read_text() == (REPOSITORY / "slurm" / "train.sbatch").read_text()

    refused = run(installed / "aumn", "init", "mine", cwd=tmp_path)  # nothing is overwritten
    assert refused.returncode == 2
    assert refused.stderr == "aumn: mine/configs, mine/jobs exists already: name another folder, or move it away.\n"
    assert not (tmp_path / "mine" / "slurm").exists()
