"""Temporal ground truth: when each action happens, read for packing and evaluation. The loader never imports this file.

Four layouts: ActivityNet's JSON and its like, a CSV, W-TALC's folder of arrays, and a shard set's annotations.parquet.
Nothing is repaired: instances of no length, twice the same or behind the video's end are kept as annotated and counted
by those who measure. One that ends before it starts is trained on, and measured on only as a user decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aumn.data.json_files import no_collecting, read_items, read_json, shown, text_of
from aumn.data.problems import about, check_on_bad
from aumn.data.shards.layout import (
    ANNOTATIONS,
    file_of,
    kept_as,
    open_table,
    read_description,
    read_table_bytes,
    table_of,
)
from aumn.data.shards.stores import open_store
from aumn.data.truth.annotated import (
    DEFAULT_SUBSET,
    AnnotatedVideo,
    Instance,
    parse_instance,
    parse_positive,
    parse_videos,
    say_reversed,
)
from aumn.data.truth.annotation_csv import read_csv
from aumn.data.truth.columns import VideoColumns
from aumn.data.truth.wtalc import NAMES, read_wtalc
from aumn.records import MOST_S, GroundTruth, InputError, Place

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = (
    '{"database": {VIDEO: {"subset": SUBSET, "annotations": [{"label": LABEL, "segment": [START_S, END_S]}]}}}'
    " (ActivityNet's), or the videos alone"
)
ON_BAD_KEY = b"aumn.on_bad"
TABLE = re.compile(r"annotations(-\d+)?\.parquet")  # of any version of a shard set
WRITTEN_AT_ONCE = 4096  # videos
ROOTS, LISTS = ("database", "GT"), ("annotations", "actions")


@dataclass(frozen=True, slots=True)
class Annotations:
    """A ground-truth file: its videos by id, in its own order."""

    source: Place
    videos: dict[str, AnnotatedVideo] | VideoColumns
    is_wtalc: bool = False  # then the order of the videos is that of W-TALC's features
    on_bad: str = "stop"  # what a shard set was packed with; see `read_ground_truth`

    def numbers(self) -> Mapping[str, int]:
        """The place of each video in the file's order."""
        videos = self.videos
        return videos.numbers if isinstance(videos, VideoColumns) else {name: n for n, name in enumerate(videos)}


def read_ground_truth(
    path: Place,
    subset: str | None = None,
    *,
    allow_pickle: bool = False,
    on_bad: str | None = None,
    identity: str | None = None,
    may_lack_times: bool = False,
) -> GroundTruth:
    """One subset's instances as columns; without a name, those of the only subset that has any.

    `videos` are all of the subset but those without times, `labels` those that occur in it, sorted. `on_bad` says what
    to do with instances that end before they start: stop, skip them or swap their times; None: as the shard set was
    packed, else stop. `identity` is that of the version to take, of a shard set that has grown. It is an error where
    nobody annotated any times, unless `may_lack_times`.
    """
    check_on_bad(on_bad)
    file = path if isinstance(path, Path) and path.is_file() and not _is_table(path) else None
    if file and subset is not None:
        with no_collecting():
            if truth := _take_at_once(_read_json(file, subset)[0], subset):
                return truth
    read = partial(read_annotations, path, allow_pickle=allow_pickle, identity=identity)
    annotations = read(only=subset)
    if not any(video.subset == subset for video in annotations.videos.values()):
        annotations = read()
    all_videos = annotations.videos.values()
    sizes = Counter(video.subset for video in all_videos)
    instances = Counter(video.subset for video in all_videos for _ in video.annotations)
    known = ", ".join(f"{name} ({sizes[name]:,} videos, {instances[name]:,} instances)" for name in sizes) or "none"
    if subset is None:
        if len(instances) != 1:
            raise InputError(f"{path}: name the subset to take, one of {known}.")
        (subset,) = instances
    videos = [video for video in all_videos if video.subset == subset]
    if not videos:
        raise InputError(f"{path} has no subset {subset!r}; it has {known}.")
    untimed = [video.id for video in videos if video.untimed]
    videos = [video for video in videos if not video.untimed]
    if untimed and not may_lack_times and not any(video.annotations for video in videos):
        raise InputError(
            f"{path} says of {len(untimed):,} videos in subset {subset!r} ({', '.join(untimed[:3])}"
            f"{', ...' * (len(untimed) > 3)}) which actions they hold but not when: such videos can be trained on, and "
            "not be measured on; annotate their times, or measure on another subset."
        )
    on_bad = on_bad or annotations.on_bad
    if on_bad == "stop" and (told := say_reversed(videos)):
        raise InputError(
            f"{path}, subset {subset!r}. {told}: correct them, or give --on-bad skip (leaves them out) or swap "
            "(exchanges their times); where training measures, to aumn pack."
        )
    num_reversed = sum(instance.is_reversed for video in videos for instance in video.annotations)
    found = [
        (index, Instance(instance.label, *sorted(instance[1:])))
        for index, video in enumerate(videos)
        for instance in video.annotations
        if on_bad == "swap" or not instance.is_reversed
    ]
    labels = sorted({instance.label for _, instance in found})
    position = {label: index for index, label in enumerate(labels)}
    return GroundTruth(
        videos=[video.id for video in videos],
        labels=labels,
        video_N=np.array([index for index, _ in found], dtype=np.int32),
        label_N=np.array([position[instance.label] for _, instance in found], dtype=np.int32),
        start_s_N=np.array([instance.start_s for _, instance in found], dtype=np.float64),
        end_s_N=np.array([instance.end_s for _, instance in found], dtype=np.float64),
        durations_s={video.id: video.duration_s for video in videos if video.duration_s is not None},
        untimed=frozenset(untimed),
        left_out=num_reversed if on_bad == "skip" else 0,
        swapped=num_reversed if on_bad == "swap" else 0,
    )


