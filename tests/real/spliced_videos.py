"""Untrimmed *video files* with known instances, spliced from clips of six yoga poses: decoded, cut, and encoded anew.

    python -m tests.real.spliced_videos CLIPS OUT [--seed 0]

CLIPS is the folder `dataset` of a set of real clips that is not part of this project; docs/real_video.md says where it
is and what is known of it: a folder a pose, and in it phone videos of about ten seconds whose names tell when they were
taken (`VID20250127140150.mp4`). Four poses are actions; the two in which one rests are background, and never annotated.
Every clip is of one person before the same wall, so that neither place nor picture tells a pose from another, nor an
action from background. People of the testing videos are in no training video.

Writes OUT/videos/<video>.mp4 and OUT/gt.json (ActivityNet's layout; times are those of the frames as written).
"""

import argparse
import json
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

ACTIONS = ("bhujangasan", "child_s pose", "parvatasana", "trikonasana")
BACKGROUND = ("padmasana", "shavasana")
# When each of the 16 people comes before the camera, hours to seconds, as seen in the clips.
ARRIVALS = (
    "135303", "140017", "141019", "141804", "142208", "142657", "143051", "143444",
    "144402", "145153", "145609", "150129", "150721", "151203", "151558", "151920",
)  # fmt: skip
TAKEN = re.compile(r"(?:Copy of )?VID\d{8}(\d{6})\.mp4")  # others are mirrored copies of these
VIDEOS = {"training": 24, "testing": 12}
SECONDS = (25, 42)  # a video, at least
ACTION_S, BACKGROUND_S = (3.0, 7.0), (2.0, 6.0)  # an instance, and what lies between two
MIDDLE = (0.3, 0.7)  # of an action's clip: people stand or kneel before and after the pose
TICKS = 90_000  # a second, as written
SIZE = (854, 480)  # of every clip

Clips = dict[str, list[Path]]


def find_clips(folder: Path) -> dict[str, Clips]:
    """Clips by subset and pose. Every third person is a testing one."""
    found: dict[str, Clips] = {subset: defaultdict(list) for subset in VIDEOS}
    for pose in (*ACTIONS, *BACKGROUND):
        for path in sorted((folder / pose).iterdir()):
            if taken := TAKEN.fullmatch(path.name):
                person = bisect_right(ARRIVALS, taken[1])
                found["testing" if person % 3 == 0 else "training"][pose].append(path)
    return found


def plan(clips: Clips, rng: random.Random) -> list[tuple[str, Path, float, float]]:
    """Pose, clip, from where in it (a share of what can be left out), and seconds of each part of a video."""
    wanted_s, parts, whole_s = rng.uniform(*SECONDS), [], 0.0
    labels = rng.sample(ACTIONS, rng.choice((1, 1, 2, 2, 3)))
    acting = rng.random() < 0.3
    while whole_s < wanted_s or not set(labels) <= {pose for pose, *_ in parts}:
        pose = rng.choice(labels if acting else BACKGROUND)
        length_s = rng.uniform(*(ACTION_S if acting else BACKGROUND_S))
        share = rng.uniform(*MIDDLE) if acting else rng.random()
        parts.append((pose, rng.choice(clips[pose]), share, length_s))
        whole_s, acting = whole_s + length_s, not acting
    return parts


def cut(path: Path, share: float, length_s: float) -> Iterator[tuple[Any, Fraction, Fraction]]:
    """Frames of a part of a clip, each with its time since the part's start, and how long it is shown."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = [(frame, frame.pts * stream.time_base) for frame in container.decode(stream)]
    starts_s = [start_s for _, start_s in frames]
    start_s = starts_s[0] + Fraction(share) * max(0, starts_s[-1] - starts_s[0] - Fraction(length_s))
    chosen = [index for index, time_s in enumerate(starts_s[:-1]) if start_s <= time_s < start_s + Fraction(length_s)]
    for index in chosen:
        yield frames[index][0], starts_s[index] - starts_s[chosen[0]], starts_s[index + 1] - starts_s[index]


def write(path: Path, parts: list[tuple[str, Path, float, float]]) -> tuple[float, list[dict]]:
    """The video; its seconds, and its annotations."""
    import av

    offset_s, annotations = Fraction(0), []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20", "preset": "superfast"})
        stream.width, stream.height = SIZE
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        for pose, clip, share, length_s in parts:
            for frame, time_s, shown_s in cut(clip, share, length_s):
                frame.pts, frame.time_base = round((offset_s + time_s) * TICKS), Fraction(1, TICKS)
                frame.duration = round(shown_s * TICKS)
                frame.pict_type = 0  # the encoder's choice, not the clip's
                container.mux(stream.encode(frame))
            end_s = offset_s + time_s + shown_s
            if pose in ACTIONS:
                annotations.append({"label": pose, "segment": [round(float(t), 3) for t in (offset_s, end_s)]})
            offset_s = end_s
        container.mux(stream.encode())
    return round(float(offset_s), 3), annotations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    (arguments.out / "videos").mkdir(parents=True)
    rng, database = random.Random(arguments.seed), {}
    for subset, clips in find_clips(arguments.clips).items():
        for index in range(VIDEOS[subset]):
            video = f"{subset}_{index:02d}"
            duration_s, annotations = write(arguments.out / "videos" / f"{video}.mp4", plan(clips, rng))
            database[video] = {"subset": subset, "duration": duration_s, "annotations": annotations}
            print(f"{video}: {duration_s:.1f} s, {len(annotations)} instances", flush=True)
    truth = {"version": f"spliced yoga clips, seed {arguments.seed}", "database": database}
    (arguments.out / "gt.json").write_text(json.dumps(truth, indent=1))


if __name__ == "__main__":
    main()
