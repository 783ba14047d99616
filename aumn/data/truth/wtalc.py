"""Ground truth as W-TALC released it: a folder of numpy arrays, an entry a video, some of them pickled lists.

Read: videoname, subset, duration, labels, segments (labels_all where there are no segments). Not believed:
extracted_fps, which is of other features than the I3D ones, whose snippets are 16 frames at 25 fps; and labels_all
where there are segments, from which it differs for 28 of THUMOS14's 412 videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.sources.arrays import read_objects
from aumn.data.sources.unpickling import plain
from aumn.data.truth.annotated import AnnotatedVideo, parse_instance, parse_positive, parse_videos
from aumn.records import InputError

NAMES = "videoname.npy"


def read_wtalc(folder: Path, *, allow_pickle: bool) -> list[AnnotatedVideo]:
    """Every video, in the order in which the features' arrays lie."""
    names = [_text(name) for name in _read(folder, "videoname", allow_pickle)]
    columns = {name: _read(folder, name, allow_pickle) for name in ("subset", "duration", "segments", "labels")}
    columns["labels_all"] = _read(folder, "labels_all", allow_pickle) if (folder / "labels_all.npy").is_file() else []
    for name, column in columns.items():
        if len(column) != len(names) and not (name == "labels_all" and not column):
            raise InputError(
                f"{folder}: {name}.npy has {len(column):,} entries where {NAMES} has {len(names):,}: take all files "
                "from one release."
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{folder}: {NAMES} names {', '.join(map(repr, twice[:3]))} more than once: correct it.")
    entries = ({column: values[i] for column, values in columns.items() if values} for i in range(len(names)))
    return parse_videos(folder, zip(names, entries, strict=True), _parse_video)


def _read(folder: Path, name: str, allow_pickle: bool) -> list[Any]:
    path = folder / f"{name}.npy"
    if not path.is_file():
        raise InputError(f"{path} is missing: W-TALC's annotation folder has it; fetch the folder again.")
    values = plain(read_objects(path, allow_pickle=allow_pickle))
    return list(values)


def _parse_video(name: str, entry: dict[str, Any]) -> AnnotatedVideo:
    labels, segments = [_text(label) for label in _items(entry["labels"])], _items(entry["segments"])
    if len(labels) != len(segments):
        raise InputError(f"has {len(labels)} labels and {len(segments)} segments; give each segment its label.")
    timed = tuple(
        parse_instance(label, *map(_number, _items(segment))) for label, segment in zip(labels, segments, strict=True)
    )
    untimed = () if timed else tuple(sorted({_text(label) for label in _items(entry.get("labels_all", []))}))
    duration_s = parse_positive("duration", _number(np.ravel(entry["duration"])[0]))
    return AnnotatedVideo(name, _text(entry["subset"]), duration_s, None, timed, untimed)


def _items(value: Any) -> list[Any]:
    return [plain(item) for item in plain(value)]


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any) -> str:
    if not isinstance(value, bytes | str):
        raise InputError(f"has {value!r} where a text must be.")
    return value.decode() if isinstance(value, bytes) else str(value)
