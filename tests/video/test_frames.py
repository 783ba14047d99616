"""Frames at a constant rate, held against ffmpeg's own filter; and videos that cannot be trusted."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from aumn.records import InputError
from aumn.video.frames import Frames

from .clips import flat, shade, turn, write_video

STEADY = [number / 30 for number in range(20)]
VARYING = [0, 0.1, 0.15, 0.17, 0.5, 0.9, 0.91, 1.0]


def by_ffmpeg(path, fps):
    """What ffmpeg's filter makes of the times: the number of the frame that is shown at each."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        graph = av.filter.Graph()
        steps = [
            graph.add_buffer(template=stream),
            graph.add("setpts", "PTS-STARTPTS"),
            graph.add("fps", f"fps={fps}"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*steps).configure()
        numbers = {}
        for number, frame in enumerate(frames):
            numbers[frame.to_ndarray(format="gray").tobytes()] = number
            graph.push(frame)
        graph.push(None)
        shown = []
        while True:
            try:
                shown.append(numbers[graph.pull().to_ndarray(format="gray").tobytes()])
            except (av.BlockingIOError, av.EOFError):
                return shown


def numbers(frames):
    """By their shades."""
    shades = np.array([shade(number) for number in range(25)])
    return [int(np.abs(shades - frame.mean()).argmin()) for frame in frames]


@pytest.mark.parametrize("fps", [25.0, 10.0, 60.0, 29.97])
@pytest.mark.parametrize(
    ("name", "times_s", "extra"),
    [
        ("steady.mp4", STEADY, {}),
        ("steady.mkv", STEADY, {}),
        ("varying.mp4", VARYING, {}),
        ("late.mp4", [1 + time_s for time_s in STEADY], {}),
    ],
)
def test_frames_are_those_of_ffmpegs_filter(tmp_path, name, times_s, extra, fps):
    path = write_video(tmp_path / name, times_s, **extra)
    frames = Frames(path, fps=fps, side=48)
    found, expected = numbers(frames), by_ffmpeg(path, fps)
    assert found == expected[: len(found)]
    assert set(expected[len(found) :]) <= {len(times_s) - 1}  # which believes that the last frame lasts for longer
    assert len(found) == pytest.approx(frames.duration_s * fps, abs=0.51)
    assert frames.frames == len(times_s)
    assert frames.fps == fps
    last_s = 0.09 if times_s is VARYING else 1 / 30
    assert frames.duration_s == pytest.approx(times_s[-1] - times_s[0] + last_s, abs=0.002)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("b_frames.avi", {"options": {"bf": "3"}, "tick": Fraction(1, 30)}),
        ("old.avi", {"codec": "mpeg4", "options": {"bf": "2", "b": "9000000"}, "tick": Fraction(1, 30)}),
        ("b_frames.mkv", {"options": {"bf": "3"}}),
        ("late.mp4", {}),
    ],
)
def test_the_own_rate_keeps_every_frame_in_its_order(tmp_path, name, extra):
    path = write_video(tmp_path / name, [(name == "late.mp4") + time_s for time_s in STEADY], **extra)
    frames = Frames(path, fps=None, side=48)
    assert numbers(frames) == list(range(20))
    assert frames.fps == pytest.approx(30, abs=1e-3)
    if path.suffix == ".avi":
        assert numbers(Frames(path, fps=15.0, side=48)) == list(range(0, 20, 2))


def test_all_frames_count_where_the_file_says_that_it_ends_before_them(tmp_path):
    path = write_video(tmp_path / "short.mp4", [0, 0.1, 0.2, 0.3, 0.9, 1.0], options={"bf": "2"})
    frames = Frames(path, fps=25.0, side=48)
    assert numbers(frames)[-5:] == [4, 4, 5, 5, 5]
    assert frames.declared_s < 1 < frames.duration_s


def halves(number, width, height):
    """Light above, dark below."""
    picture = flat(0, width, height)
    picture[: height // 2] = 200
    return picture


@pytest.mark.parametrize(
    ("matrix", "shape", "light"),
    [
        ((65536, 0, 0, 65536), (48, 64), (0, 32)),
        ((0, 65536, -65536, 0), (64, 48), (32, 47)),  # a quarter clockwise, as phones held upright write it
        ((-65536, 0, 0, -65536), (48, 64), (47, 32)),
        ((0, -65536, 65536, 0), (64, 48), (32, 0)),
    ],
)
def test_frames_are_upright(tmp_path, matrix, shape, light):
    path = turn(write_video(tmp_path / "phone.mp4", STEADY, picture=halves), matrix)
    (first, *_) = Frames(path, fps=25.0, side=48)
    assert first.shape == (*shape, 3)
    assert first[light].mean() > 150
    assert first[shape[0] - 1 - light[0], shape[1] - 1 - light[1]].mean() < 50


@pytest.mark.parametrize(("size", "shape"), [((64, 48), (36, 48)), ((48, 64), (48, 36)), ((50, 30), (36, 60))])
def test_the_shorter_side_is_as_long_as_asked(tmp_path, size, shape):
    (first, *_) = Frames(write_video(tmp_path / "a.mp4", STEADY, size=size), fps=25.0, side=36)
    assert first.shape == (*shape, 3)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def damage(path):
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    noise = np.random.default_rng(0)
    for place in noise.integers(start + (len(content) - start) // 3, len(content) - 2000, 200):
        content[place] ^= 0xFF
    path.write_bytes(content)


def noisy(number, width, height):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def long(path):
    return write_video(path, [number / 30 for number in range(120)], picture=noisy, options={"crf": "20"})


@pytest.mark.parametrize(
    ("name", "write", "fps", "problem"),
    [
        ("empty.mp4", lambda path: path.write_bytes(b""), 25.0, "is no video, or was cut short"),
        ("text.mp4", lambda path: path.write_text("no video\n" * 99), 25.0, "is no video, or was cut short"),
        ("nowhere.mp4", Path.exists, 25.0, r"cannot be read \(No such file or directory\): check the path"),
        ("sound.mp4", sound, 25.0, "holds no video"),
        ("cut.mkv", lambda path: cut(long(path), 0.5), 25.0, "though it says 4.00 s: it was cut short"),
        (
            "no_end.mp4",
            lambda path: cut(long(path), 0.5),
            25.0,
            "is no video, or was cut short",
        ),  # its table is at the end
        ("damaged.mp4", lambda path: damage(long(path)), 25.0, "damaged|cannot be decoded|times"),
        (
            "tilted.mp4",
            lambda path: turn(write_video(path, STEADY), (46341, 46341, -46341, 46341)),
            25.0,
            "right angle",
        ),
        ("varying.mp4", lambda path: write_video(path, VARYING), None, "give --fps a number"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, name, write, fps, problem):
    write(tmp_path / name)
    with pytest.raises(InputError, match=problem):
        list(Frames(tmp_path / name, fps=fps, side=48))