def read_annotations(
    path: Place,
    *,
    allow_pickle: bool = False,
    only: str | None = None,
    identity: str | None = None,
    in_columns: bool = False,
) -> Annotations:
    """Read ActivityNet-layout JSON, a .csv, W-TALC's folder, or a shard set's place or annotations.parquet.

    `only` is the subset that is wanted; videos of others may be left out, unread. A shard set's folder stands for its
    newest version, or for that of the `identity`. `in_columns` is for a million videos, each looked at a few times.
    """
    if in_columns and isinstance(path, Path) and path.is_file() and (columns := _read_in_columns(path)) is not None:
        return Annotations(path, columns)
    if isinstance(path, str):  # nothing else is read from afar
        videos, on_bad = _read_parquet(path, identity)
        return Annotations(path, {video.id: video for video in videos}, on_bad=on_bad)
    if not path.exists():
        raise InputError(
            f"There is no ground truth at {path}: give ActivityNet-layout JSON, a CSV, W-TALC's annotation folder or a "
            "shard set's folder."
        )
    on_bad = "stop"
    is_wtalc = path.is_dir() and (path / NAMES).is_file()
    if is_wtalc:
        videos = read_wtalc(path, allow_pickle=allow_pickle)
    elif path.is_dir():
        videos, on_bad = _read_parquet(path, identity)
    elif TABLE.fullmatch(path.name):
        videos, on_bad = _read_parquet(path.parent, _holder_of(path), path.name)
    elif _is_table(path):
        videos = read_csv(path)
    else:
        found, subset = _read_json(path, only)
        videos = parse_videos(path, found.items(), partial(_parse_video, subset=subset))
    return Annotations(path, {video.id: video for video in videos}, is_wtalc, on_bad)


