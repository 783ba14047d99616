"""Jobs without SLURM: `--local` runs the same steps here, and submitting says what is missing."""

import re

import pytest
import yaml

from tests.launching import aumn, succeed

pytestmark = pytest.mark.timeout(900)

CONFIG = {
    "data": {"shards": "shards", "snippets": 24},
    "model": {"embedding_width": 16, "units": 3, "bottleneck": 4},
    "batch": {"global_videos": 8},
    "run": {"folder": "unused", "steps": 2},
    "tracking": {"enabled": False},
}
STEPS = {
    "pack": {"run": "pack {features} shards --annotations {features}/gt.json"},
    "train": {
        "needs": ["pack"],
        "run": "train tiny.yaml run.folder={folder}/{point}",
        "sweep": {"axes": {"which": {"good": {}, "broken": {"data.subset": "trening"}}}},
    },
    "localize": {
        "needs": ["train"],
        "run": "localize {folder}/good/model shards --subset testing --out {folder}/found",
    },
    "aside": {"needs": ["pack"], "run": "synth {folder}/more --videos 3 --classes 2 --width 4"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    succeed(aumn("synth", root / "f $(touch pwned)", "--videos", 12, "--classes", 2, "--width", 8, cwd=root))
    (root / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    job = {"settings": {"features": "f $(touch pwned)"}, "tracking": {"enabled": False}, "steps": STEPS}
    (root / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", **job}, sort_keys=False))
    return root


def test_without_slurm_one_sentence_says_what_is_missing_and_nothing_is_left(place):
    refused = aumn("submit", "mine.yaml", cwd=place, PATH="/nowhere")
    assert refused.returncode == 2
    assert refused.stderr.startswith("aumn: sbatch, squeue, scancel not found on PATH: ")
    assert "give --local to run the steps on this machine" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (place / "runs").exists()
    assert not (place / "mlflow.db").exists()


@pytest.mark.slow
def test_local_runs_the_steps_here_names_what_failed_and_goes_on_where_it_stopped(place):
    """A failing point stops no other point and no step that does not need it; what is done is not done again.

    Another job does not take over the folder.
    """
    done = aumn("submit", "mine.yaml", "--local", cwd=place, timeout_s=400)
    assert done.returncode == 2
    said = done.stderr
    assert f"train[good]: 1 rank, log in {place}/runs/jobs/mine/logs/train.0.log\ntrain[good]: done" in said
    assert re.search(r"train\[broken\]: FAILED with exit code 2: aumn: .*trening", said), said
    assert "localize: left out, since train failed" in said
    assert "aside: done" in said
    assert "aumn: train[broken], localize failed or could not run" in said
    assert "steps 0 to 2" in (place / "runs/jobs/mine/logs/train.0.log").read_text()
    assert not list(place.rglob("pwned"))
    again = aumn("submit", "mine.yaml", "--local", cwd=place, timeout_s=400).stderr
    assert "pack" not in again
    assert "train[good]" not in again
    assert "train[broken]: FAILED" in again
    table = aumn("jobs", "runs/jobs/mine", cwd=place)
    assert "train[broken] failed" in table.stderr
    assert re.search(r"train\[good\] +done", table.stdout)
    assert re.search(r"localize +waiting", table.stdout)
    refused = aumn("submit", "mine.yaml", "--local", "--set", "steps.pack.run=pack x y", cwd=place)
    assert refused.returncode == 2
    assert "runs/jobs/mine holds a job whose steps differ in pack" in refused.stderr
