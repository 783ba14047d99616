"""Ground truth as a table that a spreadsheet writes: a row an instance.

Columns, by name, in any order: `video`, `label`, `start`, `end` (seconds) and, as one likes, `subset` ("training" where
it is not told), `duration` (seconds), `fps`, and `group`, which `data.holdout_groups` may go by. Without start and end,
the video holds the action at times that nobody annotated; without a label too, the row only tells of the video. Facts
of a video stand in one of its rows or more.
"""

from __future__ import annotations

import csv
from pathlib import Path

from aumn.data.problems import about
from aumn.data.truth.annotated import DEFAULT_SUBSET, AnnotatedVideo, parse_instance, parse_positive, parse_videos
from aumn.records import InputError

REQUIRED = ("video", "label", "start", "end")
FACTS = ("subset", "duration", "fps")
NOT_READ_HERE = "group"

Row = dict[str, str]


def read_csv(file: Path) -> list[AnnotatedVideo]:
    """Every video of the table, in the order of their first rows."""
    rows_of: dict[str, list[tuple[int, Row]]] = {}
    for line, row in _read_rows(file):
        rows_of.setdefault(row["video"], []).append((line, row))
    return parse_videos(file, rows_of.items(), _parse_video)


def _read_rows(file: Path) -> list[tuple[int, Row]]:
    """Rows with the lines they end on; every known column is there, empty where the file has none."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:  # spreadsheets begin with a byte-order mark
            reader = csv.DictReader(text, skipinitialspace=True, strict=True)
            columns = list(reader.fieldnames or [])
            if not set(REQUIRED) <= set(columns) <= {*REQUIRED, *FACTS, NOT_READ_HERE} or len(set(columns)) < len(
                columns
            ):
                raise InputError(
                    f"{file} has the columns {', '.join(columns) or 'of an empty file'}; its first line must name "
                    "video, label, start, end, separated by commas, and may name subset, duration, fps and group."
                )
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{file}: line {reader.line_num} has not the {len(columns)} fields of the "
                        'first line: put a field that holds a comma into double quotes, "like, this".'
                    )
                rows.append((reader.line_num, {name: row.get(name, "").strip() for name in (*REQUIRED, *FACTS)}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no table of comma-separated UTF-8 text ({error}): save it as CSV UTF-8.") from None
    if not rows:
        raise InputError(f"{file} has no row below its first line: give a row an instance.")
    return rows


def _parse_video(video: str, rows: list[tuple[int, Row]]) -> AnnotatedVideo:
    lines = ", ".join(str(line) for line, _ in rows[:5]) + (", ..." if len(rows) > 5 else "")
    with about(f"(line{'s' * (len(rows) > 1)} {lines})"):
        if not video:
            raise InputError("has no name; fill in column video.")
        subset, duration, fps = (_one_fact(name, [row[name] for _, row in rows]) for name in FACTS)
        timed, untimed = [], set()
        for _, row in rows:
            label, times = row["label"], (row["start"], row["end"])
            if not any(times):
                untimed |= {label} - {""}
            elif label:
                timed.append(parse_instance(label, *times))
            else:
                raise InputError(f"has an instance at {list(times)} without a label; name the action.")
        duration_s, rate = parse_positive("duration", duration), parse_positive("fps", fps)
    rest = sorted(untimed - {instance.label for instance in timed})
    return AnnotatedVideo(video, subset or DEFAULT_SUBSET, duration_s, rate, tuple(timed), tuple(rest))


def _one_fact(name: str, cells: list[str]) -> str | None:
    told = sorted(set(filter(None, cells)))
    if len(told) > 1:
        raise InputError(f"has {name} {' and '.join(map(repr, told))}; a video has one: correct its rows.")
    return told[0] if told else None