def write_annotations(file: Path, videos: Iterable[AnnotatedVideo], on_bad: str) -> None:
    """Write one row a video, its instances as a list; equal videos make equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = (video._asdict() | {"annotations": [found._asdict() for found in video.annotations]} for video in videos)
    tables = []
    while some := list(islice(rows, WRITTEN_AT_ONCE)):
        tables.append(table_of(some, _schema()))
    table = pa.concat_tables(tables or [table_of([], _schema())]).combine_chunks()
    if on_bad != "stop":  # what is said to pack holds wherever the set is measured on
        table = table.replace_schema_metadata({ON_BAD_KEY: on_bad})
    pq.write_table(table, file, compression="zstd")


def _schema() -> pa.Schema:
    import pyarrow as pa

    instance = pa.struct([("label", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
    kinds = {
        "id": pa.string(),
        "subset": pa.string(),
        "duration_s": pa.float64(),
        "fps": pa.float64(),
        "annotations": pa.list_(instance),
        "untimed": pa.list_(pa.string()),
    }
    return pa.schema([pa.field(name, kinds[name], name in {"duration_s", "fps"}) for name in kinds])


def _holder_of(table: Path) -> str | None:
    """The identity of the earlier version that a table is of; None: of the newest."""
    identities = (file.stem.partition("-")[2] for file in table.parent.glob(kept_as("*")))
    store = open_store(table.parent)
    return next((name for name in identities if table.name in read_description(store, name).checksums), None)


def _read_parquet(shard_set: Place, identity: str | None, name: str = "") -> tuple[list[AnnotatedVideo], str]:
    """The videos of a version, and what the set was packed with for `on_bad`; `name` is the table's own."""
    store = open_store(shard_set)
    description = read_description(store, identity)
    name = name or description.table(ANNOTATIONS)
    content = read_table_bytes(store, name, description)
    with about(file_of(store, name)):
        table = open_table(content, _schema(), optional={"untimed"}).read()  # older sets lack it
        lists = table["annotations"].combine_chunks()
        labels, *times = lists.values.flatten()
        full = [table["id"], table["subset"], lists, labels, *times]
        if any(cells.null_count for cells in full) or not all(np.isfinite(cells).all() for cells in times):
            raise InputError("has empty cells or times that are no numbers: fetch the shard set again.")
    instances = [Instance(*row) for row in zip(*(part.to_pylist() for part in lists.values.flatten()), strict=True)]
    spans = [tuple(instances[first:last]) for first, last in pairwise(lists.offsets.to_pylist())]
    facts = [table[name].to_pylist() for name in ("id", "subset", "duration_s", "fps")]
    untimed = table["untimed"].to_pylist() if "untimed" in table.column_names else [()] * len(table)  # of older sets
    rows = zip(*facts, spans, map(tuple, untimed), strict=True)
    on_bad = (table.schema.metadata or {}).get(ON_BAD_KEY, b"stop").decode()
    return [AnnotatedVideo(*row) for row in rows], on_bad


def _is_table(path: Path) -> bool:
    """Whether a file holds no JSON."""
    return bool(TABLE.fullmatch(path.name)) or path.suffix.lower() == ".csv"


def _read_json(file: Path, only: str | None) -> tuple[dict[str, Any], str | None]:
    """What stands about each video, and the subset of all of them where the file tells none.

    It is ActivityNet's layout, in which THUMOS14 and others are released too, or its videos alone, as BSN's heirs do.
    """
    content = read_json(file, f"the layout must be {LAYOUT}.")
    roots = [content[name] for name in ROOTS if name in content] if isinstance(content, dict) else []
    videos = roots[0] if roots else content
    if not isinstance(videos, dict) or not (roots or all(map(_is_video, videos.values()))):
        raise InputError(f"{file} has no object 'database' and is none of videos: the layout must be {LAYOUT}.")
    is_split = not any(isinstance(fields, dict) and "subset" in fields for fields in videos.values())
    if only is not None and not is_split:  # three quarters of ActivityNet's file are not what is measured on
        videos = {
            name: fields
            for name, fields in videos.items()
            if not isinstance(fields, dict) or not isinstance(named := fields.get("subset"), str) or named == only
        }
    return videos, DEFAULT_SUBSET if is_split else None


