"""Windows, flow and readers of one video; features do not depend on how the work was cut."""

import cv2
import numpy as np
import pytest
import torch

from aumn.records import InputError
from aumn.video.extract import extract_video, windows
from aumn.video.extractor import open_extractor, read_settings
from aumn.video.flow import centre, with_flow
from aumn.video.frames import Frames

from .clips import corners, moving, random_weights, write_video

SMALL = {"side": 36, "crop": 32, "fps": 25.0}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """41 frames at 25 a second."""
    path = tmp_path_factory.mktemp("clip") / "moving.mp4"
    return write_video(path, [number / 25 for number in range(41)], picture=moving, rate=25)


def custom(**changes):
    facts = {"name": "tests.video.clips:corners", "streams": {"rgb": {}}, "dtype": "float32"} | SMALL | changes
    return open_extractor(read_settings(facts, "the test"), {})


@pytest.mark.parametrize(
    ("window", "stride", "snippets"), [(16, 16, 2), (16, 8, 4), (8, 16, 3), (41, 16, 1), (9, 32, 2), (1, 1, 41)]
)
def test_a_snippet_is_read_from_its_windows_frames(clip, window, stride, snippets):
    extractor = custom(window_frames=window, stride_frames=stride)
    found = extract_video(clip, extractor, batch=3)
    frames = np.stack([centre(frame, 32) for frame in Frames(clip, fps=25.0, side=36)]).astype(np.float32) / 127.5 - 1
    cut = [torch.from_numpy(frames[first : first + window]) for first in range(0, 41 - window + 1, stride)]
    expected = torch.cat([corners(frames.permute(3, 0, 1, 2)[None]) for frames in cut])
    assert found.streams["rgb"].shape == (snippets, 48)
    np.testing.assert_allclose(found.streams["rgb"], expected, atol=1e-6)
    assert (found.fps, found.frames, found.duration_s) == (25.0, 41, pytest.approx(41 / 25))


def test_flow_is_opencvs_own_of_each_frame_and_the_next(clip):
    frames = list(Frames(clip, fps=25.0, side=36))[:7]
    found = list(with_flow(iter(frames), 32))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    tvl1 = cv2.optflow.DualTVL1OpticalFlow.create()
    for number, (frame, flow) in enumerate(found):
        first = min(number, 5)  # the last frame has the flow before it
        expected = np.clip(centre(tvl1.calc(grey[first], grey[first + 1], None), 32), -20, 20) / 20
        assert frame is frames[number]
        np.testing.assert_array_equal(flow, expected.astype(np.float32))
    assert 1.2 / 20 < np.median(found[2][1][..., 0]) < 1.8 / 20  # 2 pixels of 48 rows are 1.5 of 36


def test_both_streams_of_i3d_from_files_of_weights(clip, tmp_path):
    files = {}
    arrays = {"rgb": random_weights(3), "flow": random_weights(2)}
    for stream, made in arrays.items():
        files[stream] = tmp_path / f"{stream}_imagenet.pt"
        torch.save(made, files[stream])
    extractor = open_extractor(read_settings({"streams": {"rgb": {}, "flow": {}}} | SMALL, "the test"), files)
    found = extract_video(clip, extractor)
    assert {stream: (values.shape, values.dtype.name) for stream, values in found.streams.items()} == {
        "rgb": ((2, 1024), "float16"), "flow": ((2, 1024), "float16"),
    }  # fmt: skip
    window = next(windows(Frames(clip, fps=25.0, side=36), extractor.settings))["flow"]
    with torch.inference_mode():
        expected = extractor.readers["flow"](torch.from_numpy(window).permute(3, 0, 1, 2)[None])
    np.testing.assert_allclose(found.streams["flow"][0], expected[0], rtol=2e-3, atol=1e-3)

    again = read_settings(extractor.settings.model_dump(), "a model's card")
    assert open_extractor(again, files).settings == extractor.settings
    torch.save(arrays["flow"] | {"logits.conv3d.bias": torch.ones(400)}, files["flow"])
    with pytest.raises(InputError, match=r"Stream flow was extracted.*name the right file, --weights flow=FILE"):
        open_extractor(again, files)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "tests.video.clips:wrong"}, "made 1x3x16x32x32 of one window"),
        ({"name": "tests.video.clips:nothing"}, "cannot be imported"),
        ({"name": "no.such.module:nothing"}, "cannot be imported"),
        ({"name": "c3d"}, "give i3d, or a function"),
        ({"streams": {"depth": {}}}, "the test: streams.depth"),
        ({"streams": {}}, "rgb, flow or both"),
        ({"crop": 48}, "crop=48 must be 36"),
        ({"window_frames": 0}, "the test: window_frames"),
        ({"dtype": "float64"}, "the test: dtype"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, problem):
    with pytest.raises(InputError, match=problem):
        custom(**changes)


def test_a_video_shorter_than_a_window_is_refused(clip):
    with pytest.raises(InputError, match=r"moving.mp4 lasts 1.64 s, less than one window of 42 frames at 25"):
        extract_video(clip, custom(window_frames=42))


def test_values_beyond_the_dtype_are_refused(clip, monkeypatch):
    monkeypatch.setattr("tests.video.clips.corners", lambda windows: windows.mean((2, 3, 4)) + 1e6)
    with pytest.raises(InputError, match="no float16: try --dtype float32"):
        extract_video(clip, custom(dtype="float16"))
