"""Reading a shard set: any video in any order, and nothing damaged passes."""

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aumn.data.shards import tars as shards_module
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_annotations
from aumn.inspect.inspection import inspect_shards
from aumn.records import InputError
from tests.data.conftest import ONE_VIDEO


def test_indices_of_a_subset(shard_set: ShardSet) -> None:
    assert shard_set.indices("testing") == [0, 1]
    assert shard_set.indices("training") == [2, 3, 4]
    assert len(shard_set) == len(shard_set.videos) == 5
    with pytest.raises(
        InputError, match=r"packed has no subset 'train'; it has testing \(2 videos\), training \(3 vid"
    ):
        shard_set.indices("train")


def test_features_are_aligned_read_only_views_that_outlive_the_set(shard_set: ShardSet, published: Any) -> None:
    path = shard_set.path
    features = shard_set.read(3)
    assert list(features) == ["rgb", "flow"]
    del shard_set
    shutil.rmtree(path)
    for stream, features_TD in features.items():
        assert not features_TD.flags.owndata
        assert features_TD.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            features_TD[0, 0] = 1
        np.testing.assert_array_equal(features_TD, published.features["b"][stream].astype("float16"))


def test_temporal_ground_truth_is_never_opened(shard_set: ShardSet) -> None:
    (shard_set.path / "annotations.parquet").unlink()
    reopened = ShardSet.open(shard_set.path)
    assert [set(reopened.read(index)) for index in range(len(reopened))] == [{"rgb", "flow"}] * 5
    assert reopened.identity == shard_set.identity


def test_more_tars_than_are_kept_open(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "OPEN_TARS", 2)
    shards = published.open(shard_mb=ONE_VIDEO)
    kept = {index: shards.read(index) for index in (4, 0, 2, 1, 3)}
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(shards.path) in line]
    assert len(maps) == 5  # views keep theirs alive
    for index, features in kept.items():
        np.testing.assert_array_equal(
            features["rgb"], published.features[shards.videos[index].id]["rgb"].astype("float16")
        )
    del kept, features
    descriptors = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert sum(str(shards.path) in path for path in descriptors) == 2


def test_many_threads_read_at_once(shard_set: ShardSet, published: Any) -> None:
    def is_right(index: int) -> bool:
        expected = published.features[shard_set.videos[index].id]["flow"].astype("float16")
        return np.array_equal(shard_set.read(index)["flow"], expected)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(is_right, [*range(5)] * 160))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_flipped_bit_of_a_member_is_found(shard_set: ShardSet, data: st.DataObject) -> None:
    rows = pq.read_table(shard_set.path / "manifest.parquet").to_pylist()
    index = data.draw(st.integers(0, len(rows) - 1), "video")
    stream = data.draw(st.sampled_from(["rgb", "flow"]), "stream")
    at = rows[index][f"{stream}_offset"] + data.draw(st.integers(0, rows[index][f"{stream}_bytes"] - 1), "byte")
    tar = shard_set.tar_of(index)
    intact = tar.read_bytes()
    damaged = bytearray(intact)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    try:
        tar.write_bytes(damaged)
        member = f"what it holds of stream {stream} of video '{rows[index]['id']}' does not match its checksum"
        with pytest.raises(
            InputError, match=f"{tar.name}: {member}, so the file is damaged; fetch this shard again or"
        ):
            ShardSet.open(shard_set.path).read(index)
    finally:
        tar.write_bytes(intact)


def test_a_truncated_tar(shard_set: ShardSet) -> None:
    tar = shard_set.path / "training-000000.tar"
    size = tar.stat().st_size
    os.truncate(tar, size - 512)
    message = f"training-000000.tar has {size - 512:,} bytes where dataset.json says {size:,}: it is truncated"
    with pytest.raises(InputError, match=message):
        ShardSet.open(shard_set.path)


