"""I3D-like features of one to eight streams with known action units, of any size; no camera ever saw them.

A class is an ordered mix of three action units, and units serve several classes: the idea that AUMN's memory rests on.
Backgrounds have units of their own and now and then show a lone action unit, which does not yet make an action. All
streams see the same units at the same time, through dictionaries of their own. Values lie where real I3D's do (mean
0.15, norm 10 at width 1024), half of them zero.

A video is a function of (seed, its number) and the settings alone: a longer set begins with the shorter one, byte for
byte, whatever the number of threads.

Shapes: T snippets, D width, C classes, U units (the action units, then the background's), S snippets of one instance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import comb, floor, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from aumn.files import whole_file
from aumn.records import InputError, check_streams

STREAMS = ("rgb", "flow")
UNITS_PER_CLASS = 3
BACKGROUND_UNITS = 8
SHORTEST_SNIPPETS = 16  # room for an instance with background around it


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What was written."""

    training: int
    testing: int
    instances: int
    bytes_written: int


def synthesize(
    out: Path,
    *,
    videos: int,
    seed: int = 0,
    classes: int = 10,
    units: int = 16,
    width: int = 1024,
    testing_share: float = 1 / 3,
    mean_snippets: int = 128,
    stride_frames: int = 16,
    fps: float = 25.0,
    noise: float = 1.0,
    streams: Sequence[str] = STREAMS,
    on_progress: Callable[[int, int], None] | None = None,
) -> SynthReport:
    """Write `out/<stream>/<video>.npy` (T x width, float16) and `out/gt.json` (ActivityNet layout).

    `gt.json` comes last, says in its version that the set is synthetic, and lists each class's true action units.
    `noise` scales the noise on every feature. `on_progress` hears (videos done, videos in all).
    """
    check_streams(streams)
    _check_at_least(
        videos=(videos, 2),
        seed=(seed, 0),
        classes=(classes, 1),
        units=(units, UNITS_PER_CLASS),
        width=(width, 1),
        mean_snippets=(mean_snippets, SHORTEST_SNIPPETS),
        stride_frames=(stride_frames, 1),
        fps=(fps, 1),
        noise=(noise, 0),
    )
    mixes = comb(units, UNITS_PER_CLASS)
    if mixes < classes:
        raise InputError(
            f"units={units} make only {mixes} mixes of {UNITS_PER_CLASS}, too few for classes={classes}: "
            "use more units or fewer classes."
        )
    if not (isfinite(testing_share) and 0 < _count_testing(videos, testing_share) < videos):
        raise InputError(
            f"testing_share={testing_share:.4g} of videos={videos} must leave both subsets a video: "
            "use a share between 0 and 1, or more videos."
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder: name a new one, or remove it first.")
    for stream in streams:
        (out / stream).mkdir(parents=True)
    world = _make_world(seed, classes, units, width, len(streams))

    def write(index: int) -> dict[str, Any]:
        video = _plan_video(world, index, mean_snippets)
        for number, stream in enumerate(streams):
            np.save(out / stream / f"synth_{index:06d}.npy", _features(world, video, number, noise))
        # Testing videos lie evenly among the others, so a short set holds both, too.
        is_testing = _count_testing(index + 1, testing_share) > _count_testing(index, testing_share)
        snippet_s = stride_frames / fps
        return {
            "subset": "testing" if is_testing else "training",
            "duration": len(video.action_unit_T) * snippet_s,
            "fps": fps,
            "annotations": [
                {"label": f"action_{label:03d}", "segment": [start * snippet_s, end * snippet_s]}
                for label, start, end in video.instances
            ],
        }

    database: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, entry in enumerate(pool.map(write, range(videos))):
            database[f"synth_{index:06d}"] = entry
            if on_progress:
                on_progress(index + 1, videos)
    ground_truth = {
        "version": f"SYNTHETIC features and timelines, not real videos (aumn synth, seed {seed})",
        "action_units": {f"action_{label:03d}": units_U.tolist() for label, units_U in enumerate(world.units_CU)},
        "database": database,
    }
    with whole_file(out / "gt.json") as file:
        file.write_text(json.dumps(ground_truth, indent=1) + "\n")
    testing = _count_testing(videos, testing_share)
    instances = sum(len(entry["annotations"]) for entry in database.values())
    return SynthReport(videos - testing, testing, instances, sum(path.stat().st_size for path in out.glob("*/*.npy")))


@dataclass(frozen=True, slots=True)
class _World:
    """What all videos of a seed share."""

    seed: int
    units_CU: np.ndarray  # C x 3, in the order in which an instance goes through them
    dictionaries_UD: tuple[np.ndarray, ...]  # one a stream


@dataclass(frozen=True, slots=True)
class _Video:
    """What a video shows before any stream looks at it: in every snippet an action unit, a background unit, a blend."""

    index: int
    instances: list[tuple[int, float, float]]  # class, start and end in snippets; ends lie off the snippet grid
    action_unit_T: np.ndarray
    background_unit_T: np.ndarray
    action_share_T: np.ndarray  # how much of the snippet lies inside an instance
    gain_U: np.ndarray  # how strongly this video shows each unit


def _make_world(seed: int, classes: int, units: int, width: int, streams: int) -> _World:
    rng = np.random.default_rng((seed, 0))
    mixes: dict[frozenset[int], np.ndarray] = {}
    while len(mixes) < classes:
        mix = rng.choice(units, UNITS_PER_CLASS, replace=False)
        mixes.setdefault(frozenset(mix.tolist()), mix)
    dictionaries_UD = tuple(_patterns(rng, units + BACKGROUND_UNITS, width) for _ in range(streams))
    return _World(seed, np.stack(list(mixes.values())), dictionaries_UD)


def _patterns(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """What the channels say of one thing: most of them nothing, a few a lot."""
    return (rng.exponential(0.4, (count, width)) * (rng.random((count, width)) < 0.15)).astype(np.float32)


def _plan_video(world: _World, index: int, mean_snippets: int) -> _Video:
    rng = np.random.default_rng((world.seed, 1, index))
    snippets = max(SHORTEST_SNIPPETS, round(mean_snippets * rng.gamma(4.0) / 4.0))
    units = len(world.dictionaries_UD[0])
    background_unit_T = _background(rng, snippets, units)
    gain_U = rng.lognormal(0, 0.2, units).astype(np.float32)
    instances = list(_timeline(rng, snippets, _labels(world, index, rng)))
    action_unit_T, action_share_T = np.zeros(snippets, int), np.zeros(snippets, np.float32)
    for label, start, end in instances:
        now_S = np.arange(floor(start), floor(end) + 1)
        progress_S = np.clip((now_S + 0.5 - start) / (end - start), 0, 0.999)
        phase_S = np.floor(progress_S * UNITS_PER_CLASS * rng.integers(1, 4)).astype(int)  # one to three repetitions
        action_unit_T[now_S] = world.units_CU[label, phase_S % UNITS_PER_CLASS]
        action_share_T[now_S] = np.minimum(now_S + 1, end) - np.maximum(now_S, start)
    return _Video(index, instances, action_unit_T, background_unit_T, action_share_T, gain_U)


def _labels(world: _World, index: int, rng: np.random.Generator) -> list[int]:
    """One class or two. The first is dealt like cards, so that even a small set shows every class."""
    classes = len(world.units_CU)
    deal, place = divmod(index, classes)
    first = int(np.random.default_rng((world.seed, 2, deal)).permutation(classes)[place])
    second = int(rng.integers(classes))
    return [first, second] if rng.random() < 0.2 and second != first else [first]


def _timeline(rng: np.random.Generator, snippets: int, labels: list[int]) -> Iterator[tuple[int, float, float]]:
    """Instances (class, start, end) with gaps between them, at least one a video, the classes taking turns."""
    start, turn = rng.uniform(1, 4), 0
    while start + 4 < snippets:
        end = min(start + rng.uniform(4, 24), snippets - 1.0)
        yield labels[turn % len(labels)], start, end
        start, turn = end + 2 + rng.exponential(18), turn + 1


def _background(rng: np.random.Generator, snippets: int, units: int) -> np.ndarray:
    """The unit behind every snippet: runs of six snippets on average, one run in 24 a lone action unit."""
    run_T = np.cumsum(rng.random(snippets) < 1 / 6)
    first, runs = units - BACKGROUND_UNITS, snippets + 1
    lone_R = rng.random(runs) < 1 / 24
    unit_R = np.where(lone_R, rng.integers(first, size=runs), rng.integers(first, units, size=runs))
    unit_T: np.ndarray = unit_R[run_T]
    return unit_T


def _features(world: _World, video: _Video, stream: int, noise: float) -> np.ndarray:
    """What one stream makes of the video: units blended, in half of the videos a scene behind them, noise, a ReLU."""
    rng = np.random.default_rng((world.seed, 3 + stream, video.index))
    units_UD = world.dictionaries_UD[stream] * video.gain_U[:, None]
    share_T1 = video.action_share_T[:, None]
    features_TD: np.ndarray = units_UD[video.background_unit_T] * (1 - share_T1)
    features_TD += units_UD[video.action_unit_T] * share_T1
    if rng.random() < 0.5:
        features_TD += _patterns(rng, 1, units_UD.shape[1])
    noise_TD = rng.random(features_TD.shape, np.float32)  # uniform: Gaussian noise would take half of the time here
    noise_TD -= 0.6
    noise_TD *= 0.5 * noise
    features_TD += noise_TD
    np.maximum(features_TD, 0, out=features_TD)
    return features_TD.astype(np.float16)


def _count_testing(videos: int, testing_share: float) -> int:
    return floor(videos * testing_share + 0.5)


def _check_at_least(**settings: tuple[float, float]) -> None:
    for name, (value, least) in settings.items():
        if not (isfinite(value) and value >= least):
            raise InputError(f"{name}={value} must be a number of at least {least}.")
