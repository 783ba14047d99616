"""The tars are WebDataset's, whatever a video is called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aumn.data.shards.layout import sample_key
from aumn.data.shards.shard_set import ShardSet

ODD_IDS = ["v.1.2", ".hidden", "a b", "ünï", "日本", "50%", "-x", "__meta__", "folder/clip.1", 'it\'s "so"', "x" * 120]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_keys_are_cut_nowhere_and_lead_back(video: str) -> None:
    key = sample_key(video)
    assert key.isascii()
    assert not {".", "/", "\0"} & set(key)
    assert unquote(key) == video


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
        samples[unquote(sample["__key__"])] = sample
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
    shards = ShardSet.open(tmp_path / "out")
    assert {video.id for video in shards.videos} == set(ODD_IDS)
    assert all(shards.read(index) for index in range(len(shards)))
