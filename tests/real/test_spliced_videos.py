"""The spliced videos' ground truth is what their frames show; their people are apart."""

import random
from itertools import pairwise

import av
import numpy as np
import pytest

from tests.real import spliced_videos
from tests.video.clips import write_video

from .spliced_videos import ACTIONS, BACKGROUND, find_clips, plan, write

GREY = {"shavasana": 40, "trikonasana": 120, "parvatasana": 200}


def test_instances_are_where_frames_are_those_of_their_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(spliced_videos, "SIZE", (64, 48))
    clips = {
        pose: write_video(
            tmp_path / f"{pose}.mp4",
            [0.5 + number / 20 for number in range(60)],
            picture=lambda _number, width, height, grey=grey: np.full((height, width, 3), grey, "uint8"),
        )
        for pose, grey in GREY.items()
    }
    order = ("shavasana", "trikonasana", "shavasana", "parvatasana")
    parts = [(pose, clips[pose], share, 1.2) for pose, share in zip(order, (0, 0.5, 1, 0.7), strict=True)]
    duration_s, annotations = write(tmp_path / "spliced.mp4", parts)
    assert duration_s == pytest.approx(4 * 1.2 - 1 / 20)  # a clip's last frame is left out
    assert [found["label"] for found in annotations] == ["trikonasana", "parvatasana"]
    with av.open(str(tmp_path / "spliced.mp4")) as container:
        greys = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    for time_s, grey in greys:
        labels = [found["label"] for found in annotations if found["segment"][0] <= time_s + 1e-3 < found["segment"][1]]
        assert grey == pytest.approx(GREY[labels[0] if labels else "shavasana"], abs=25)


def test_people_are_apart_and_background_lies_between_actions(tmp_path):
    for pose in (*ACTIONS, *BACKGROUND):
        (tmp_path / pose).mkdir()
        for person, arrival in enumerate(spliced_videos.ARRIVALS, 1):
            for name in (f"VID20250127{arrival}.mp4", f"VID20250127{arrival}_flipped.mp4"):
                (tmp_path / pose / name).write_text(str(person))
    clips = find_clips(tmp_path)
    people = {
        name: {int(path.read_text()) for paths in part.values() for path in paths} for name, part in clips.items()
    }
    assert people == {"training": {1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16}, "testing": {3, 6, 9, 12, 15}}
    for seed in range(20):
        parts = plan(clips["training"], random.Random(seed))
        acting = [pose in ACTIONS for pose, *_ in parts]
        assert all(before != after for before, after in pairwise(acting))
        assert parts == plan(clips["training"], random.Random(seed))
