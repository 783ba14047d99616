"""The tars are WebDataset's, whatever a video is called."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from aumn.data.shards.layout import sample_key
from aumn.data.shards.shard_set import ShardSet
from aumn.records import NO_STREAMS, STREAM_NAME
from tests.data.conftest import write_published

ODD_IDS = [
    "v.1.2",
    ".hidden",
    "a b",
    "ünï",
    "日本",
    "50%",
    "-x",
    "__meta__",
    "folder/clip.1",
    'it\'s "so"',
    "x" * 91,
    "x" * 120,
    "日本" * 20,
]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_keys_are_cut_nowhere_and_lead_back(video: str) -> None:
    key = sample_key(video)
    assert key.isascii()
    assert not {".", "/", "\0"} & set(key)
    if len(quote(video, safe="").replace(".", "%2E")) <= 91:
        assert unquote(key) == video
    else:
        assert len(key) == 91
        assert key != sample_key(video + "x")


def names_in_plain_headers(tar: str) -> Iterator[str]:
    """As wids reads a tar: the first hundred bytes of each header are a name, whatever kind the header is of."""
    content, at = Path(tar).read_bytes(), 0
    while header := content[at : at + 512].rstrip(b"\0"):
        yield header[:100].rstrip(b"\0").decode("ascii")
        at += 512 + -(-int(header[124:135], 8) // 512) * 512


def test_the_bytes_of_tars_stay_those_that_were_packed_before(published: Any, tmp_path: Path) -> None:
    """XXH3-64 of what commit a81f122 wrote of the same features; tables have the version of pyarrow in them."""
    published.pack(tmp_path / "out")
    sums = {path.name: xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in (tmp_path / "out").glob("*.tar")}
    assert sums == {"testing-000000.tar": "abe0e2bb9f603826", "training-000000.tar": "aaa3944a459a2b3f"}
    fields = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert list(fields) == [
        "format_version", "name", "identity", "classes", "streams", "dtype", "stride_frames", "shards", "checksums",
        "checksum",
    ]  # fmt: skip
    assert fields["identity"] == "f20fe2d2006cead6"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.from_regex(STREAM_NAME, fullmatch=True), min_size=1, max_size=8, unique=True).filter(
        lambda names: not set(names) & set(NO_STREAMS.split())
    ),
    st.lists(st.integers(1, 9), min_size=8, max_size=8),
)
def test_any_streams_come_back_as_they_were(names: list[str], widths: list[int]) -> None:
    import webdataset

    with TemporaryDirectory() as folder:
        ids = {"training": ["a.b", "x" * 120]}
        published = write_published(Path(folder) / "in", ids, widths=dict(zip(names, widths, strict=False)))
        published.pack(Path(folder) / "out", streams=",".join(names), dtype="float32")
        shards, tars = ShardSet.open(Path(folder) / "out"), sorted(map(str, Path(folder).glob("out/*.tar")))
        samples = {s["json"]["id"]: s for s in webdataset.WebDataset(tars, shardshuffle=False).decode()}
        assert set(shards.streams) == set(names)
        for index, video in enumerate(shards.videos):
            for stream, expected_TD in published.features[video.id].items():
                np.testing.assert_array_equal(shards.read(index)[stream], expected_TD)
                np.testing.assert_array_equal(samples[video.id][f"{stream}.npy"], expected_TD)
        for name in names_in_plain_headers(tars[0]):
            assert name.rpartition(".json")[0] or name.removesuffix(".npy").rpartition(".")[2] in names


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_webdataset_streams_the_members(publish: Callable[..., Any], tmp_path: Path) -> None:
    import webdataset

    published = publish({"training/1.5": ODD_IDS})
    published.pack(tmp_path / "out", shard_mb=300e-6)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(tars) > 2
    samples = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode():
        assert set(sample) == {"__key__", "__url__", "__local_path__", "rgb.npy", "flow.npy", "json"}
        assert sample["__key__"] == sample_key(sample["json"]["id"])
        samples[sample["json"]["id"]] = sample
    assert samples.keys() == set(ODD_IDS)
    for number, video in enumerate(ODD_IDS):
        for stream, features_TD in published.features[video].items():
            np.testing.assert_array_equal(samples[video][f"{stream}.npy"], features_TD.astype("float16"))
        assert samples[video]["json"] == {
            "id": video,
            "subset": "training/1.5",
            "snippets": len(published.features[video]["rgb"]),
            "labels": [["Run", "Jump"][number % 2]],
            "duration_s": 10.0 + number,
            "fps": 25.0,
        }
    assert sorted(name for tar in tars for name in names_in_plain_headers(tar)) == sorted(
        f"{sample_key(video)}.{part}" for video in ODD_IDS for part in ("rgb.npy", "flow.npy", "json")
    )
    for tar in tars:  # GNU's
        listed = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True).stdout.split()
        assert listed == list(names_in_plain_headers(tar))
    shards = ShardSet.open(tmp_path / "out")
    assert {video.id for video in shards.videos} == set(ODD_IDS)
    assert all(shards.read(index) for index in range(len(shards)))
