"""What is known of two public sets by their videos' names: which population it is, and whose features these look like.

Each fact has its source in docs/thumos14.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from aumn.records import Clock, Video

THUMOS14 = re.compile(r"video_(validation|test)_\d{7}")
ACTIVITYNET = re.compile(r"(v_)?[\w-]{11}")
MOST = 0.9  # of a set's names, and of its subsets'
POPULATIONS = {  # which of the odd test videos are left out -> how many there are, and what is known of them
    ("270", "1292", "1496"): (210, "as BaS-Net, STPN, DGAM and AutoLoc measured"),
    ("1292",): (212, "as W-TALC, CO2-Net, P-MIL and ActionFormer measured"),
    ("270", "1292"): (211, "as OpenTAD measured"),
    (): (213, "of which video_test_0001292 holds nothing but Ambiguous instances"),
}
OFFICIAL = {  # ActivityNet's, by its number of classes
    100: ("ActivityNet1.2", {"training": 4819, "validation": 2383}),
    200: ("ActivityNet1.3", {"training": 10024, "validation": 4926}),
}
SLACK = 0.03  # of a rate
LAST_S = {"video_validation_0000051": 169.8, "video_test_0000004": 33.8, "video_test_0000006": 67.1}


class Extraction(NamedTuple):
    """How often features were read from a video, and in whose releases."""

    per_s: float
    strides: int  # that a window is long
    releases: str
    options: str


EXTRACTIONS = (
    Extraction(25 / 16, 1, "the I3D of W-TALC, BaS-Net and ACM-Net", "--stride-frames 16 --fps 25"),
    Extraction(
        30 / 4,
        4,
        "the I3D of CMCS, which ActionFormer took, and OpenTAD's VideoMAE",
        "--stride-frames 4 --window-frames 16 with annotations that tell each video's frame rate",
    ),
    Extraction(10 / 4, 1, "W-TALC's UntrimmedNet", "--stride-frames 4 --fps 10"),
    Extraction(
        30 / 8,
        8,
        "PGCN's I3D",
        "--stride-frames 8 --window-frames 64 with annotations that tell each video's frame rate",
    ),
    Extraction(30, 1, "G-TAD's TSN", "--stride-frames 1 with annotations that tell each video's frame rate"),
)
"""Of videos at 30 frames a second, as most are."""


def recognize(videos: Sequence[Video], classes: Collection[str], clock: Clock) -> list[str]:
    """Sentences about a public set that these are, or may be; none about any other."""
    if _are_named(videos, THUMOS14):
        return [*_thumos14_population(videos), *_thumos14_extraction(videos, clock)]
    if len(classes) in OFFICIAL and _are_named(videos, ACTIVITYNET):
        return list(_activitynet(videos, len(classes)))
    return []


def _are_named(videos: Sequence[Video], pattern: re.Pattern[str]) -> bool:
    return sum(pattern.fullmatch(video.id) is not None for video in videos) > MOST * len(videos)


def _thumos14_population(videos: Sequence[Video]) -> Iterator[str]:
    numbers = {video.id[-7:].lstrip("0") for video in videos if video.id.startswith("video_test_")}
    trained_on = sum(video.id.startswith("video_validation_") for video in videos)
    missing = tuple(odd for odd in ("270", "1292", "1496") if odd not in numbers)
    without = f", without video_test number {' and '.join(missing)}" if missing else ""
    size, whose = POPULATIONS.get(missing, (0, ""))
    if len(numbers) != size:
        whose = "which is no usual population: papers have 210 to 212"
    yield f"THUMOS14: {trained_on} of 200 validation videos, {len(numbers)} test videos{without}, {whose}."


def _thumos14_extraction(videos: Sequence[Video], clock: Clock) -> Iterator[str]:
    """By a video of which it is known how long it lasts, since some releases of the ground truth tell of none."""
    here = {video.id: video for video in videos if video.id in LAST_S}
    for video in (here[name] for name in LAST_S if name in here):
        found = video.snippets / LAST_S[video.id]
        strides = clock.window_frames / clock.stride_frames
        like = min(EXTRACTIONS, key=lambda known: abs(known.per_s / found - 1))
        said = f"THUMOS14: {found:.2f} snippets a second (by {video.id})"
        if abs(like.per_s / found - 1) > SLACK:
            yield f"{said}, as in no release that is known here."
        elif strides != like.strides or abs(video.fps / clock.stride_frames / like.per_s - 1) > SLACK:
            yield f"{said}, as in {like.releases}. CHECK: pack with {like.options}."
        else:
            yield f"{said}, as in {like.releases}: {like.options}."
        return


def _activitynet(videos: Sequence[Video], classes: int) -> Iterator[str]:
    name, official = OFFICIAL[classes]
    here = {subset: sum(video.subset == subset for video in videos) for subset in official}
    counts = " and ".join(f"{here[subset]:,} of {official[subset]:,} {subset} videos" for subset in official)
    if here == official:
        yield f"{name}: {counts}, the official population."
    else:
        yield (
            f"{name}: {counts}. Measured against this set, missing videos count for nothing; against the official "
            "ground truth, their instances are not found. Say which with every mAP."
        )
