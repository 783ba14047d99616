"""Where a run starts, by what lies in its folder."""

import json
from pathlib import Path

import pytest

from aumn.config.run_config import RunConfig
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.records import InputError
from aumn.runfolder.checkpoint import Checkpoint, ModelCard, save_checkpoint, save_model
from aumn.runfolder.folder import RunFolder, Status
from aumn.runtime.ranks import Ranks
from aumn.training.resume import Progress, find_start, open_shards
from tests.data.conftest import write_published
from tests.training.footprint_steps import CARD


def settings(folder: Path, steps: int = 40, **sections: dict[str, object]) -> RunConfig:
    run = {"folder": str(folder), "steps": steps}
    return RunConfig.model_validate(
        {"data": {"shards": "shards"}, "run": run, "tracking": {"enabled": False}, **sections}
    )


def leave_checkpoint(config: RunConfig, step: int, *, card: ModelCard = CARD, **facts: object) -> Path:
    progress = Progress(card, step, config=config.model_dump(mode="json"))
    checkpoint = Checkpoint(step, {}, card, {}, {**progress.facts(), "optimizer": {"groups": []}, **facts})
    return save_checkpoint(config.run.folder, checkpoint, keep_last=9)


def start(config: RunConfig, *, resume: bool = True):
    return find_start(config, CARD, Ranks(), resume=resume)


def test_another_number_of_steps_is_refused_where_the_rate_is_a_function_of_it(tmp_path):
    cosine = {"optimizer": {"schedule": "cosine"}}
    leave_checkpoint(settings(tmp_path, **cosine), 30)
    with pytest.raises(InputError, match=r"run\.steps: the run has 40, now 80"):
        start(settings(tmp_path, 80, **cosine))
    assert start(settings(tmp_path, **cosine)).progress.step == 30


def test_another_number_of_steps_is_taken_where_nothing_depends_on_it(tmp_path):
    leave_checkpoint(settings(tmp_path), 40, metrics_lines=4)
    found = start(settings(tmp_path, 80, batch={"micro_videos": 8}))
    assert (found.progress.step, found.lines, found.resumed) == (40, 4, True)


@pytest.mark.parametrize(
    ("fact", "where"),
    [
        ({"best": "high"}, "best"),
        ({"optimizer": {}}, "optimizer.groups"),
        ({"metrics_lines": None}, "metrics_lines"),
        ({"evaluation_due": []}, "evaluation_due"),
    ],
)
def test_facts_that_were_edited_are_told_by_name(fact, where, tmp_path):
    path = leave_checkpoint(settings(tmp_path), 40, **fact)
    with pytest.raises(InputError, match=rf"trainer.json is damaged or of another aumn \({where}: .*remove {path}, "):
        start(settings(tmp_path))


def test_a_launchers_next_attempt_goes_on_by_itself_and_another_launch_is_refused(tmp_path, monkeypatch):
    config = settings(tmp_path)
    RunFolder(tmp_path).write_status(Status(state="failed", launch="SLURM job 7 of the cluster", started_ms=5))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = start(config, resume=False)  # no checkpoint yet: from the beginning, and it is the same run
    assert (found.resumed, found.status.started_ms, found.progress.step) == (True, 5, 0)
    leave_checkpoint(config, 20)
    assert start(config, resume=False).progress.step == 20
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(InputError, match=r"already holds a run: pass --resume to go on with it, or name another"):
        start(config, resume=False)


def test_a_run_is_finished_when_its_status_says_so_and_its_model_is_there(tmp_path):
    config = settings(tmp_path)
    leave_checkpoint(config, 40)
    folder, done = RunFolder(tmp_path), Status(state="finished", published_step=40)
    save_model(tmp_path / "model", {}, CARD)
    for status in (Status(), Status(state="running", published_step=40), Status(state="finished", published_step=30)):
        folder.write_status(status)
        assert not start(config).finished
    folder.write_status(done)
    assert start(config).finished
    tracked = {"tracking": {"enabled": True, "model_name": "aumn"}}
    assert not start(settings(tmp_path, **tracked)).finished  # the registry does not have it
    (tmp_path / "model" / "model.json").unlink()
    assert not start(config).finished


def test_a_run_of_commit_0e01a02_goes_on(tmp_path):
    """It wrote run.json and no metrics; its checkpoints name its MLflow run and count no lines."""
    config = settings(tmp_path)
    record = {"launch": None, "tracking_run": "f00", "published_step": 40, "registered": None, "finished": True}
    (tmp_path / "run.json").write_text(json.dumps(record))
    save_model(tmp_path / "model", {}, CARD)
    leave_checkpoint(config, 40, tracking_run="f00")
    found = start(config)
    assert (found.progress.step, found.lines) == (40, 0)
    assert found.finished
    assert not start(settings(tmp_path, 80)).finished


class OneOfTwo(Ranks):
    """The second rank, to which the first one says what it was told to."""

    told: str

    def broadcast(self, _value: object) -> list[str]:
        return [self.told]


def test_every_rank_opens_the_version_that_the_run_began_with_and_a_new_run_the_newest(tmp_path):
    published = write_published(tmp_path / "published", {"training": ["a", "b", "c"]})
    out = tmp_path / "shards"
    identities = []
    for videos in ("ab", "abc"):
        some = {"database": {video: published.database[video] for video in videos}}
        published.annotations.write_text(json.dumps(some))
        pack(published.root, out, published.annotations, workers=1, append=bool(identities))
        identities.append(ShardSet.open(out).identity)
    config, said = settings(tmp_path / "run", data={"shards": str(out)}), []

    def opened(ranks: Ranks, *, resume: bool) -> str:
        return open_shards(config, Access(), ranks, resume=resume, say=said.append).identity

    assert opened(Ranks(), resume=False) == identities[1]
    leave_checkpoint(config, 20, card=CARD.model_copy(update={"dataset_identity": identities[1]}))
    assert opened(Ranks(), resume=True) == identities[1]
    assert not said
    leave_checkpoint(config, 30, card=CARD.model_copy(update={"dataset_identity": identities[0]}))
    assert opened(Ranks(), resume=True) == identities[0]
    assert said == [f"{out}: the set has grown since: this run goes on with the 2 videos that it began with."]
    second = OneOfTwo(1, 2)
    for second.told in identities:
        assert opened(second, resume=True) == second.told
    second.told = "0" * 16
    with pytest.raises(InputError, match=r"shards is not on rank 1 what it is on the first \(identity .*, not 0000"):
        opened(second, resume=True)
    (out / f"dataset-{identities[0]}.json").unlink()
    newest = open_shards(config, Access(), Ranks(), resume=True, say=said.append)
    card = CARD.model_copy(update={"dataset_identity": newest.identity})
    with pytest.raises(
        InputError, match=r"shards is not what .*step_00000030 was trained on \(identity .*: resume with"
    ):
        find_start(config, card, Ranks(), resume=True)
    assert len(said) == 1