def _take_at_once(videos: dict[str, Any], subset: str) -> GroundTruth | None:
    """The columns of videos that are all as ActivityNet's are, a column at a time: for hundreds of thousands of videos.

    None where there is anything to be looked at closely; `_parse_video` says what it is.
    """
    try:
        subsets = set(map(itemgetter("subset"), videos.values()))
        names = list(map(str.strip, videos))
        lists = list(map(itemgetter("annotations"), videos.values()))
        durations_s = [fields.get("duration", fields.get("duration_second")) for fields in videos.values()]
        rates = [fields.get("fps") for fields in videos.values()]
        found = list(chain.from_iterable(lists))
        label_of_N = list(map(str.strip, map(itemgetter("label"), found)))
        segments = list(map(itemgetter("segment"), found))
        facts = [fact for fact in (*durations_s, *rates) if fact is not None]
        numbers = [*facts, *chain.from_iterable(segments)]
        number_N = np.array(numbers, np.float64)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    are_lists = {*map(type, lists), *map(type, segments)} == {list} and set(map(len, segments)) == {2}
    if not are_lists or not set(map(type, numbers)) <= {float, int} or not (np.abs(number_N) <= MOST_S).all():
        return None
    start_s_N, end_s_N = number_N[len(facts) :].reshape(-1, 2).T.copy()
    if (
        (number_N[: len(facts)] <= 0).any()
        or (end_s_N < start_s_N).any()
        or subsets != {subset}
        or len(set(names)) < len(names)
    ):
        return None
    labels = sorted(set(label_of_N))
    position = {label: index for index, label in enumerate(labels)}
    return GroundTruth(
        videos=names,
        labels=labels,
        video_N=np.repeat(np.arange(len(names), dtype=np.int32), list(map(len, lists))),
        label_N=np.array([position[label] for label in label_of_N], dtype=np.int32),
        start_s_N=start_s_N,
        end_s_N=end_s_N,
        durations_s={
            name: float(length) for name, length in zip(names, durations_s, strict=True) if length is not None
        },
    )


def _read_in_columns(file: Path) -> VideoColumns | None:
    """All videos of ActivityNet's layout; None where there is anything to be looked at closely."""
    videos = VideoColumns()
    try:
        for name, fields in () if _is_table(file) else read_items(file, ROOTS):
            if (video := name.strip()) in videos:
                return None
            videos.add(_parse_video(video, fields, None))
    except (OSError, TypeError, ValueError, RecursionError):
        return None
    return videos or None


def _is_video(fields: Any) -> bool:
    return isinstance(fields, dict) and any(isinstance(fields.get(name), list) for name in LISTS)


def _parse_video(video: str, fields: Any, subset: str | None) -> AnnotatedVideo:
    """`subset` is that of all videos, where the file tells none."""
    subset = fields.get("subset", subset) if isinstance(fields, dict) else None
    if not isinstance(subset, str):
        raise InputError("has no text 'subset'; name the subset it belongs to, e.g. \"training\".")
    annotations = next((fields[name] for name in LISTS if name in fields), None)
    if not isinstance(annotations, list):
        raise InputError("has no list 'annotations'; give one, empty where nothing is annotated.")
    return AnnotatedVideo(
        id=video,
        subset=subset,
        duration_s=parse_positive("duration", fields.get("duration", fields.get("duration_second"))),
        fps=parse_positive("fps", fields.get("fps")),
        annotations=tuple([_parse_annotation(annotation) for annotation in annotations]),
    )


def _parse_annotation(annotation: Any) -> Instance:
    if isinstance(annotation, list) and annotation:  # of Charades: [class, start, end]
        annotation = {"label": annotation[0], "segment": annotation[1:]}
    names = [annotation.get("label"), annotation.get("class")] if isinstance(annotation, dict) else []
    label = next((name for name in names if isinstance(name, str)), None) or text_of(next(iter(names), None))
    if label is None:
        raise InputError(f"has an annotation without a text 'label': {shown(annotation)}.")
    segment = annotation.get("segment")
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"has a {label!r} whose 'segment' is {shown(segment)}; it must be [start_s, end_s].")
    return parse_instance(label, *segment)


def restricted(ground_truth: GroundTruth, videos: Collection[str]) -> GroundTruth:
    """The ground truth of these videos alone."""
    kept_V = np.array([video in videos for video in ground_truth.videos], dtype=bool)
    position_V = np.cumsum(kept_V) - 1
    kept_N = kept_V[ground_truth.video_N]
    return replace(
        ground_truth,
        videos=[video for video, kept in zip(ground_truth.videos, kept_V, strict=True) if kept],
        video_N=position_V[ground_truth.video_N[kept_N]].astype(np.int32),
        label_N=ground_truth.label_N[kept_N],
        start_s_N=ground_truth.start_s_N[kept_N],
        end_s_N=ground_truth.end_s_N[kept_N],
        untimed=frozenset(ground_truth.untimed) & set(videos),
    )
