"""`aumn localize` of a subset: on disks that refuse one rank, and of a run's folder."""

import re
import shutil

import pytest

from aumn.inference.detections import detections_of, read_detections
from aumn.records import InputError
from tests.launching import aumn, succeed, torchrun
from tests.refusing import BrokenDisk, FullDisk
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A trained run of a few steps, and its shard set."""
    tiny = Tiny(tmp_path_factory.mktemp("localize"))
    succeed(tiny.train("run", "run.steps=6", "evaluation.videos=null"))
    return tiny


def command(tiny, model, *options):
    return ("localize", model, tiny.shards, "--subset", "testing", *options)


def on_two_ranks(tiny, out, *options, environment):
    arguments = command(tiny, "run/model", "--out", out, *options)
    return torchrun(2, "-m", "aumn", *arguments, cwd=tiny.root, environment=environment)


def test_a_disk_that_refuses_one_rank_ends_all_with_its_sentence(tiny, tmp_path):
    disk = BrokenDisk(tmp_path / "disk", "write")
    out = tmp_path / "disk" / "found"
    disk.refuse(0)
    only_rank_1 = {"BROKEN_FOLDER": str(out.with_name(".found.partial") / ".part-00001")}
    ended = on_two_ranks(tiny, out, environment=disk.environment | only_rank_1)
    disk.close()
    assert_one_sentence(ended, rf"aumn: {out} cannot be written: Input/output error\. Free space, mend its folder, or")
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_full_disk_ends_all_ranks_with_one_sentence(tiny, tmp_path):
    disk = FullDisk(tmp_path / "disk")
    if not disk._is_mounted:
        pytest.skip("mounting is not permitted")
    out = tmp_path / "disk" / "found"
    disk.refuse(0)
    ended = on_two_ranks(tiny, out, "--scores", environment=disk.environment)
    disk.close()
    assert_one_sentence(ended, rf"aumn: {out} cannot be written: No space left on device\. Free space")


def assert_one_sentence(ended, sentence):
    assert ended.returncode == 1  # torchrun's own; the ranks' are in its report
    assert re.findall(r"exitcode *: (\d+)", ended.stderr) == ["2"] * ended.stderr.count("exitcode")
    assert len(re.findall(sentence, ended.stderr)) == 1, ended.stderr
    assert ended.stderr.count("Traceback") == 1, ended.stderr  # torchrun's own


def test_a_runs_folder_stands_for_its_final_model_and_its_only_detections(tiny):
    said = succeed(aumn(*command(tiny, "run"), cwd=tiny.root)).stdout
    assert re.match(r"run/detections/testing: \d+ detections by run/model in subset testing of ", said)
    found, metadata = read_detections(tiny.root / "run" / "detections" / "testing")
    assert len(found) > 0
    assert metadata["model"] == "run/model"
    evaluate = ("--annotations", "features/gt.json", "--protocol", "thumos14")
    assert (
        "run/detections/testing, subset testing of" in succeed(aumn("evaluate", "run", *evaluate, cwd=tiny.root)).stdout
    )
    again = aumn(*command(tiny, "run"), cwd=tiny.root)
    assert again.returncode == 2
    assert "run/detections/testing already exists: name a new folder" in again.stderr


def test_detections_of_a_run_are_never_guessed(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run is a run that holds no detections in .*run aumn localize .*run SHARDS"):
        detections_of(run)
    for subset in ("testing", "validation"):
        (run / "detections" / subset).mkdir(parents=True)
    with pytest.raises(InputError, match=r"several detections: name one of .*/testing, .*/validation\."):
        detections_of(run)
    assert detections_of(run, "testing") == run / "detections" / "testing"
    with pytest.raises(InputError, match=r"holds no detections of subset 'tasting'"):
        detections_of(run, "tasting")
    shutil.rmtree(run / "checkpoints")
    assert detections_of(run) == run
