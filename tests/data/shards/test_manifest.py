"""The manifest of many videos: the same videos however they are looked at, and little memory a video."""

import tracemalloc
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aumn.data.shards import manifest as manifest_module
from aumn.data.shards.manifest import Manifest, schema
from aumn.data.shards.shard_set import ShardSet
from aumn.records import Video


def make_content(videos: int) -> bytes:
    """A manifest's bytes; video i has i % 3 labels."""
    number_N = np.arange(videos)
    columns = {
        "id": [f"video_{number:09d}" for number in number_N],
        "subset": [("training", "testing")[number % 2] for number in number_N],
        "labels": [list(range(number % 3)) for number in number_N],
        "snippets": 1 + number_N % 7,
        "duration_s": number_N / 4,
        "fps": np.full(videos, 25.0),
    }
    table_schema = schema(["rgb", "flow"])
    numbers = {name: number_N for name in table_schema.names if name not in columns}
    table = pa.table({name: pa.array((columns | numbers)[name]) for name in table_schema.names})
    out = BytesIO()
    pq.write_table(table.cast(table_schema), out)
    return out.getvalue()


def test_videos_are_the_same_one_by_one_in_turn_and_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "CHUNK_VIDEOS", 4)  # 11 videos are two whole chunks and a part of one
    videos = Manifest(make_content(11), ["rgb", "flow"])
    expected = [
        Video(f"video_{i:09d}", ("training", "testing")[i % 2], 1 + i % 7, tuple(range(i % 3)), i / 4, 25.0)
        for i in range(11)
    ]
    assert list(videos) == expected
    assert [videos[index] for index in range(11)] == expected
    assert [videos[index] for index in range(-11, 0)] == expected
    assert videos[3:9:2] == expected[3:9:2]
    assert len(videos) == 11
    with pytest.raises(IndexError):
        videos[11]
    kinds = [type(value) for value in (videos[5].snippets, *videos[5].labels, videos[5].duration_s)]
    assert kinds == [int, int, int, float], "not numpy's, which JSON refuses"


def test_the_rows_that_are_chosen_by_column_are_those_chosen_by_video(shard_set: ShardSet) -> None:
    indices = [4, 0, 3, 1]
    assert shard_set.ids(indices) == [shard_set.videos[index].id for index in indices]
    by_length = sorted(indices, key=lambda index: (-shard_set.videos[index].snippets, shard_set.videos[index].id))
    assert shard_set.longest_first(indices) == by_length
    assert shard_set.unlabelled(indices) == []
    assert shard_set.ids([]) == shard_set.longest_first([]) == shard_set.unlabelled([]) == []


def test_a_million_videos_are_no_python_objects() -> None:
    """Every rank holds the manifest; beside Arrow's columns there must be nothing that grows with the videos."""
    content = make_content(20_000)
    Manifest(content, ["rgb", "flow"])  # what is imported and cached once
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    held = Manifest(content, ["rgb", "flow"])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000, f"{(after - before) / len(held):.1f} bytes a video"
