"""A run as the report reads it: its curves from its own folder, while it trains, and runs of the aumn before."""

import json
import math
import shutil
import threading
from pathlib import Path

import pytest

from aumn.records import InputError
from aumn.report.runs import open_run
from aumn.runfolder.checkpoint import last_checkpoint, read_checkpoint, read_model, save_checkpoint
from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import MetricsWriter
from tests.report.cases import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {}, (0.1, 0.2, 0.15))


def test_curves_are_those_of_the_folder_whatever_was_tracked(run):
    writer = MetricsWriter(run)
    writer.append(10, {"loss": 2.0, "rgb/total": math.inf})
    writer.append(20, {"loss": 1.0})
    writer.append(20, {"test/mAP/average": 0.5})
    writer.close()
    training = open_run(run).training()
    assert training.curves.keys() == {"loss", "rgb/total", "test/mAP/average"}
    assert training.curves["loss"] == {10: 2.0, 20: 1.0}
    assert math.isnan(training.curves["rgb/total"][10])
    assert training.note is None


def test_a_run_that_is_not_done_says_so(run):
    RunFolder(run).write_status(Status(state="stopped", step=10, steps=40))
    assert open_run(run).facts()["Run"] == f"{run}, step 10 of 40, stopped"


def test_a_run_without_metrics_says_that_there_are_none(run):
    assert open_run(run).training().note == f"{run} holds no metrics.jsonl, so there are no curves."


@pytest.mark.parametrize(("tracked", "where"), [("1f2e", "in MLflow alone: run 1f2e of "), (None, "nowhere.")])
def test_a_run_of_the_aumn_before_says_where_its_curves_are(run, tracked, where):
    (run / "run.json").write_text(json.dumps({"finished": True, "launch": None, "published_step": 10}))
    checkpoint = read_checkpoint(last_checkpoint(run))
    facts = {**checkpoint.trainer_facts, "tracking_run": tracked}
    shutil.rmtree(run / "checkpoints")
    save_checkpoint(run, type(checkpoint)(10, checkpoint.weights, checkpoint.card, {}, facts), keep_last=1)
    note = open_run(run).training().note
    assert note.startswith(f"This run's curves are {where}")
    assert "0e01a02" in note


def test_a_run_that_trains_is_read_while_its_checkpoints_come_and_go(run, tmp_path):
    """keep_checkpoints=1 and a checkpoint as often as the disk takes one: the newest is gone as soon as it is read."""
    checkpoint, ended = read_checkpoint(last_checkpoint(run)), threading.Event()

    def train() -> None:
        step = 10
        while not ended.is_set():
            step += 1
            kept = (checkpoint.weights, checkpoint.card, checkpoint.trainer_tensors, checkpoint.trainer_facts)
            save_checkpoint(run, type(checkpoint)(step, *kept), keep_last=1)

    training = threading.Thread(target=train)
    training.start()
    try:
        steps = []
        for number in range(20):
            found = open_run(run, tmp_path / f"copy{number}")
            assert read_model(found.model)[0]
            steps.append(found.step)
    finally:
        ended.set()
        training.join()
    assert steps == sorted(steps)
    assert steps[-1] > 10


def test_a_run_whose_only_checkpoint_is_damaged_is_refused_at_once(run):
    with (last_checkpoint(run) / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"No checkpoint in .* is whole"):
        open_run(run)
