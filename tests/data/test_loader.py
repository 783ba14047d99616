"""Batches as a function of (seed, step): each video once an epoch, and the same data however the work is cut."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aumn.data import loader as loader_module
from aumn.data.loader import TrainingLoader, draw_snippets, split_holdout, whole_videos
from aumn.data.settings import DataSettings
from aumn.data.shards.shard_set import ShardSet
from aumn.records import Batch, InputError
from tests.data.conftest import Published, write_published

NUM_VIDEOS = 11  # no step size below divides it
LENGTHS = (4, 2, 7, 1, 9)
CUTS = [(1, None), (1, 1), (1, 3), (2, None), (2, 3), (3, 1), (3, 2), (6, 1)]  # world size, micro_videos
TRAINING = [f"video_{number:02d}" for number in range(NUM_VIDEOS)]
TESTING = ["x", "y", "z", "w"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("set") / "published"
    return write_published(folder, {"training": TRAINING, "testing": TESTING}, LENGTHS)


@pytest.fixture(scope="module")
def shards(source: Published) -> ShardSet:
    return source.open()


def relabel(source: Published, out: Path, **labels: list[str]) -> ShardSet:
    """The set with other labels for some of its videos."""
    database = source.database | {
        video: source.database[video]
        | {"annotations": [{"label": label, "segment": [0.0, 2.0]} for label in labels[video]]}
        for video in labels
    }
    relabelled = Published(source.root, source.features, database)
    relabelled.write_annotations()
    relabelled.pack(out)
    return ShardSet.open(out)


def make_loader(shards: ShardSet, **options: Any) -> TrainingLoader:
    defaults = {"global_videos": 6, "micro_videos": None, "snippets": 5, "seed": 3, "rank": 0, "world_size": 1}
    return TrainingLoader(shards, shards.indices("training"), **defaults | options)


def names(batch: Batch) -> list[str]:
    return [video.id for video in batch.videos]


def batches_of_all_ranks(shards: ShardSet, step: int, world_size: int, **options: Any) -> list[Batch]:
    steps = [make_loader(shards, rank=rank, world_size=world_size, **options).load(step) for rank in range(world_size)]
    videos = [video for one in steps for batch in one.micro_batches for video in names(batch)]
    assert {one.global_videos for one in steps} == {len(videos)}
    assert len({len(one.micro_batches) for one in steps}) == 1, "every rank takes part in every pass"
    return [batch for one in steps for batch in one.micro_batches]


def content(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """All that a model could see of each video, to the bit."""
    return [
        (video.id, seed, labels_C, [features_BTD[i, :length].tolist() for features_BTD in batch.features.values()])
        for batch in batches
        for i, (video, length, seed, labels_C) in enumerate(
            zip(batch.videos, batch.lengths, batch.seeds, batch.labels_BC.tolist(), strict=True)
        )
    ]


def epoch_videos(shards: ShardSet, epoch: int, **options: Any) -> list[str]:
    loader = make_loader(shards, **options)
    steps = [loader.load(epoch * loader.steps_per_epoch + position) for position in range(loader.steps_per_epoch)]
    assert all(step.epoch == epoch for step in steps)
    return [video for step in steps for batch in step.micro_batches for video in names(batch)]


def stored(source: Published, video: str, stream: str) -> torch.Tensor:
    """Features are stored as float16."""
    return torch.from_numpy(source.features[video][stream].astype(np.float16))


def test_an_epoch_shows_each_video_once_in_an_order_of_seed_and_epoch_alone(shards: ShardSet) -> None:
    order = epoch_videos(shards, epoch=2)
    assert order != sorted(order) == TRAINING
    assert order == epoch_videos(shards, epoch=2, snippets=None, micro_videos=2)
    assert order == epoch_videos(shards, epoch=2, global_videos=4)
    for other in (epoch_videos(shards, epoch=3), epoch_videos(shards, epoch=2, seed=4)):
        assert order != other
        assert sorted(other) == TRAINING


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize(("world_size", "micro_videos"), CUTS)
@pytest.mark.parametrize("snippets", [5, None])
def test_a_step_is_the_same_to_the_bit_however_it_is_cut(
    shards: ShardSet, step: int, world_size: int, micro_videos: int | None, snippets: int | None
) -> None:
    whole = content(batches_of_all_ranks(shards, step, 1, snippets=snippets))
    cut = content(batches_of_all_ranks(shards, step, world_size, micro_videos=micro_videos, snippets=snippets))
    assert cut == whole
    assert len(whole) == (6 if step % 2 == 0 else 5)


def test_micro_batches_are_as_even_as_can_be_and_an_empty_one_keeps_its_shape(shards: ShardSet) -> None:
    batches = batches_of_all_ranks(shards, 1, 3, micro_videos=1)
    assert [len(batch.videos) for batch in batches] == [1, 1, 1, 1, 1, 0]
    for snippets in (5, None):
        empty = make_loader(shards, rank=2, world_size=3, micro_videos=1, snippets=snippets).load(1).micro_batches[1]
        assert (empty.videos, empty.lengths, empty.seeds) == ((), (), ())
        assert {stream: tuple(f.shape) for stream, f in empty.features.items()} == {"rgb": (0, 1, 5), "flow": (0, 1, 3)}
        assert empty.mask_BT.shape == (0, 1)
        assert empty.labels_BC.shape == (0, 2)


def test_a_set_smaller_than_a_step_is_a_step_an_epoch(shards: ShardSet) -> None:
    loader = make_loader(shards, global_videos=32, world_size=2, micro_videos=4, rank=1)
    assert loader.steps_per_epoch == 1
    step = loader.load(4)
    assert (step.index, step.epoch, step.global_videos) == (4, 4, NUM_VIDEOS)
    assert [len(batch.videos) for batch in step.micro_batches] == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_snippet_padded_to_the_longest(shards: ShardSet, source: Published, dtype: torch.dtype) -> None:
    (batch,) = make_loader(shards, snippets=None, dtype=dtype).load(0).micro_batches
    longest = max(len(source.features[video]["rgb"]) for video in names(batch))
    assert batch.mask_BT.shape == (6, longest)
    for i, video in enumerate(names(batch)):
        length = len(source.features[video]["rgb"])
        assert batch.lengths[i] == length
        assert batch.mask_BT[i].tolist() == [True] * length + [False] * (longest - length)
        for stream, features_BTD in batch.features.items():
            assert features_BTD.dtype == dtype
            assert torch.equal(features_BTD[i, :length], stored(source, video, stream).to(dtype))
            assert not features_BTD[i, length:].any()


def test_snippets_are_drawn_by_seed_epoch_and_video_and_alike_in_both_streams(
    shards: ShardSet, source: Published
) -> None:
    loader = make_loader(shards, snippets=5)
    drawn: dict[str, list[list[int]]] = {}
    for step in (loader.load(number) for number in range(6)):
        (batch,) = step.micro_batches
        assert batch.mask_BT.all()
        for i, video in enumerate(names(batch)):
            rows = draw_snippets(len(source.features[video]["rgb"]), 5, batch.seeds[i])
            drawn.setdefault(video, []).append(rows.tolist())
            for stream, features_BTD in batch.features.items():
                assert torch.equal(features_BTD[i], stored(source, video, stream)[rows].float())
    assert drawn["video_04"][0] != drawn["video_04"][1], "epochs draw anew"


@given(length=st.integers(1, 300), count=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_one_snippet_from_each_slice(length: int, count: int, seed: int) -> None:
    rows_T = draw_snippets(length, count, seed)
    slices_T = np.arange(count) * length / count
    assert len(rows_T) == count
    assert (rows_T >= np.floor(slices_T)).all()
    assert (rows_T < np.ceil(slices_T + length / count + 1e-9)).all()
    assert (np.diff(rows_T) >= 0).all()
    assert rows_T[-1] < length


def test_seeds_are_of_63_bits_and_the_same_on_every_machine(shards: ShardSet) -> None:
    loader = make_loader(shards)
    (first,) = loader.load(0).micro_batches
    (later,) = loader.load(2).micro_batches
    assert all(0 <= seed < 2**63 for seed in first.seeds)
    assert len({*first.seeds, *later.seeds}) == 12
    assert dict(zip(names(first), first.seeds, strict=True))["video_00"] == 5058909591725760082


def test_labels_are_multi_hot(source: Published, tmp_path: Path) -> None:
    shards = relabel(source, tmp_path / "set", video_04=["Run", "Jump", "Run"])
    loader = make_loader(shards, global_videos=NUM_VIDEOS)
    (batch,) = loader.load(0).micro_batches
    labels = dict(zip(names(batch), batch.labels_BC.tolist(), strict=True))
    assert batch.labels_BC.dtype == torch.float32
    assert labels["video_04"] == [1.0, 1.0]
    assert labels["video_00"] == [0.0, 1.0]  # Jump, Run
    assert labels["video_01"] == [1.0, 0.0]


@pytest.mark.parametrize("first", [0, 5])
def test_reading_ahead_from_any_step_is_random_access_even_if_batches_are_kept(shards: ShardSet, first: int) -> None:
    loader = make_loader(shards, snippets=None, micro_videos=3)
    kept = []
    for step in loader.steps(first, 30):
        then = content(list(step.micro_batches))
        assert then == content(list(loader.load(step.index).micro_batches))
        for batch in step.micro_batches:
            for features_BTD in batch.features.values():
                assert not features_BTD[~batch.mask_BT].any()
        if first:
            kept.append((step, then))
    assert step.index == 29
    assert all(content(list(step.micro_batches)) == then for step, then in kept)


def data_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aumn-data")]


def test_threads_end_with_the_generator(shards: ShardSet) -> None:
    steps = make_loader(shards).steps(0, 1000)
    next(steps)
    assert data_threads()
    steps.close()
    assert not data_threads()
    batches = whole_videos(shards, shards.indices("testing"), rank=0, world_size=1)
    next(batches)
    assert data_threads()
    batches.close()
    assert not data_threads()
    assert len(list(make_loader(shards).steps(0, 3))) == 3
    assert not data_threads()


def test_steps_are_read_ahead_but_not_without_bound(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(shards)
    begun: list[int] = []
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda step: begun.append(step) or load(step))
    steps = loader.steps(10, 100)
    next(steps)
    give_up_s = time.monotonic() + 10
    while len(begun) < 1 + loader_module.STEPS_AHEAD and time.monotonic() < give_up_s:
        time.sleep(0.01)
    time.sleep(0.02)
    assert sorted(begun) == [10, 11, 12]
    steps.close()


def test_an_error_reaches_the_consumer_at_its_step(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(shards)
    damaged = loader.load(0).micro_batches[0].videos[0].id  # so it is in step 0, not in step 1
    damaged_index = [video.id for video in shards.videos].index(damaged)
    read = shards.read

    def read_or_fail(index: int) -> dict[str, np.ndarray]:
        if index == damaged_index:
            raise InputError(f"{damaged} is damaged.")
        return read(index)

    monkeypatch.setattr(shards, "read", read_or_fail)
    steps = loader.steps(1, 10)
    assert next(steps).index == 1
    with pytest.raises(InputError, match=f"{damaged} is damaged"):
        list(steps)
    assert not data_threads()


def test_waiting_is_counted(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(shards)
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda step: time.sleep(0.03) or load(step))
    assert loader.wait_s == 0
    list(loader.steps(0, 1))
    assert loader.wait_s > 0.03


def test_the_trainers_own_thread_count_stays(shards: ShardSet) -> None:
    """In a process of its own, where nothing but the loader has used torch so far."""
    program = """
