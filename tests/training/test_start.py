"""Where a run starts, by what lies in its folder."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.data.shards.union import Union
from aumn.records import InputError
from aumn.runfolder.checkpoint import Checkpoint, ModelCard, save_checkpoint, save_model
from aumn.runfolder.folder import RunFolder, Status
from aumn.runtime.ranks import Ranks
from aumn.training.footprint import predict
from aumn.training.loop import Run, _agree
from aumn.training.resume import Progress, find_start, new_card, open_shards
from aumn.training.run import run_training
from aumn.training.validation import Validation
from tests.data.conftest import write_published
from tests.data.shards.test_union import pack_some
from tests.launching import python
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

    told: list[str]

    def broadcast(self, _value: object) -> list[str]:
        return self.told


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
    for identity in identities:
        second.told = [identity]
        assert opened(second, resume=True) == identity
    second.told = ["0" * 16]
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


def test_a_run_of_several_sets_opens_the_version_of_each_that_it_began_with(tmp_path):
    published = write_published(tmp_path / "published", {"training": ["a", "b", "c", "d"], "testing": ["e"]})
    places = [tmp_path / name for name in ("one", "two")]
    for place, videos in ((places[0], "ab"), (places[1], "ce")):
        pack_some(published, place, videos)
    data = {"shards": [str(place) for place in places], "subset": ["training", "testing"], "weights": [1, 1]}
    config, said = settings(tmp_path / "run", data=data), []
    begun = open_shards(config, Access(), Ranks(), resume=False, say=said.append)
    card = new_card(config, begun)
    assert (card.dataset, card.dataset_parts) == ("one+two", tuple(ShardSet.open(place).identity for place in places))
    path = leave_checkpoint(config, 20, card=card)
    assert "dataset_parts" in (path / "model.json").read_text()
    published.write_annotations()
    pack(published.root, places[1], published.annotations, workers=1, append=True)
    with pytest.raises(InputError, match=r"2 ids of videos \('a', 'b'\) are in several of"):
        open_shards(config, Access(), Ranks(), resume=False, say=said.append)
    assert not said
    shards = open_shards(config, Access(), Ranks(), resume=True, say=said.append)
    assert shards.identity == begun.identity
    assert said == [f"{places[1]}: the set has grown since: this run goes on with the 2 videos that it began with."]
    second = OneOfTwo(1, 2)
    second.told = [part.identity for part in begun.parts]
    assert open_shards(config, Access(), second, resume=True, say=said.append).identity == begun.identity
    second.told = [begun.parts[0].identity, "0" * 16]
    with pytest.raises(InputError, match=r"are in several of"):  # the first's version is not here, so the newest is
        open_shards(config, Access(), second, resume=True, say=said.append)
    turned = settings(tmp_path / "run", data=data | {"shards": data["shards"][::-1], "same_ids": "rename"})
    card = new_card(turned, open_shards(turned, Access(), Ranks(), resume=False, say=said.append))
    with pytest.raises(InputError, match=r"step_00000020 is of a run with other settings"):
        find_start(turned, card, Ranks(), resume=True)
    with pytest.raises(InputError, match=r"one and .*two is not what .*step_00000020 was trained on \(identity "):
        find_start(config, card, Ranks(), resume=True)


def test_the_map_of_a_run_of_several_sets_is_of_the_videos_of_all_by_their_names_there(tmp_path):
    published = write_published(tmp_path / "published", {"training": ["a", "b"], "testing": ["c", "d"]})
    for place in ("one", "two", "untimed"):
        if place == "two":
            jumps = [{"label": label, "segment": [1.0, 2.0]} for label in ("Jump", "Leap", "Bow")]
            published.database["a"]["annotations"] = [*jumps, {"label": "Leap", "segment": [4.0, 3.0]}]
        if place == "untimed":
            rows = ["video,label,start,end,subset,duration,fps", "c,Run,,,testing,10,25", "b,Jump,,,training,10,25"]
            csv = tmp_path / "gt.csv"
            csv.write_text("\n".join(rows))
            pack(published.root, tmp_path / place, csv, workers=1, name=place)
        else:
            pack_some(published, tmp_path / place, "abc" if place == "two" else "abd", on_bad="swap")
    data = {
        "shards": [str(tmp_path / place) for place in ("one", "two", "untimed")], "same_ids": "rename",
        "class_names": {"Leap": "Jump"}, "subset": ["testing", "training", "training"], "holdout_share": 0.999,
    }  # fmt: skip
    config = settings(tmp_path / "run", data=data, evaluation={"videos": "held_out"})
    shards = open_shards(config, Access(), Ranks(), resume=False, say=print)
    card = new_card(config, shards)
    held_out = Validation.of(config, shards, shards.indices(*config.data.subsets), card).ground_truth
    assert (held_out.videos, held_out.labels) == (["d", "two/a", "two/b"], ["Bow", "Jump"])
    assert held_out.untimed == {"untimed/b"}
    assert held_out.swapped == 1
    rows = zip(held_out.video_N, held_out.label_N, held_out.start_s_N, held_out.end_s_N, strict=True)
    assert sorted((held_out.videos[video], held_out.labels[label], *times) for video, label, *times in rows) == [
        ("d", "Jump", 1, 5.5), ("two/a", "Bow", 1, 2), ("two/a", "Jump", 1, 2), ("two/a", "Jump", 3, 4),
        ("two/b", "Jump", 1, 3.5),
    ]  # fmt: skip
    followed = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"videos": "testing"})})
    testing = Validation.of(followed, shards, [], card)
    assert shards.ids(testing.indices) == ["d", "two/c", "untimed/c"]
    assert (testing.ground_truth.videos, testing.ground_truth.untimed) == (["d", "two/c"], {"untimed/c"})
    alone = config.model_copy(update={"data": config.data.model_copy(update={"shards": tmp_path / "untimed"})})
    with pytest.raises(
        InputError, match=r"untimed says of 1 videos in subset 'testing' .* such videos can be trained on"
    ):
        Validation.of(followed.model_copy(update={"data": alone.data}), ShardSet.open(tmp_path / "untimed"), [], card)
    snippets = config.data.model_copy(update={"snippets": None})
    whole = predict(config.model_copy(update={"data": snippets}), ranks=1, zero=0, num_classes=None, widths=None)
    assert whole.snippets == 4  # a's, the longest of those to train on


def test_a_damaged_video_that_comes_several_times_in_a_step_is_left_out_as_often(tmp_path):
    published = write_published(tmp_path / "published", {"training": ["a", "b", "c", "d"]})
    one, two = pack_some(published, tmp_path / "one", "abc"), pack_some(published, tmp_path / "two", "d")
    tar = two.tar_of(0)
    tar.write_bytes(tar.read_bytes().replace(published.features["d"]["rgb"].astype("float16").tobytes(), bytes(40)))
    how = {"global_videos": 4, "micro_videos": 2, "snippets": 3, "seed": 0, "rank": 0, "world_size": 1}
    shards = Union([one, two], {}, rename=True)
    loader = TrainingLoader(shards, range(4), weights=[1, 3], damaged_limit=1, **how)
    step, said = loader.load(0), []
    assert (step.global_videos, step.damaged.keys()) == (4, {"two/d"})
    run = Run(settings(tmp_path), SimpleNamespace(ranks=Ranks()), loader, None, None, say=said.append)
    agreed, _ = _agree(run, step)
    assert [len(batch.videos) for batch in agreed.micro_batches] in ([1, 0], [0, 1])
    assert agreed.global_videos == 1
    assert len(said) == len(run.left_out) == 1


TRAIN = """
import sys
from aumn.cli import main
from aumn.runtime import preemption
heavy = ("torch._dynamo", "torch._inductor", "sympy", "pandas", "mlflow", "deepspeed", "scipy")
preemption.leave = lambda code: print(code, [name for name in heavy if name in sys.modules])
main()
"""


def test_a_run_starts_without_what_its_steps_do_not_need(tmp_path):
    """Each of these takes as long to import as a good part of the start, which every restart waits for."""
    published = write_published(tmp_path / "published", {"training": ["a", "b", "c"]})
    published.write_annotations()
    pack(published.root, tmp_path / "shards", published.annotations, workers=1)
    config = tmp_path / "run.yaml"
    small = {"embedding_width": 8, "units": 2, "bottleneck": 2}
    text = settings(tmp_path / "run", 2, data={"shards": str(tmp_path / "shards")}, model=small)
    config.write_text(yaml.safe_dump(text.model_dump(mode="json")))
    ended = python("-c", TRAIN, "train", config)
    assert ended.stdout == "0 []\n", ended.stderr
    assert (tmp_path / "run" / "model" / "model.json").exists()


def test_an_attempt_is_waited_for_longer_than_its_first_rank_may_wait_for_ranks_that_are_cut_off(tmp_path, monkeypatch):
    """Else the next one is refused with code 2, and nobody starts it again; its other ranks wait along."""
    published = write_published(tmp_path / "published", {"training": ["a", "b", "c"]})
    published.write_annotations()
    pack(published.root, tmp_path / "shards", published.annotations, workers=1)
    limits: list[float] = []
    monkeypatch.setattr(Ranks, "wait_at_most", lambda _ranks, seconds: limits.append(seconds))
    monkeypatch.setattr(RunFolder, "writing", lambda _folder, _launch, seconds: limits.append(seconds) or nullcontext())
    monkeypatch.setattr("aumn.training.run.find_start", lambda *_, **__: SimpleNamespace(finished=True))
    config = settings(tmp_path / "run", data={"shards": str(tmp_path / "shards")}, model={"units": 2})
    run_training(config, Ranks(rank=0), resume=False, say=lambda _: None, advance=lambda *_: None)
    others_s, first_s, start_s = limits
    assert 600 + 30 < first_s < others_s - 599
    assert start_s == 600  # again, once the folder is the first rank's
