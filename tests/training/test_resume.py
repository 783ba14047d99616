"""Runs that are stopped, killed and started again, in real processes: the final model is the undisturbed run's.

They are of two shard sets with weights, so that all of this holds of mixtures; one set alone is the simpler case.
"""

import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from torch.testing import assert_close

from aumn.runfolder.checkpoint import read_model
from aumn.runfolder.folder import RunFolder
from aumn.runfolder.metrics import read_metrics
from tests.launching import succeed
from tests.stores import faulty
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With an undisturbed run on two ranks, `whole`."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"), mixed=True)
    succeed(tiny.train("whole", ranks=2))
    return tiny


@pytest.mark.slow
def test_whichever_rank_is_killed_torchrun_restarts_end_in_the_same_model_and_one_gapless_tracked_run(tiny):
    tracked = ("tracking.enabled=true", "tracking.uri=sqlite:///mlflow.db")
    with tiny.start("killed", *tracked, ranks=2, options=["--max-restarts", 3]) as run:
        run.wait_for("step 3/60")  # before the first checkpoint, unless the machine is quicker than we
        run.kill(rank=1)
        run.wait_for(r"(?s)steps 0 to.*steps \d+ to.*step 24/60")
        run.kill(rank=0)
        run.wait_for(r"(?s)steps 0 to.*steps \d+ to.*steps \d\d to.*model: ")  # all steps are done, not finished
        run.kill(rank=0)
        ended = run.finish()
    assert ended.returncode == 0, ended.stderr
    assert "is finished: step 60 of 60" in ended.stderr or "steps 60 to 60" in ended.stderr
    assert tiny.model("killed") == tiny.model("whole")
    told = re.findall(r"back after ([\d.]+) s: (.*)", ended.stderr)
    assert len(told) >= 2  # the last restart may have had no step to take
    for seconds, parts in told:
        assert re.fullmatch(r"(detect \S+, )?requeue \S+, start \S+, rendezvous \S+, load \S+, first step \S+", parts)
        assert abs(sum(map(float, re.findall(r"[\d.]+", parts))) - float(seconds)) < 0.4  # they are rounded
    recovery = RunFolder(tiny.root / "killed").status().recovery
    assert recovery == {} or {"requeue", "start", "rendezvous", "load", "first_step"} <= recovery.keys()
    client = MlflowClient(f"sqlite:///{tiny.root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("aumn").experiment_id])
    assert run.info.status == "FINISHED"
    for name, steps in (("loss", range(3, 61, 3)), ("held_out/mAP/average", range(10, 61, 10))):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [*steps]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_run_goes_on_with_the_same_or_another_number(tiny):
    with tiny.start("stopped", ranks=2) as run:
        run.wait_for("step 24/60")
        run.kill(signal.SIGUSR1, rank=1)
        ended = run.finish()
    (path, step) = re.search(r"aumn: Stopped by SIGUSR1: (\S+) holds step (\d+) of 60; go on", ended.stderr).groups()
    assert ended.stderr.count("Stopped by") == 1
    assert ended.stderr.count("exitcode  : 75") == 2
    assert int(step) == tiny.steps("stopped")[-1] == int(path[-8:]) >= 24
    shutil.copytree(tiny.root / "stopped", tiny.root / "alone", symlinks=True)
    with tiny.grown():
        resumed = succeed(tiny.train("stopped", "--resume", ranks=2))
        succeed(tiny.train("alone", "--resume"))
    assert resumed.stderr.count("the set has grown since: this run goes on with the 36 videos that it began with.") == 1
    assert tiny.model("stopped") == tiny.model("whole")
    expected, found = (read_model(tiny.root / run / "model")[0] for run in ("whole", "alone"))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_store_that_is_gone_ends_a_run_with_a_checkpoint_from_which_it_goes_on(tiny):
    with faulty(tiny.shards) as server:
        server.cut_after = 3_000
        settings = [
            f"data.shards=[{server.address}, {tiny.other}]",
            "data.read=range",
            "data.store_away_s=2",
            "data.cache.size_gb=1",
        ]
        with tiny.start("Remote", *settings, ranks=2) as run:
            run.wait_for("step 12/60")
            server.away = True
            ended = run.finish()
        assert ended.returncode == 1, ended.stderr
        assert ended.stderr.count("exitcode  : 2") == 2
        (told,) = re.findall(rf"aumn: {server.address} has not answered for .*", ended.stderr)
        path, step = re.search(r"(\S+) holds step (\d+) of 60; go on by the same command with --resume", told).groups()
        assert int(step) == tiny.steps("Remote")[-1] == int(path[-8:]) >= 12
        server.away = False
        succeed(tiny.train("Remote", "--resume", *settings, ranks=2))
    assert tiny.model("Remote") == tiny.model("whole")


@pytest.mark.slow
def test_damaged_videos_are_left_out_of_their_steps_on_all_ranks_alike(tiny):
    shards = tiny.root / "damaged"
    shutil.copytree(tiny.shards, shards)
    tar = shards / "training-000000.tar"
    content = bytearray(tar.read_bytes())
    rows = pq.read_table(shards / "manifest.parquet").to_pylist()
    damaged = [row for row in rows if row["subset"] == "training"][3:5]
    for row in damaged:
        content[row["rgb_offset"] + 200] ^= 1
    tar.write_bytes(content)
    settings = [
        f"data.shards={shards}",
        "run.steps=9",
        "data.on_damage=skip",
        "data.weights=null",
        "data.same_ids=refuse",
        "data.holdout_share=0",
        "evaluation.videos=null",
    ]
    for run, ranks in (("skipped2", 2), ("skipped1", 1)):
        ended = succeed(tiny.train(run, *settings, ranks=ranks))
        for row in damaged:
            assert ended.stderr.count(f"{row['id']} is left out of step ") == 1
    expected, found = (read_model(tiny.root / run / "model")[0] for run in ("skipped1", "skipped2"))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ended = succeed(tiny.train("singly", *settings, "batch.global_videos=1", "run.steps=24"))
    assert ended.stderr.count("is passed over: all its videos are damaged.") == 2
    refused = tiny.train("refused", *settings, "data.damage_limit=1", ranks=2)
    assert "2 videos are damaged, and data.damage_limit=1 allows no more: fetch or pack" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_stopped_rank_is_found_by_the_step_timeout_and_the_run_restarted(tiny):
    limits = ("run.step_timeout_s=10", "run.start_timeout_s=30")  # the signal may come in an evaluation
    with tiny.start("hung", *limits, ranks=2, options=["--max-restarts", 1]) as run:
        run.wait_for("step 15/60")
        run.kill(signal.SIGSTOP, rank=1)
        stopped_s = time.monotonic()
        run.wait_for(r"(?s)steps 0 to.*steps [1-9]\d* to")
        took_s = time.monotonic() - stopped_s
        ended = run.finish()
    assert ended.returncode == 0, ended.stderr
    assert 10 < took_s < 150  # torchrun gives a rank that hears nothing 30 s to end
    told = r"another rank has not answered for 10 s \(run.step_timeout_s\)|Another rank has ended, or does not answer"
    assert len(re.findall(told, ended.stderr)) == 1
    assert tiny.model("hung") == tiny.model("whole")


@pytest.mark.slow
def test_stopped_at_any_moment_again_and_again_a_process_alone_ends_in_the_same_model(tiny):
    """Evaluating takes most of the time here, so most signals come in the midst of it."""
    settings = ["run.steps=8", "evaluation.every=1", "run.checkpoint_every=3", "engine.precision=fp16"]
    settings += ["evaluation.videos=training", "data.holdout_share=0"]
    succeed(tiny.train("undisturbed", *settings))
    resume, broken_off = [], 0
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]:
        with tiny.start("signals", *settings, *resume) as run:
            run.wait_for(r"step \d: mAP")
            run.kill(number)
            ended = run.finish()
        assert ended.returncode == (130 if number == signal.SIGINT else 75), ended.stderr
        assert "Traceback" not in ended.stderr
        assert f"Stopped by {number.name}: " in ended.stderr
        last = tiny.root / "signals" / "checkpoints" / f"step_{tiny.steps('signals')[-1]:08d}"
        broken_off += json.loads((last / "trainer.json").read_text())["evaluation_due"]
        resume = ["--resume"]
    assert broken_off
    succeed(tiny.train("signals", *settings, "--resume"))
    assert tiny.model("signals") == tiny.model("undisturbed")


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_finished_and_a_rank_alone_ends_with_torchrun(tiny):
    settings = ["optimizer.schedule=constant", "loss.pseudo_labels=0", "run.checkpoint_every=1000"]
    succeed(tiny.train("longer", "run.steps=20", *settings))
    status = RunFolder(tiny.root / "longer").status
    assert (status().state, status().published_step) == ("finished", 20)
    with tiny.start("longer", "--resume", *settings, options=["--max-restarts", 1]) as run:
        run.wait_for("step 24/60")
        assert status().state == "running"
        rank = run.ranks()[0]
        run.kill()
        run.process.wait(10)
        deadline_s = time.monotonic() + 30
        while Path(f"/proc/{rank}").exists():
            assert time.monotonic() < deadline_s, "the rank outlives its launcher"
            time.sleep(0.1)
    shutil.rmtree(tiny.root / "longer" / "checkpoints")
    refused = tiny.train("longer", "--resume", *settings)
    assert refused.returncode == 2
    assert "holds a finished model and no checkpoint, so there is nothing to go on from: use" in refused.stderr