import sys, pathlib, torch
from aumn.data.loader import TrainingLoader
from aumn.data.shards.shard_set import ShardSet
shards, cut = ShardSet.open(pathlib.Path(sys.argv[1])), {"micro_videos": None, "rank": 0, "world_size": 1}
list(TrainingLoader(shards, shards.indices("training"), global_videos=4, snippets=3, seed=0, **cut).steps(0, 3))
print(torch.get_num_threads())
"""
    command = [sys.executable, "-c", program, str(shards.path)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "2\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_videos": 64, "micro_videos": 8, "world_size": 3},
            "batch.global_videos=64 does not split evenly: 3 ranks x batch.micro_videos=8 = 24 videos a pass. "
            "Use a multiple, e.g. 72.",
        ),
        (
            {"global_videos": 64, "micro_videos": None, "world_size": 3},
            "batch.global_videos=64 does not split evenly over 3 ranks. Use a multiple, e.g. 66.",
        ),
    ],
)
def test_a_step_that_does_not_split_evenly_is_refused(shards: ShardSet, options: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        make_loader(shards, **options)
    assert str(raised.value) == message


def test_videos_without_a_label_are_trained_on_unless_none_has_one(source: Published, tmp_path: Path) -> None:
    shards = relabel(source, tmp_path / "set", video_02=[], video_06=[], x=[])
    loader = make_loader(shards)
    batches = [batch for step in range(loader.steps_per_epoch) for batch in loader.load(step).micro_batches]
    labels = {name: row for batch in batches for name, row in zip(names(batch), batch.labels_BC.tolist(), strict=True)}
    assert [sum(labels[name]) for name in ("video_02", "video_06")] == [0, 0]
    assert len(labels) == 11
    with pytest.raises(InputError, match=r"^None of the 2 videos to train on has a label: annotate which actions"):
        replace(loader, indices=shards.unlabelled(shards.indices("training")))
    with pytest.raises(InputError, match=r"^There is no video to train on: pack some of the training subset"):
        TrainingLoader(shards, [], global_videos=2, micro_videos=None, snippets=4, seed=0, rank=0, world_size=1)
    testing = whole_videos(shards, shards.indices("testing"), rank=0, world_size=1)
    assert sorted(batch.videos[0].id for batch in testing) == ["w", "x", "y", "z"]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_whole_videos_each_once_over_all_ranks(shards: ShardSet, source: Published, world_size: int) -> None:
    indices = shards.indices("testing")
    by_rank = [list(whole_videos(shards, indices, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(batch.videos[0].id for batches in by_rank for batch in batches) == ["w", "x", "y", "z"]
    snippets = [sum(sum(batch.lengths) for batch in batches) for batches in by_rank]
    assert max(snippets) - min(snippets) <= max(LENGTHS)
    for batch in (batch for batches in by_rank for batch in batches):
        assert batch.mask_BT.all()
        assert len(batch.videos) == len(batch.seeds) == 1
        for stream, features_BTD in batch.features.items():
            assert torch.equal(features_BTD[0], stored(source, batch.videos[0].id, stream).float())


def test_a_holdout_is_a_matter_of_each_video_alone() -> None:
    ids = [f"v{number}" for number in range(400)]
    indices = list(range(1000, 1400))

    def split(indices, ids, share, seed):
        return split_holdout(indices, ids, DataSettings(shards="x", holdout_share=share, holdout_seed=seed))

    training, held_out = split(indices, ids, 0.25, seed=0)
    assert sorted(training + held_out) == indices
    assert 70 < len(held_out) < 130
    few = split(indices[::-3], ids[::-3], 0.25, seed=0)
    assert set(few[1]) == set(held_out) & set(indices[::-3])
    more = split(indices, ids, 0.5, seed=0)
    assert set(held_out) < set(more[1])
    assert split(indices, ids, 0.25, seed=1)[1] != held_out
    assert split(indices, ids, 0.0, seed=0) == (indices, [])


CLIPS = [f"{person}_{clip}" for person in ("ann", "bob", "cai", "dee") for clip in "abc"]


def test_a_holdout_takes_whole_groups_or_the_videos_that_are_named(tmp_path: Path) -> None:
    def held_out(**data: Any) -> set[str]:
        training, out = split_holdout(range(12), CLIPS, DataSettings(shards="x", **data))
        assert sorted(training + out) == list(range(12))
        return {CLIPS[index] for index in out}

    by_person = {seed: held_out(holdout_share=0.5, holdout_seed=seed, holdout_groups="^[^_]+") for seed in range(6)}
    for seed, found in by_person.items():
        persons = {clip[:3] for clip in found}
        assert len(persons) == 2, seed
        assert found == {clip for clip in CLIPS if clip[:3] in persons}, seed
        # What stands in brackets counts, and not all that is found.
        assert found == held_out(holdout_share=0.5, holdout_seed=seed, holdout_groups="^([^_]+)_.")
        # So does a table's column; a video's other rows need not repeat it.
        (tmp_path / "who.csv").write_text(
            "person, video\n" + "".join(f"{clip[:3]}, {clip}\n,{clip}\n" for clip in [*CLIPS, "eve_a"])
        )
        by_table = {"holdout_share": 0.5, "holdout_seed": seed, "holdout_groups": f"{tmp_path}/who.csv:person"}
        assert found == held_out(**by_table)
        kept = DataSettings(shards="x", **by_table).model_dump(mode="json")
        assert kept["holdout_groups"].startswith(f"{tmp_path}/who.csv:person#"), "one setting, and no table"
        assert DataSettings(**kept).model_dump(mode="json") == kept
    assert len({frozenset(found) for found in by_person.values()}) > 1
    (tmp_path / "out.txt").write_text("bob_b\ndee_c\n\n")
    assert (
        held_out(holdout_videos=tmp_path / "out.txt")
        == held_out(holdout_videos=["dee_c", "bob_b"])
        == {"bob_b", "dee_c"}
    )
    (tmp_path / "out.txt").write_text("a b\n c d \r\n")  # names may have spaces
    assert DataSettings(shards="x", holdout_videos=tmp_path / "out.txt").holdout_videos == ["a b", "c d"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"holdout_share": 1e-9},
            r"data\.holdout_share=1e-09 leaves 12 videos to train on and 0 held out; .*change the s",
        ),
        ({"holdout_share": 0.99999}, r"data\.holdout_share=0\.99999 leaves 0 videos to train on and 12 held out; "),
        ({"holdout_videos": CLIPS}, r"data\.holdout_videos leaves 0 videos to train on and 12 .*: change the list\."),
        (
            {"holdout_videos": ["eve_a", "ann_a"]},
            r"data\.holdout_videos names 1 that are no training videos \(eve_a\): ",
        ),
        ({"holdout_share": 0.5, "holdout_groups": "^ann|^bob"}, r"finds nothing in 6 of 12 names, such as cai_a: "),
        ({"holdout_share": 0.5, "holdout_groups": "(a"}, r"data\.holdout_groups='\(a' is no regular expression: "),
        ({"holdout_share": 0.5, "holdout_videos": ["ann_a"]}, r"leave out data\.holdout_share, or the names"),
        ({"holdout_share": 0.5, "holdout_groups": "no.csv:who"}, r"groups='no\.csv:who' cannot be read \(No such file"),
        ({"holdout_share": 0.5, "holdout_groups": "GROUPS:age"}, r"the table has video, who; .* columns video and age"),
        (
            {"holdout_share": 0.5, "holdout_groups": "GROUPS:who"},
            r"no group for 10 of 12 videos, such as ann_c",
        ),
        ({"holdout_share": 0.5, "holdout_groups": "TWICE:who"}, r"video ann_a is of x and of y"),
        (
            {"holdout_share": 0.5, "holdout_groups": "GROUPS:who#00000000"},
            r"the table's groups are others now \([0-9a-f]+",
        ),
        ({"holdout_videos": "nowhere.txt"}, r"data\.holdout_videos='nowhere\.txt' cannot be read \(No such file"),
    ],
)
def test_a_holdout_that_cannot_be_made_is_refused(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "GROUPS.csv").write_text("video,who\nann_a,x\nann_b,y\n")
    (tmp_path / "TWICE.csv").write_text("video,who\nann_a,x\nann_a,y\n")
    if (groups := data.get("holdout_groups", "")).partition(":")[0] in ("GROUPS", "TWICE"):
        data = {**data, "holdout_groups": f"{tmp_path}/{groups.replace(':', '.csv:')}"}
    with pytest.raises((InputError, ValidationError), match=message):
        split_holdout(range(12), CLIPS, DataSettings(shards="x", **data))
