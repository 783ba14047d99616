"""Several shard sets as one: what one packing of all would give, and shares that are exact wherever a run is cut."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aumn.data.loader import TrainingLoader
from aumn.data.order import MixedOrder
from aumn.data.problems import DamagedVideoError
from aumn.data.settings import DataSettings
from aumn.data.shards.layout import read_description
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.data.shards.stores import open_store
from aumn.data.shards.union import Union, name_and_identity, open_sets
from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO, Published, write_published
from tests.stores import faulty

SIZES = (13, 5, 1)
SEVERAL = ["a", "b", "c", "d", "e", "f", "g"]
GLOBAL_VIDEOS = 6
CUTS = ((1, None), (2, 1), (3, 2), (3, 1))  # world size, micro_videos


def pack_some(published: Published, out: Path, videos: Any, **options: Any) -> ShardSet:
    published.annotations.write_text(json.dumps({"database": {video: published.database[video] for video in videos}}))
    published.pack(out, name=out.name, **options)
    return ShardSet.open(out)


def unite(*parts: ShardSet, rename: bool = False, **class_names: str) -> Union:
    return Union(parts, class_names, rename=rename)


def batches(shards: ShardSet, steps: int = 4, **options: Any) -> list[Any]:
    """All that a model could see of the steps, to the bit."""
    defaults = {"global_videos": 4, "micro_videos": None, "snippets": 5, "seed": 3, "rank": 0, "world_size": 1}
    loader = TrainingLoader(shards, shards.indices("training"), **defaults | options)
    return [
        (video.id, video.labels, seed, [features_BTD[i].tolist() for features_BTD in batch.features.values()])
        for step in loader.steps(0, steps)
        for batch in step.micro_batches
        for i, (video, seed) in enumerate(zip(batch.videos, batch.seeds, strict=True))
    ]


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Published, ShardSet, ShardSet]:
    """Seven videos, the last two of them testing, as two sets: a to c and f, d to e and g."""
    published = write_published(tmp_path / "published", {"training": SEVERAL[:5], "testing": SEVERAL[5:]})
    one = pack_some(published, tmp_path / "one", "abcf")
    return published, one, pack_some(published, tmp_path / "two", "deg", shard_mb=ONE_VIDEO)


def test_a_union_is_what_one_packing_of_all_would_be(halves: Any, tmp_path: Path) -> None:
    published, one, two = halves
    union, once = unite(one, two), pack_some(published, tmp_path / "once", SEVERAL)
    assert (union.name, union.classes, union.streams) == ("one+two", once.classes, once.streams)
    assert sorted(union.videos, key=lambda video: video.id) == sorted(once.videos, key=lambda video: video.id)
    for video in SEVERAL:
        ours, theirs = ([each.id for each in shards.videos].index(video) for shards in (union, once))
        assert union.ids([ours]) == [video]
        for stream in once.streams:
            np.testing.assert_array_equal(union.read(ours)[stream], once.read(theirs)[stream])
    assert union.ids(union.indices("training")) == once.ids(once.indices("training"))  # so batches are alike, too
    assert batches(union) == batches(once)
    assert union.bytes == one.bytes + two.bytes
    tars = {union.tar_of(index): number for index, number in enumerate(union.shards_of(range(7)))}
    assert len(tars) == len({*tars.values()}) == 2 + 3
    assert union.ids(union.longest_first(range(7)))[:2] == ["c", "f"]
    assert union.identity == unite(one, two).identity
    assert len({union.identity, one.identity, unite(two, one).identity, unite(one, two, rename=True).identity,
                unite(one, two, Run="Jog").identity}) == 5  # fmt: skip
    settings = {"shards": [str(one.path), str(two.path)]}
    assert open_sets(DataSettings.model_validate(settings)).identity == union.identity
    described = [read_description(open_store(part.path)) for part in union.parts]
    assert name_and_identity(described, {}, rename=False) == (union.name, union.identity)
    alone = open_sets(DataSettings.model_validate({"shards": settings["shards"][:1]}))
    assert (alone.identity, alone.path) == (one.identity, one.path)


def test_classes_are_united_by_name_and_renamed_and_two_that_become_one_count_once(tmp_path: Path) -> None:
    published = write_published(tmp_path / "published", {"training": ["a", "b"], "testing": ["c"]})
    one = pack_some(published, tmp_path / "one", "ab")
    for video, labels in {"a": ["Leap", "Jump", "Bow"], "b": ["Crawl", "Leap", "Run"], "c": []}.items():
        instances = [{"label": label, "segment": [0, 1]} for label in labels]
        published.database[video]["annotations"] = instances
    two = pack_some(published, tmp_path / "two", "abc", dtype="float32")
    union = unite(one, two, rename=True, Leap="Jump", Crawl="Creep")
    assert (one.classes, two.classes) == (("Jump", "Run"), ("Bow", "Crawl", "Jump", "Leap", "Run"))
    assert union.classes == ("Jump", "Run", "Bow", "Creep")
    named = {video.id: {union.classes[label] for label in video.labels} for video in union.videos}
    assert named == {
        "a": {"Run"}, "b": {"Jump"}, "two/a": {"Jump", "Bow"}, "two/b": {"Creep", "Jump", "Run"}, "two/c": set()
    }  # fmt: skip
    assert [video.labels for video in union.videos] == [(1,), (0,), (), (0, 2), (0, 1, 3)]
    assert union.ids(union.indices("training", "testing")) == ["a", "b", "two/c"]
    assert union.ids(union.indices("testing")) == ["two/c"]
    assert union.unlabelled(range(5)) == [2]
    for index, dtype in ((0, "float16"), (3, "float32")):  # each as it is
        features = union.read(index)["rgb"]
        assert features.dtype == dtype
        np.testing.assert_array_equal(features, published.features["a"]["rgb"].astype(dtype))
    with pytest.raises(InputError, match=r"one has no subset 'testing'; it has training \(2 videos\)\."):
        union.indices("testing", "testing")
    with pytest.raises(InputError, match=r"one and .*two has no subset 'tasting'"):
        union.indices("tasting")
    tar = two.tar_of(1)
    content = bytearray(tar.read_bytes())
    content[content.rfind(b"NUMPY") + 130] ^= 1
    tar.write_bytes(content)
    with pytest.raises(
        DamagedVideoError, match=r"two/training-000000\.tar: what it holds of stream flow of video 'b'"
    ) as raised:
        union.read(4)
    assert raised.value.video == "two/b"


def extracted(shards: ShardSet, **facts: object) -> ShardSet:
    shards.extractor = {"name": "i3d", **facts}
    return shards


REFUSALS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "streams": ({"streams": "rgb"}, {}, r"two has features \{'rgb': 5\} wide, .*one has \{'rgb': 5, 'flow': 3\}: use"),
    "stride": ({"stride_frames": 8}, {}, r"two has a snippet every 8 frames, .*one has one every 16 frames: extract"),
    "window": ({"window_frames": 64}, {}, r"two has a snippet every 16 frames, each of 64, .*one has one every 16 fra"),
    "extractor": (
        {"extractor": {"side": 224}}, {},
        r"two and those that .*one has were extracted otherwise \(side 224 and 256\): extract with the same",
    ),
    "ids": (
        {"videos": "abcd"}, {},
        r"2 ids of videos \('a', 'b'\) are in several of .*one and .*two: if they are different videos, set "
        r"data\.same_ids=rename, which puts .* but the first \(two/a\); if not, pack them in one alone\.",
    ),
    "ids renamed to those of a third": ({"videos": "abcd"}, {"rename": True, "again": True},
        r"4 ids of videos \('two/a', 'two/b', 'two/c', \.\.\.\) are in several .*even with the sets' names before"),
    "class names": ({}, {"Ran": "Run"}, r"data\.class_names renames 'Ran', which is a class of none .*; 'Run' is: cor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_sets_that_do_not_go_together_are_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    options, how, message = REFUSALS[case]
    published = write_published(tmp_path / "published", {"training": SEVERAL})
    one = extracted(pack_some(published, tmp_path / "one", "ab"), side=256, frames=16)
    facts = options.pop("extractor", {})
    two = pack_some(published, tmp_path / "two", options.pop("videos", "cd"), **options)
    again = [two] if how.pop("again", False) else []
    with pytest.raises(InputError, match=message):
        unite(one, extracted(two, **facts), *again, **how)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Union:
    root = tmp_path_factory.mktemp("three")
    parts = []
    for number, size in enumerate(SIZES):
        ids = {"training": [f"{'xyz'[number]}{video:02d}" for video in range(size)]}
        published = write_published(root / f"published_{number}", ids, widths={"rgb": 2})
        parts.append(pack_some(published, root / "xyz"[number], ids["training"], shard_mb=7 * ONE_VIDEO))
    return unite(*parts)


def draws(shards: ShardSet, indices: list[int], first: int, last: int, cut: Any, **options: Any) -> list[list[Any]]:
    """Each step's videos and seeds, over all ranks and micro-batches."""
    world_size, micro_videos = cut
    loaders = [
        TrainingLoader(
            shards, indices, global_videos=GLOBAL_VIDEOS, micro_videos=micro_videos, snippets=2, seed=1,
            rank=rank, world_size=world_size, **options,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    of_ranks = [list(loader.steps(first, last)) for loader in loaders]
    return [
        [
            pair
            for step in steps
            for batch in step.micro_batches
            for pair in zip((video.id for video in batch.videos), batch.seeds, strict=True)
        ]
        for steps in zip(*of_ranks, strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_shares_are_exact_over_any_epochs_and_the_same_at_any_ranks_from_any_step(three: Union, data: Any) -> None:
    sizes = [data.draw(st.integers(1, size)) for size in SIZES]
    weights = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=3, max_size=3))
    options = {"weights": weights, "window_shards": data.draw(st.sampled_from([None, 1, 2]))}
    indices = [
        index
        for index in range(sum(SIZES))
        if int(three.ids([index])[0][1:]) < sizes["xyz".index(three.ids([index])[0][0])]
    ]
    count = sum(sizes)
    exact = [count * weight / sum(weights) for weight in weights] if weights else sizes
    if weights and min(exact) < 1:
        return  # such a set may be drawn not at all, which is refused
    epochs = data.draw(st.integers(1, 4))
    steps = epochs * -(-count // GLOBAL_VIDEOS)
    whole = draws(three, indices, 0, steps, CUTS[0], **options)
    shown = [pair for step in whole for pair in step]
    assert len(shown) == epochs * count
    assert len({*shown}) == len(shown), "a video that comes again draws other snippets"
    drawn = Counter(video[0] for video, _ in shown)
    times = Counter(video for video, _ in shown)
    for name, size, share in zip("xyz", sizes, exact, strict=True):
        assert drawn[name] % epochs == 0
        assert abs(drawn[name] / epochs - share) < 1
        assert {times[f"{name}{video:02d}"] for video in range(size)} <= {drawn[name] // size, -(-drawn[name] // size)}
    cut = data.draw(st.sampled_from(CUTS[1:]))
    first = data.draw(st.integers(0, steps - 1))
    assert draws(three, indices, first, steps, cut, **options) == whole[first:]


def test_a_set_goes_on_where_the_epoch_before_stopped_and_a_small_one_repeats(three: Union) -> None:
    """Written out for weights of 1, 1 and 2: of 19 videos an epoch, 5, 5 and 9."""
    indices = list(range(19))
    shown = [video for step in draws(three, indices, 0, 16, (1, None), weights=[1, 1, 2]) for video, _ in step]
    epochs = [shown[first : first + 19] for first in range(0, 76, 19)]
    assert [[Counter(video[0] for video in epoch)[name] for name in "xyz"] for epoch in epochs] == [[5, 5, 9]] * 4
    of_first_set = [video for epoch in epochs for video in sorted(video for video in epoch if video[0] == "x")]
    assert len({*of_first_set[:10]}) == 10
    assert len({*of_first_set[:15]}) == 13  # the third epoch begins the second pass
    assert all(len({video for video in epoch if video[0] == "y"}) == 5 for epoch in epochs)
    assert epochs[0] != epochs[1]
    alike = MixedOrder(1, (np.arange(9), np.arange(9)), (9, 9))
    assert alike.set_order(0).of(0).tolist() != alike.set_order(1).of(0).tolist(), "sets of a size have other orders"
    some = [
        video
        for step in draws(three, indices, 0, 4, (1, None), weights=[1, 1, 2], window_shards=1)
        for video, _ in step
    ]
    rows = [index for index in indices if three.ids([index])[0] in some and index < 13]
    assert (len(rows), len({*three.shards_of(range(13)).tolist()})) == (5, 5)
    assert len({*three.shards_of(rows).tolist()}) <= 3, "an epoch's share of a set is from few of its tars"


@pytest.mark.parametrize(
    ("indices", "weights", "message"),
    [
        (range(19), [1000, 1, 1], r"data\.weights=\[1000, 1, 1\] draws 0 videos an epoch of the 5 of .*/y that there"),
        (range(18), [1, 1, 1], r"draws 6 videos an epoch of the 0 of .*/z that there are to train on: raise its w"),
    ],
)  # fmt: skip
def test_a_set_that_would_never_be_seen_is_refused(three: Union, indices: Any, weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draws(three, list(indices), 0, 1, (1, None), weights=weights)


@pytest.mark.parametrize("size_gb", [1, 1e-5])  # room for all, or for a part of them, which is read by ranges
def test_remote_sets_and_a_local_one_in_one_run(halves: Any, tmp_path: Path, size_gb: float) -> None:
    _, one, two = halves
    local, more = unite(one, two, one, rename=True), os.fspath(one.path)
    settings = {"same_ids": "rename", "subset": "training"}
    with faulty(two.path) as far, faulty(one.path) as farther:
        far.cut_after = farther.cut_after = 700
        data = DataSettings.model_validate(settings | {"shards": [more, far.address, farther.address]})
        remote = open_sets(data, Access(whole=True, cache_folder=tmp_path / "cache", cache_bytes=round(size_gb * 1e9)))
        assert (remote.identity, remote.is_remote, local.is_remote) == (local.identity, True, False)
        for options in ({"weights": [1, 2, 1]}, {"window_shards": 1}):
            assert batches(remote, **options) == batches(local, **options)
    if size_gb == 1:  # each tar that was needed, once
        fetched = [part.cache and part.cache.fetched_bytes for part in remote.parts]
        assert fetched == [
            None,
            *(sum(tar.stat().st_size for tar in part.path.glob("training*")) for part in (two, one)),
        ]
