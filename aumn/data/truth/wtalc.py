"""Ground truth as W-TALC released it: a folder of numpy arrays, an entry a video, some of them pickled lists.

Read: videoname, subset, duration, labels, segments (labels_all where there are no segments). Not believed:
extracted_fps, which is of other features than the I3D ones, whose snippets are 16 frames at 25 fps; and labels_all
where there are segments, from which it differs for 28 of THUMOS14's 412 videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.problems import about
from aumn.data.sources.arrays import read_objects
from aumn.data.sources.unpickling import plain
from aumn.data.truth.annotated import AnnotatedVideo, parse_instance, parse_positive, parse_videos
from aumn.records import InputError

NAMES = "videoname.npy"


def read_wtalc(folder: Path, *, allow_pickle: bool) -> list[AnnotatedVideo]:
    """Every video, in the order in which the features' arrays lie."""
    with about(f"{folder}: {NAMES}"):
        names = [_text(name) for name in _read(folder, "videoname", allow_pickle)]
    told = ["subset", "duration", "segments", "labels"]
    told += ["labels_all"] if (folder / "labels_all.npy").is_file() else []
    columns = {name: _read(folder, name, allow_pickle) for name in told}
    for name, column in columns.items():
        if len(column) != len(names):
            raise InputError(
                f"{folder}: {name}.npy has {len(column):,} entries where {NAMES} has {len(names):,}: take all files "
                "from one release."
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{folder}: {NAMES} names {', '.join(map(repr, twice[:3]))} more than once: correct it.")
    entries = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return parse_videos(folder, zip(names, entries, strict=True), _parse_video)


def _read(folder: Path, name: str, allow_pickle: bool) -> list[Any]:
    path = folder / f"{name}.npy"
    if not path.is_file():
        raise InputError(f"{path} is missing: W-TALC's annotation folder has it; fetch the folder again.")
    return _items(read_objects(path, allow_pickle=allow_pickle))


def _parse_video(name: str, entry: dict[str, Any]) -> AnnotatedVideo:
    labels, segments = [_text(label) for label in _items(entry["labels"])], _items(entry["segments"])
    if len(labels) != len(segments):
        raise InputError(f"has {len(labels)} labels and {len(segments)} segments; give each segment its label.")
    timed = tuple(parse_instance(label, *_items(segment)) for label, segment in zip(labels, segments, strict=True))
    untimed = () if timed else tuple(sorted({_text(label) for label in _items(entry.get("labels_all", []))}))
    duration_s = parse_positive("duration", np.ravel(entry["duration"]).item(0))
    return AnnotatedVideo(name, _text(entry["subset"]), duration_s, None, timed, untimed)


def _items(value: Any) -> list[Any]:
    items = plain(value)
    return [plain(item) for item in (items.tolist() if isinstance(items, np.ndarray) else items)]


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str):
        raise InputError(f"has {value!r} where a text must be.")
    try:
        return (value if isinstance(value, bytes) else value.encode()).decode().strip()
    except UnicodeError:
        raise InputError(f"has {value!r} where a text must be: it is not UTF-8.") from None
