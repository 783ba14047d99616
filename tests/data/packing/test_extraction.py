"""What `aumn extract` wrote beside its features is taken, and what contradicts it refused."""

import json
from typing import Any

import pytest

from aumn.data.shards.shard_set import ShardSet
from aumn.records import InputError

EXTRACTION = {
    "format": 1,
    "extractor": {
        "name": "i3d",
        "streams": {"rgb": {"width": 5, "weights": "ab12"}, "flow": {"width": 3}},
        "side": 256,
    },
    "fps": None,
    "stride_frames": 8,
    "window_frames": 16,
    "dtype": "float32",
}


@pytest.fixture
def extracted(published: Any) -> Any:
    """The small dataset as if extracted, at a frame rate a video; video a has no duration in the ground truth."""
    (published.root / "facts").mkdir()
    for number, (video, streams) in enumerate(published.features.items()):
        tell(published, video, snippets=len(streams["rgb"]), fps=24.0 + number)
    (published.root / "extraction.json").write_text(json.dumps(EXTRACTION | {"made_by": "a later aumn"}))
    del published.database["a"]["duration"]
    published.write_annotations()
    return published


def tell(published: Any, video: str, **facts: Any) -> None:
    told = {"video": video, "file": f"{video}.mp4", "frames": 99, "fps": 24.0, "snippets": 4, "duration_s": 4.5} | facts
    (published.root / "facts" / f"{video}.json").write_text(json.dumps(told))


def test_an_extraction_is_packed_as_it_tells(extracted: Any) -> None:
    shards = extracted.open()
    assert (shards.clock, shards.dtype, shards.extractor) == ((8, 16), "float32", EXTRACTION["extractor"])
    assert {video.id: video.fps for video in shards.videos} == {"a": 24, "b": 25, "c": 26, "d": 27, "e": 28}
    assert {video.id: video.duration_s for video in shards.videos}["a"] == 4.5
    assert extracted.open(stride_frames=8, window_frames=16, dtype="float32").identity == shards.identity
    (extracted.root / "extraction.json").unlink()
    plain = extracted.open(fps=25.0)
    assert plain.extractor is None
    assert "extractor" not in json.loads((plain.path / "dataset.json").read_text())


def test_all_streams_of_the_extraction_are_packed_whatever_they_are_called(extracted: Any) -> None:
    (extracted.root / "flow").rename(extracted.root / "CLIP")
    streams = {"streams": {"CLIP": {"width": 3}, "rgb": {"width": 5}}}
    (extracted.root / "extraction.json").write_text(json.dumps(EXTRACTION | {"extractor": streams}))
    assert extracted.open().streams == {"rgb": 5, "clip": 3}
    assert extracted.open(streams="clip").streams == {"clip": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_frames": 16}, "--stride-frames 16 contradicts .*extraction.json, which tells 8: leave it out"),
        ({"window_frames": 8}, "--window-frames 8 contradicts .*extraction.json, which tells 16: leave it out"),
        ({"dtype": "float16"}, "--dtype float16 contradicts .*extraction.json, which tells float32: leave it out"),
        ({"fps": 25.0}, "--fps 25.0 contradicts .*extraction.json, which tells of each video: leave it out"),
        ({"rescaled": True}, "--rescaled contradicts .*extraction.json, which tells a stride: leave it out"),
    ],
)
def test_options_that_contradict_it(extracted: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        extracted.open(**{"window_frames": None} | options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this aumn reads 1"),
        ({"extractor": {}}, "names no streams of its extractor"),
        ({"extractor": {"streams": {"a/b": {}}}}, "A stream cannot be named 'a/b'"),
        ({"stride_frames": "many"}, r"is not as `aumn extract` writes it \(stride_frames: "),
        ({"stride_frames": 0}, "extraction.json: stride_frames is 0; it must be from 1"),
        ({"dtype": "int8"}, "extraction.json: dtype 'int8' is not one that shards hold"),
    ],
)
def test_extractions_that_are_damaged(extracted: Any, change: dict[str, Any], message: str) -> None:
    (extracted.root / "extraction.json").write_text(json.dumps(EXTRACTION | change))
    with pytest.raises(InputError, match=message):
        extracted.open()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            None,
            "b.npy is unfinished, since there is no .*facts/b.json: run the same `aumn extract` again. Or leave bad",
        ),
        ({"snippets": 3}, "b.npy has 2 snippets, and its facts tell 3 at 24 fps: extract it again"),
        ({"snippets": 2, "fps": 0}, r"b.json is not as `aumn extract` writes it \(.*: .* fps and duration_s must be"),
    ],
)
def test_a_video_whose_extraction_is_not_done(extracted: Any, facts: dict[str, Any] | None, message: str) -> None:
    (extracted.root / "facts" / "b.json").unlink()
    if facts:
        tell(extracted, "b", **facts)
    with pytest.raises(InputError, match=message):
        extracted.open()
    assert extracted.open(on_bad="skip").left_out == ("b",)


def test_a_set_that_was_packed_before_there_were_extractors_opens(shard_set: ShardSet) -> None:
    assert shard_set.extractor is None
