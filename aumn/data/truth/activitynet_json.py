"""Ground truth in ActivityNet's JSON layout, in which THUMOS14 and others are released too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aumn.data.truth.annotated import AnnotatedVideo, Instance, parse_instance, parse_positive, parse_videos
from aumn.records import InputError


def read_json(file: Path) -> list[AnnotatedVideo]:
    """Every video of the file, in its order."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_refuse_twice)
    except ValueError as error:
        raise InputError(f"{file} is not usable JSON ({error}): give ground truth in ActivityNet's layout.") from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise InputError(
            f"{file} has no object 'database': ActivityNet's layout is "
            '{"database": {VIDEO: {"subset": SUBSET, "annotations": [{"label": LABEL, "segment": [START_S, END_S]}]}}}.'
        )
    return parse_videos(file, database.items(), _parse_video)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice, of which Python would silently keep the last, is an error."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return fields


def _parse_video(video: str, fields: Any) -> AnnotatedVideo:
    if not isinstance(fields, dict) or not isinstance(fields.get("subset"), str):
        raise InputError("has no text 'subset'; name the subset it belongs to, e.g. \"training\".")
    if not isinstance(fields.get("annotations"), list):
        raise InputError("has no list 'annotations'; give one, empty where nothing is annotated.")
    return AnnotatedVideo(
        id=video,
        subset=fields["subset"],
        duration_s=parse_positive("duration", fields.get("duration")),
        fps=parse_positive("fps", fields.get("fps")),
        annotations=tuple([_parse_annotation(annotation) for annotation in fields["annotations"]]),
    )


def _parse_annotation(annotation: Any) -> Instance:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("label"), str):
        raise InputError(f"has an annotation without a text 'label': {annotation!r}.")
    label, segment = annotation["label"], annotation.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"has a {label!r} whose 'segment' is {segment!r}; it must be [start_s, end_s].")
    return parse_instance(label, *segment)