@pytest.mark.slow
def test_a_run_of_commit_0e01a02_goes_on_and_ends_in_the_same_model(tiny):
    """Its layout, made by hand: run.json, no other file beside the checkpoints, which know no lines of metrics."""
    settings = ["run.steps=9", "run.log_every=1", "evaluation.every=4", "run.keep_checkpoints=9"]
    succeed(tiny.train("newer", *settings))
    older = tiny.root / "older"
    shutil.copytree(tiny.root / "newer" / "checkpoints" / "step_00000007", older / "checkpoints" / "step_00000007")
    trainer = older / "checkpoints" / "step_00000007" / "trainer.json"
    facts = json.loads(trainer.read_text())
    before = hashlib.sha256(trainer.read_bytes()).hexdigest()
    assert facts.pop("metrics_lines") == 8
    trainer.write_text(json.dumps(facts | {"tracking_run": None}))
    sums = trainer.with_name("SHA256SUMS")
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(trainer.read_bytes()).hexdigest()))
    record = {"launch": None, "tracking_run": None, "published_step": 0, "registered": None, "finished": False}
    (older / "run.json").write_text(json.dumps(record))
    succeed(tiny.train("older", *settings, "--resume"))
    assert tiny.model("older") == tiny.model("newer")
    assert [line["step"] for line in read_metrics(older)] == [8, 8, 9, 9]
    assert "older is finished: step 9 of 9" in succeed(tiny.train("older", *settings, "--resume")).stderr
