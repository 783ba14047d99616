"""A folder of videos to a folder of features, by all ranks, to be gone on with after a kill.

    OUT/extraction.json          how everything in here is extracted; a later run must ask for the same
    OUT/<stream>/<video>.npy     T x D
    OUT/facts/<video>.json       written last: the video is done

The ranks take videos one by one, largest first, as each is ready for one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from aumn.files import hold, remove_leftovers, whole_file
from aumn.records import VIDEO_ENDINGS, InputError
from aumn.runtime.ranks import Ranks
from aumn.video.extract import VideoFeatures, extract_video
from aumn.video.extractor import open_extractor, read_settings
from aumn.video.flow import opencv
from aumn.video.frames import pyav
from aumn.video.options import ExtractOptions
from aumn.video.settings import ExtractorSettings

FORMAT = 1
KB = 1000


@dataclass
class ExtractReport:
    """What became of the videos."""

    settings: ExtractorSettings
    videos: int
    earlier: int  # were done by an earlier run
    bad: dict[str, str] = field(default_factory=dict)  # video -> what is wrong


def extract(options: ExtractOptions, ranks: Ranks, advance: Callable[[int, int], None]) -> ExtractReport:
    """Extract what is not done yet; `advance` is told of kilobytes of video files."""
    files, asked = options.files(), read_settings(options.facts(), "the options")
    pyav()
    if "flow" in asked.streams:
        opencv()
    videos = find_videos(options.videos)
    extractor = open_extractor(asked, files, ranks.device(options.device))
    lock = hold(options.out / ".lock", f"{options.out} is being written by another aumn: wait until it is done")
    with lock if ranks.is_first else nullcontext():
        todo: list[str] | None = None
        if ranks.is_first:
            _open(options.out, extractor.settings)
            todo = [name for name in videos if not facts_of(options.out, name).exists()]
        todo, count = ranks.broadcast((todo, uuid4().hex))  # the count is this call's own: a launch may have several
        assert todo is not None
        sizes = {name: videos[name].stat().st_size // KB for name in todo}
        total = sum(sizes.values())
        bad: dict[str, str] = {}
        advance(0, total)
        for name in _dealt(sorted(todo, key=lambda name: -sizes[name]), ranks, count):
            with _counted(sizes[name], total, ranks, count, advance) as told:
                try:
                    found = extract_video(videos[name], extractor, batch=options.batch, advance=told)
                except InputError as error:
                    bad[name] = str(error)
                else:
                    _write(options.out, name, videos[name].name, found)
        gathered = {name: why for part in ranks.gather(bad) for name, why in part.items()}
    return ExtractReport(extractor.settings, len(videos), len(videos) - len(todo), dict(sorted(gathered.items())))


def find_videos(place: Path) -> dict[str, Path]:
    """Files by name without ending, in the order of their names."""
    if not place.exists():
        raise InputError(f"{place} does not exist: name a folder of videos, or a video.")
    found = defaultdict(list)
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path == place or (path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".") and path.is_file()):
            found[path.stem].append(path)
    if not found:
        raise InputError(f"{place} holds no video: none of its files ends in {', '.join(sorted(VIDEO_ENDINGS))}.")
    if twice := [paths for paths in found.values() if len(paths) > 1]:
        raise InputError(
            f"{len(twice)} names in {place} are those of several videos, such as {twice[0][0]} and {twice[0][1]}: "
            "features are called after videos, so rename them."
        )
    return {name: paths[0] for name, paths in sorted(found.items())}


def facts_of(out: Path, name: str) -> Path:
    """Where a video's facts are, once it is done."""
    return out / "facts" / f"{name}.json"


def _open(out: Path, settings: ExtractorSettings) -> None:
    """Write down how this folder is extracted, or compare it with what is written there."""
    path = out / "extraction.json"
    facts = json.loads(settings.model_dump_json())
    told = {name: facts[name] for name in ("fps", "stride_frames", "window_frames", "dtype")}
    content = {"format": FORMAT, "extractor": facts, **told}
    if path.exists():
        if differences := _differences(_read(path), content):
            raise InputError(f"{out} is extracted otherwise ({differences}): ask for the same, or name another folder.")
    elif out.exists() and any(file.name != ".lock" for file in out.iterdir()):
        raise InputError(f"{out} holds other files, and no extraction.json: name a new or empty folder.")
    else:
        with whole_file(path) as file:
            file.write_text(json.dumps(content, indent=1) + "\n")
    for folder in (*settings.streams, "facts"):
        remove_leftovers(out / folder)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): remove it with its folder, and extract anew.") from None


def _differences(before: Any, now: Any, where: str = "") -> str:
    """Fields that are not the same, as one reads them."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = (_differences(before.get(key), now.get(key), f"{where}.{key}".strip(".")) for key in {**before, **now})
        return ", ".join(dict.fromkeys(part for part in parts if part))
    return "" if before == now else f"{where} is {json.dumps(before)} there, {json.dumps(now)} here"


def _dealt(names: list[str], ranks: Ranks, count: str) -> Iterator[str]:
    """Each name on one rank, the one that is ready for it first."""
    while (index := ranks.count(f"{count}/videos") - 1) < len(names):
        yield names[index]


@contextmanager
def _counted(
    size_kb: int, total_kb: int, ranks: Ranks, count: str, advance: Callable[[int, int], None]
) -> Iterator[Callable[[float], None]]:
    """Takes the share of a video that is done, and counts all of it in the end."""
    told_kb = 0

    def tell(share: float) -> None:
        nonlocal told_kb
        more_kb = max(int(share * size_kb) - told_kb, 0)
        told_kb += more_kb
        advance(ranks.count(f"{count}/kb", more_kb), total_kb)

    yield tell
    tell(1.0)


def _write(out: Path, name: str, file_name: str, found: VideoFeatures) -> None:
    for stream, values_TD in found.streams.items():
        with whole_file(out / stream / f"{name}.npy") as partial, partial.open("wb") as file:
            np.save(file, values_TD)
    facts = {
        "video": name,
        "file": file_name,
        "frames": found.frames,
        "fps": found.fps,
        "snippets": len(next(iter(found.streams.values()))),
        "duration_s": round(found.duration_s, 6),
    }
    with whole_file(facts_of(out, name)) as partial:
        partial.write_text(json.dumps(facts) + "\n")