def test_a_tar_that_is_truncated_while_it_is_read(shard_set: ShardSet) -> None:
    """In place, as rsync --inplace and careless copies do; the system would kill us for a look behind its end."""
    shard_set.read(4)
    for tar in shard_set.path.glob("*.tar"):
        os.truncate(tar, 0)
    with pytest.raises(
        InputError, match=r"training-000000.tar became shorter while it was read: fetch this shard again"
    ):
        shard_set.read(4)
    with pytest.raises(
        InputError, match=r"testing-000000.tar cannot be read \(cannot mmap an empty file\): fetch this"
    ):
        shard_set.read(0)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("dataset.json", "packed is not a shard set: it holds no dataset.json; make one with `aumn pack`"),
        ("manifest.parquet", "manifest.parquet is missing: fetch the shard set again"),
        ("training-000000.tar", "training-000000.tar is missing: fetch this shard again, or pack the features again"),
    ],
)
def test_a_missing_file(shard_set: ShardSet, file: str, message: str) -> None:
    (shard_set.path / file).unlink()
    with pytest.raises(InputError, match=message):
        ShardSet.open(shard_set.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"dataset.json has format version 2; this aumn reads 1: pack again"),
        ({"classes": ["Jump", "Walk"]}, "dataset.json does not match its own checksum, so it was edited or damaged"),
        ({"checksum": None}, "dataset.json does not match its own checksum, so it was edited or damaged"),
    ],
)
def test_an_edited_description(shard_set: ShardSet, changes: dict[str, Any], message: str) -> None:
    file = shard_set.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        ShardSet.open(shard_set.path)


def edit(shard_set: ShardSet, changes: dict[str, Any], rows: dict[str, Any]) -> None:
    """Change dataset.json, and cells of the manifest's last row, with every checksum to match."""
    file, manifest = shard_set.path / "dataset.json", shard_set.path / "manifest.parquet"
    table = pq.read_table(manifest)
    columns = {
        name: pa.array([*table[name].to_pylist()[:-1], value], table.schema.field(name).type)
        for name, value in rows.items()
        if name in table.schema.names
    }
    new = {name: columns.get(name, table[name]) for name in table.schema.names if name != rows.get("without")}
    pq.write_table(pa.table(new), manifest)
    fields = json.loads(file.read_text()) | changes
    for name in fields["checksums"]:
        fields["checksums"][name] = xxhash.xxh3_64_hexdigest((shard_set.path / name).read_bytes())
    del fields["checksum"]
    sum_ = xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode())
    file.write_text(json.dumps(fields | {"checksum": sum_}))


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"dtype": "int8"}, {}, r"dataset.json describes no shard set \(.* dtype is 'int8', which must be"),
        (
            {"streams": {"rgb": 0, "flow": 3}},
            {},
            "dataset.json describes no shard set .* widths and stride_frames must",
        ),
        ({"streams": ["rgb"]}, {}, r"dataset.json describes no shard set \(streams: "),
        ({"shards": [{"file": "../a.tar", "bytes": 9}]}, {}, "shards lie in the set's own folder"),
        ({"tars": "x", "shards": [{"file": "y/../a.tar", "bytes": 9}]}, {}, "shards lie in the set's own folder"),
        ({"decoded": {"audio": "npy"}}, {}, r"describes no shard set \(.* decoded names streams that the set does not"),
        ({"shards": 3}, {}, r"dataset.json describes no shard set \(shards: "),
        ({"streams": {"rgb": 5}}, {}, "manifest.parquet has other columns than id, subset, shard"),
        ({"streams": {"rgb": 5, "flow": 999}}, {}, "manifest.parquet has a flow_bytes of video 'd' that cannot be in"),
        ({"classes": ["Jump"]}, {}, "manifest.parquet has a labels of video 'e' that cannot be in the set"),
        ({}, {"shard": 2}, "manifest.parquet has a shard of video 'c' that cannot be in the set that dataset.json"),
        ({}, {"snippets": 0}, "has a snippets of video 'c'"),
        ({}, {"labels": [0, -1]}, "has a labels of video 'c'"),
        ({}, {"fps": float("inf")}, "has a fps of video 'c'"),
        ({}, {"duration_s": float("nan")}, "has a duration_s of video 'c'"),
        ({}, {"rgb_offset": -1}, "has a rgb_offset of video 'c'"),
        ({}, {"flow_offset": 10**15}, "has a flow_offset of video 'c'"),
        ({}, {"fps": None}, "manifest.parquet has empty cells"),
        ({}, {"without": "fps"}, "manifest.parquet has other columns than id, subset, shard"),
    ],
)
def test_tables_edited_with_matching_checksums(
    shard_set: ShardSet, changes: dict[str, Any], rows: dict[str, Any], message: str
) -> None:
    edit(shard_set, changes, rows)
    with pytest.raises(InputError, match=message):
        ShardSet.open(shard_set.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("fps"), "annotations.parquet has other columns than id, subset, duration_s"),
        (lambda table: table.set_column(0, "id", pa.array(range(5))), "annotations.parquet has other columns than id"),
        (lambda table: with_start(table, None), "annotations.parquet has empty cells or times that are no numbers"),
        (lambda table: with_start(table, float("nan")), "annotations.parquet has empty cells or times that are no"),
    ],
)
def test_ground_truth_edited_with_matching_checksums(
    shard_set: ShardSet, change: Callable[[Any], Any], message: str
) -> None:
    file = shard_set.path / "annotations.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    edit(shard_set, {}, {})
    with pytest.raises(InputError, match=message):
        read_annotations(shard_set.path)


def with_start(table: pa.Table, start_s: float | None) -> pa.Table:
    rows = table.to_pylist()
    rows[0]["annotations"][0]["start_s"] = start_s
    return pa.Table.from_pylist(rows, table.schema)


def test_annotations_of_other_videos_are_told_by_inspect(shard_set: ShardSet) -> None:
    file = shard_set.path / "annotations.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    edit(shard_set, {}, {})
    assert inspect_shards(shard_set.path).notes == [
        f"{shard_set.path}: the annotations are of other videos than the manifest: pack again."
    ]


def test_what_could_be_but_is_not_what_was_packed_is_found_by_its_identity(shard_set: ShardSet) -> None:
    shard_set.check_identity()
    edit(shard_set, {}, {"duration_s": 12.5})
    with pytest.raises(InputError, match=r"has the identity .*, where its dataset.json says .*: it was edited after"):
        inspect_shards(shard_set.path)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_description_that_is_not_json(shard_set: ShardSet, content: str) -> None:
    (shard_set.path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset.json is not a JSON object \(.*\): fetch the shard set again"):
        ShardSet.open(shard_set.path)


def test_a_manifest_of_another_packing(shard_set: ShardSet, published: Any) -> None:
    other = published.open(fps=30)
    shutil.copy(other.path / "manifest.parquet", shard_set.path)
    with pytest.raises(InputError, match=r"manifest.parquet does not match its checksum in dataset.json, so it is dam"):
        ShardSet.open(shard_set.path)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_tables_are_refused(shard_set: ShardSet, data: st.DataObject) -> None:
    file = shard_set.path / data.draw(st.sampled_from(["manifest.parquet", "dataset.json"]), "file")
    intact = file.read_bytes()
    damaged = bytearray(intact)
    damaged[data.draw(st.integers(0, len(intact) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    try:
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            ShardSet.open(shard_set.path)
    finally:
        file.write_bytes(intact)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_the_readers_in_the_formats_documentation_work(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data_shards").mkdir()
    shard_set.path.rename(tmp_path / "data_shards" / "shrec21")
    monkeypatch.chdir(tmp_path)
    documentation = Path(__file__).parents[3] / "data_shards" / "README.md"
    examples = re.findall(r"```python\n(.*?)```", documentation.read_text(), flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert capsys.readouterr().out.splitlines() == [
        "d ['Jump'] (4, 5)",
        "a ['Run'] (4, 5) (4, 3)",
        "b ['Jump'] (2, 5) (2, 3)",
        "c ['Run'] (7, 5) (7, 3)",
    ]
