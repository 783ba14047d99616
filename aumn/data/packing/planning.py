"""What a packing will write, known before it writes: which videos, with which labels, in which shard."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aumn.data.columns import Made
from aumn.data.packing.growing import Base
from aumn.data.packing.options import DTYPES, PackOptions
from aumn.data.packing.shard_writer import PlannedVideo, ShardPlan
from aumn.data.problems import OR_SKIP, about, refuse
from aumn.data.shards.layout import DESCRIPTION, FORMAT_VERSION, Description, sample_key
from aumn.data.shards.stores import open_store
from aumn.data.sources.containers import PICKLE_SUFFIXES, Containers
from aumn.data.sources.extraction import EXTRACTION, Extraction, Facts, read_extraction, read_facts
from aumn.data.sources.features import Features, VideoFeatures, check_features
from aumn.data.sources.releases import JOINT, Naming, Release, find_release, read_fact, say_layout
from aumn.data.sources.streams import parse_joint, parse_streams, say_streams, split_columns
from aumn.data.truth.annotated import AnnotatedVideo, look
from aumn.data.truth.annotations import Annotations, read_annotations
from aumn.ends import Length
from aumn.records import Clock, InputError, Place, place_of

DEFAULT_STRIDE_FRAMES = 16
RESCALED_RATIO = 1.2  # of the longest video to the shortest, where all have as many snippets


@dataclass(frozen=True, slots=True)
class PackingReport:
    """What is packed, and what cannot be: videos without annotations have neither subset nor labels."""

    path: Place
    packed: dict[str, int]  # subset -> videos
    classes: tuple[str, ...]
    streams: dict[str, int]  # stream -> width
    shards: int
    without_features: list[str]
    without_annotations: list[str]
    bad: dict[str, str]  # video -> why it was left out, where that was asked for
    source: str  # how the features were understood
    coverage: float | None  # of the durations in the ground truth, by the features: the median; None without any
    notes: list[str]  # what was not taken, and what looks wrong with the ground truth of these features
    appended_to: int | None = None  # the videos that the set had, where it was there
    held: int = 0  # videos to pack that the set has already, with these features and labels
    new_classes: tuple[str, ...] = ()  # behind those that the set had
    kept_shards: int = 0  # of them, those that an earlier, stopped run had finished
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The description and the report lack only what is known once shards are written."""

    shards: Shards
    annotated: Sequence[AnnotatedVideo]  # those to pack, in their order
    description: Description
    workers: int | None
    report: PackingReport
    on_bad: str
    base: Base | None  # the set that this is added to
    held: Shards  # of videos that it has already, if they are alike


def plan_packing(options: PackOptions) -> Plan:
    """Pack every annotated video that has features; `releases` tells of the layouts, of which one is found by looking.

    Features are read up to their headers. InputError where anything cannot be packed.
    """
    out = place_of(options.out)
    base = Base.open(out) if options.append else None
    if base is None:
        refuse_existing(out)
    truth = read_annotations(options.annotations, allow_pickle=options.allow_pickle, in_columns=True)
    classes = order_classes(truth, read_classes(options.classes), base)
    extraction = read_extraction(options.features)
    options = _settle(options, extraction)
    options = base.complete(options) if base else options
    on_bad = options.on_bad or "stop"
    layout = options.layout or (JOINT if options.joint and options.features.suffix != ".npy" else None)
    naming = Naming(
        layout,
        parse_streams(options.streams) if options.streams else None,
        parse_joint(options.joint) if options.joint else None,
        options.prefix,
        options.suffix,
        options.crops,
    )
    containers = Containers(allow_pickle=options.allow_pickle)  # worker processes open the files themselves
    named = truth.numbers()
    release = find_release(options.features, containers, naming, named, is_wtalc=truth.is_wtalc)
    places = release.places
    if not len(places.found(annotated=True)):
        match(release.path, places.names[places.annotated :], truth)  # which refuses
    found = check_features(
        release,
        in_order(places.found(annotated=True).tolist(), truth, places.names),
        containers,
        trim_streams=options.trim_streams,
        crops=options.crops,
        transposed=options.transposed,
    )
    facts, unfinished = _read_all_facts(release, found.features.videos, extraction)
    features, bad = found.features, found.bad | unfinished
    if unfinished:
        features = features.take(index for index, video in enumerate(features.ids) if video not in unfinished)
    if on_bad != "skip" or not features.ids:
        headline = f"{len(bad):,} videos in {release.path} cannot be packed:"
        refuse(list(bad.values()), headline, OR_SKIP if features.ids else "")
    refuse_rescaled(release.path, features, truth, options.rescaled)
    # Without a frame rate, that of the ground truth is taken.
    default = base.description.stride_frames if base else DEFAULT_STRIDE_FRAMES
    stride = options.stride_frames or read_fact(release, "stride_frames", containers) or default
    if stride != int(stride):
        raise InputError(f"{release.path} tells a stride_frames of {stride:g}; give a whole number: --stride-frames.")
    fps = options.fps or read_fact(release, "fps", containers) or (base.fps() if base else None)
    with about(f"{release.path}:"):
        options = replace(options, stride_frames=int(stride), fps=fps)  # what an archive tells has the same bounds
    clock = Clock(int(stride), options.window_frames or int(stride))
    description = Description(
        FORMAT_VERSION,
        options.name or Path(options.out).name,
        "",
        classes,
        found.widths,
        _dtype(options),
        clock.stride_frames,
        (),
        {},
        window_frames=None if len(set(clock)) == 1 else clock.window_frames,
        extractor=extraction.extractor if extraction else None,
    )
    description = base.accept(description) if base else description
    planned = plan_videos(features, truth, classes, clock, fps, is_rescaled=bool(options.rescaled), facts=facts)
    held, videos = planned.split(base.hold(planned, truth)) if base else (planned.take([]), planned)
    width = sum(found.widths.values())
    shards = Shards(videos, width, options, base)
    annotated = Made(lambda number: truth.videos[videos.ids[number]], range(len(videos)))
    there = base.rows.keys() if base else set()
    lacking, strange = np.flatnonzero(~places.is_found_V[: places.annotated]), places.found(annotated=False)
    return Plan(
        shards=shards,
        annotated=annotated,
        description=description,
        workers=1 if _is_one_pickle(release) else options.workers,  # each process would hold the whole file
        report=PackingReport(
            path=out,
            packed={},
            classes=classes,
            streams=found.widths,
            shards=len(shards),
            without_features=sorted({places.names[number] for number in lacking.tolist()} - there),
            without_annotations=sorted({places.names[number] for number in strange.tolist()} - there),
            bad=bad,
            source=_say_source(release, found.widths, options, clock=clock, rates=np.unique(planned.fps_N).tolist()),
            notes=[*_say_beside(release), *(look_at_truth(videos, annotated, clock, on_bad) if videos else ())],
            coverage=None if options.rescaled else measure_coverage(videos, truth, clock),
            appended_to=len(base.rows) if base else None,
            held=len(held),
            new_classes=classes[len(base.description.classes) :] if base else (),
        ),
        on_bad=on_bad,
        base=base,
        held=Shards(held, width, options, None),
    )


def _settle(options: PackOptions, extraction: Extraction | None) -> PackOptions:
    """The options with what `aumn extract` tells of the features, which no option may contradict."""
    if extraction is None:
        return options
    told = {name: getattr(extraction, name) for name in ("stride_frames", "window_frames", "dtype", "fps")}
    for name, value in told.items():
        if (given := getattr(options, name)) not in {None, value}:
            raise InputError(
                f"--{name.replace('_', '-')} {given} contradicts {options.features / EXTRACTION}, which tells "
                f"{'of each video' if value is None else value}: leave it out."
            )
    if options.rescaled:
        raise InputError(f"--rescaled contradicts {options.features / EXTRACTION}, which tells a stride: leave it out.")
    streams = options.streams or ",".join(extraction.streams())
    with about(f"{options.features / EXTRACTION}:"):
        return replace(options, streams=streams, rescaled=False, **told)


def _read_all_facts(
    release: Release, videos: Sequence[VideoFeatures], extraction: Extraction | None
) -> tuple[dict[str, Facts], dict[str, str]]:
    """What `aumn extract` tells of each video, and what is wrong where it does not."""
    facts: dict[str, Facts] = {}
    bad: dict[str, str] = {}
    for found in videos if extraction else ():
        array = Path(next(iter(found.streams.values())).places[0].file)
        try:
            told = read_facts(release.path, array)
        except InputError as error:
            bad[found.video] = str(error)
            continue
        facts[found.video] = told
        if told.snippets != found.snippets or (extraction and extraction.fps not in {None, told.fps}):
            bad[found.video] = (
                f"{array} has {found.snippets:,} snippets, and its facts tell {told.snippets:,} at {told.fps:g} fps: "
                "extract it again."
            )
    return facts, bad


def refuse_existing(out: Place, *, grows: bool = True) -> None:
    """A shard set is never overwritten; `grows` says whether the command can add to one."""
    if out.exists() if isinstance(out, Path) else open_store(out).size(DESCRIPTION) is not None:
        raise InputError(
            f"{out} already exists: remove it, "
            + ("pack into another folder, or add videos to it with --append." if grows else "or name another folder.")
        )


def in_order(numbers: list[int], annotations: Annotations, ids: Sequence[str]) -> list[int]:
    """Annotated videos by subset and id."""
    return sorted(numbers, key=lambda number: (annotations.videos[ids[number]].subset, ids[number]))


def match(source: Path, found: Collection[str], annotations: Annotations) -> list[str]:
    """The videos to pack, by subset and id: annotated ones with features, of one stream at least."""
    annotated = annotations.videos
    both = sorted(annotated.keys() & found, key=lambda video: (annotated[video].subset, video))
    if not both:
        raise InputError(
            f"{source} has features of none of the videos in {annotations.source}: it holds {_examples(found)}, "
            f"and the annotations {_examples(annotated)}; {_propose_names(found, annotated)}."
        )
    return both


def _propose_names(found: Collection[str], annotated: Collection[str]) -> str:
    """The options by which the names would meet, if most of them would."""
    name = min(found)
    for video in sorted(annotated, key=len, reverse=True):
        prefix, is_in, suffix = name.partition(video)
        if is_in and 2 * sum(f"{prefix}{each}{suffix}" in found for each in annotated) >= min(
            len(found), len(annotated)
        ):
            given = {f"--prefix {prefix}": prefix, f"--suffix {suffix}": suffix}
            return f"give {' '.join(option for option, text in given.items() if text)}, which the features' names have"
    return "name the files as the annotations name the videos, or give --prefix or --suffix where only these differ"


def _is_one_pickle(release: Release) -> bool:
    place = release.places.arrays.place(0)
    return release.layout == "wtalc" or place.file.lower().endswith(PICKLE_SUFFIXES)


def refuse_rescaled(source: Path, features: Features, annotations: Annotations, rescaled: bool | None) -> None:
    """Ask where all videos have one length in snippets and not in seconds: no stride fits such features."""
    durations_s = [annotations.videos[video].duration_s or 0.0 for video in features.ids]
    shortest_s, longest_s = min(durations_s), max(durations_s)
    is_one_length = features.snippets_N.min() == features.snippets_N.max()
    is_suspect = is_one_length and longest_s > RESCALED_RATIO * shortest_s > 0
    if is_suspect and rescaled is None:
        raise InputError(
            f"{source}: all {len(features.ids):,} videos have {features.snippets_N[0]:,} snippets, and last from "
            f"{shortest_s:g} to {longest_s:g} s: give --rescaled if the features were resized to one length, "
            "or --no-rescaled if a snippet is as long in all of them."
        )


def read_classes(file: Path | None) -> list[str] | None:
    """The classes of the list, where one is given."""
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: give a file with a class a line.") from None
    classes = [line.strip() for line in lines if line.strip()]
    if twice := sorted({label for label in classes if classes.count(label) > 1}):
        raise InputError(
            f"The list of classes names {', '.join(map(repr, twice))} more than once; name each class once."
        )
    return classes


def order_classes(annotations: Annotations, classes: Sequence[str] | None, base: Base | None = None) -> tuple[str, ...]:
    """The classes that are given, or else the labels of the whole ground truth in alphabetical order.

    Those of a set that is added to come first, so that its labels stay what they are.
    """
    labels = {label for video in annotations.videos.values() for label in video.labels()}
    first = base.description.classes if base else ()
    if classes is None:
        return (*first, *sorted(labels - {*first}))
    if unknown := sorted(labels - set(classes)):
        raise InputError(
            f"{annotations.source} has labels that are not in the list of {len(classes)} classes: "
            f"{_examples(unknown)}; add them to the list, or take them out of the annotations."
        )
    if base and tuple(classes[: len(first)]) != first:
        raise InputError(
            f"The list of classes does not begin with the {len(first)} classes of {base.path} in their order "
            f"({', '.join(map(repr, first[:3]))}{', ...' * (len(first) > 3)}): add new ones behind them."
        )
    return tuple(classes)


def plan_videos(
    features: Features,
    annotations: Annotations,
    classes: Sequence[str],
    clock: Clock,
    fps: float | None,
    *,
    is_rescaled: bool,
    facts: Mapping[str, Facts],
) -> PlannedVideos:
    """Each video's manifest facts; a missing duration is that of its snippets, a missing frame rate an error.

    Features that were resized to one length have the frame rate by which they last as long as their video.
    """
    unknown: list[str] = []
    duration_s_N, fps_N = array("d"), array("d")
    for name, snippets in zip(features.ids, features.snippets_N.tolist(), strict=True):
        video, told = annotations.videos[name], facts.get(name)
        rate = told.fps if told else fps or video.fps
        if is_rescaled:
            rate = clock.lasts_s(snippets, 1) / video.duration_s if video.duration_s else None
        if not rate:
            unknown.append(name)
            continue
        fps_N.append(rate)
        duration_s_N.append(video.duration_s or (told.duration_s if told else clock.lasts_s(snippets, rate)))
    if unknown and is_rescaled:
        raise InputError(
            f"{annotations.source} tells no duration for {len(unknown):,} videos ({_examples(unknown)}), over which "
            "--rescaled features are spread: add it."
        )
    if unknown:
        raise InputError(
            f"{annotations.source} tells no fps for {len(unknown):,} videos ({_examples(unknown)}): "
            "give --fps, the frame rate that the features were extracted at."
        )
    numbers = {label: number for number, label in enumerate(classes)}
    return PlannedVideos(features, annotations, numbers, np.array(duration_s_N), np.array(fps_N))


def _say_source(
    release: Release, streams: dict[str, int], options: PackOptions, *, clock: Clock, rates: Sequence[float]
) -> str:
    how = "found by looking" if release.was_found else "as told"
    parts = [f"layout {release.layout} ({say_layout(release.layout, release.streams)}), {how}"]
    if len(streams) == 1:
        parts.append(f"one stream, {release.streams[0]}")
    elif release.layout in {"joint", "wtalc"}:
        spans = split_columns(release.joint, sum(streams.values()))
        columns = [f"{first}-{first + width - 1} {name}" for name, (first, width) in spans.items()]
        parts.append(f"columns {', '.join(columns)}")
    if release.renamed:
        name, video, count = release.renamed
        parts.append(f"{count:,} names known by a part of them, such as {name!r} for {video!r}")
    if options.crops:
        parts.append("the mean of all crops" if options.crops == "mean" else f"crop {options.crops}")
    return "; ".join([*parts, say_times(clock, rates, is_rescaled=bool(options.rescaled))])


def say_times(clock: Clock, rates: Sequence[float], *, is_rescaled: bool) -> str:
    """From which frames a snippet comes, and at which of the rates, which rise."""
    if is_rescaled:
        return "resized: a video's snippets share its duration evenly"
    shown = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return f"a snippet {clock} at {shown} fps"


def _say_beside(release: Release) -> Iterator[str]:
    if release.beside:
        counts = ", ".join(f"{word} ({count:,} arrays)" for word, count in sorted(release.beside.items()))
        words = {word: stream for word, stream in release.words.items() if stream in release.streams}
        every = say_streams(words, sorted(release.beside))
        yield f"Not taken, though of the same videos: {counts}. To take all as streams: {every}."


def measure_coverage(videos: PlannedVideos, annotations: Annotations, clock: Clock) -> float | None:
    """How much of a video's annotated duration its snippets cover (median): far from 1, stride or fps is wrong."""
    told_s_N = np.fromiter((annotations.videos[video].duration_s or np.nan for video in videos.ids), float)
    shares = (clock.lasts_s(videos.snippets_N, videos.fps_N) / told_s_N)[~np.isnan(told_s_N)]
    return float(np.median(shares)) if len(shares) else None


def look_at_truth(videos: PlannedVideos, annotated: Sequence[AnnotatedVideo], clock: Clock, on_bad: str) -> list[str]:
    """Sentences on what looks wrong with the times in the ground truth."""

    def length(number: int) -> Length:
        fps = float(videos.fps_N[number])
        return Length(clock.lasts_s(int(videos.snippets_N[number]), fps), clock.stride_frames / fps, fps)

    lengths = Made(length, range(len(videos)))
    odd = [
        f"{truth.id} ({length.covered_s:,.1f} s of {truth.duration_s:,.1f} s)"
        for truth, length in zip(annotated, lengths, strict=True)
        if truth.duration_s and not length.fits(truth.duration_s)
    ]
    notes = list(look(annotated, lengths, on_bad))
    if odd:
        notes.append(
            f"Of another length than the ground truth says: {len(odd):,} videos, such as {', '.join(odd[:3])}."
        )
    return [*notes, *_say_lonely_classes(annotated)]


def _say_lonely_classes(annotated: Sequence[AnnotatedVideo]) -> Iterator[str]:
    """A sentence for each subset that has classes which no other one has: training on one teaches none of another's."""
    labels: dict[str, set[str]] = {}
    for video in annotated:
        labels.setdefault(video.subset, set()).update(video.labels())
    labels = {subset: found for subset, found in labels.items() if found}
    for subset, found in labels.items() if len(labels) > 1 else ():
        if alone := sorted(found.difference(*(others for name, others in labels.items() if name != subset))):
            yield (
                f"In subset {subset} alone: {len(alone)} of {len(found)} classes ({', '.join(alone[:3])}"
                f"{', ...' * (len(alone) > 3)}); training on another one cannot learn them, and measuring there misses "
                "them."
            )


@dataclass(frozen=True, slots=True)
class PlannedVideos(Sequence[PlannedVideo]):
    """What is to be packed, as columns; a video is an object only while somebody looks at it."""

    features: Features
    truth: Annotations
    classes: Mapping[str, int]  # in their order
    duration_s_N: np.ndarray
    fps_N: np.ndarray

    @property
    def ids(self) -> Sequence[str]:
        """The videos' names."""
        return self.features.ids

    @property
    def snippets_N(self) -> np.ndarray:
        """How long their features are."""
        return self.features.snippets_N

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        video = self.truth.videos[self.ids[index]]
        labels = sorted((self.classes[label], label) for label in video.labels())
        numbers, names = tuple(number for number, _ in labels), tuple(name for _, name in labels)
        duration_s, fps = float(self.duration_s_N[index]), float(self.fps_N[index])
        return PlannedVideo(self.features.videos[index], video.subset, numbers, names, duration_s, fps)

    def take(self, indices: Sequence[int] | np.ndarray) -> PlannedVideos:
        """Those at some indices."""
        place_N = np.array(indices, np.int64)
        columns = (column[place_N] for column in (self.duration_s_N, self.fps_N))
        return PlannedVideos(self.features.take(place_N), self.truth, self.classes, *columns)

    def split(self, is_first_N: np.ndarray) -> tuple[PlannedVideos, PlannedVideos]:
        """Some of them, and the others."""
        return self.take(np.flatnonzero(is_first_N)), self.take(np.flatnonzero(~is_first_N))


class Shards(Sequence[ShardPlan]):
    """The videos, in order, cut into shards of one subset each and of about `shard_mb` at most.

    A shard's plan, which has an object for each of its videos, is made when it is looked at.
    """

    def __init__(self, videos: PlannedVideos, width: int, options: PackOptions, base: Base | None) -> None:
        self._videos, self._options = videos, options
        self._before = len(base.description.shards) if base else 0
        subsets = (videos.truth.videos[video].subset for video in videos.ids)
        dtype, most_bytes = np.dtype(_dtype(options)), round(options.shard_mb * 10**6)
        bytes_N = (videos.snippets_N * (width * dtype.itemsize)).tolist()
        self.files: list[str] = []
        self._firsts = array("q")
        part_bytes, subset_before = 0, None
        for index, (subset, video_bytes) in enumerate(zip(subsets, bytes_N, strict=True)):
            if subset != subset_before:
                number = base.next_number(subset) if base else 0
            if subset != subset_before or part_bytes + video_bytes > most_bytes:
                self.files.append(f"{sample_key(subset)}-{number:06d}.tar")
                self._firsts.append(index)
                number, part_bytes, subset_before = number + 1, 0, subset
            part_bytes += video_bytes
        self._firsts.append(len(videos))

    def __len__(self) -> int:
        return len(self.files)

    def sizes(self) -> dict[str, int]:
        """The videos of each shard."""
        return dict(zip(self.files, np.diff(np.array(self._firsts)).tolist(), strict=True))

    def __getitem__(self, index: Any) -> Any:
        shard = range(len(self))[index]
        videos = tuple(self._videos[number] for number in range(self._firsts[shard], self._firsts[shard + 1]))
        skips_bad, pickled = self._options.on_bad == "skip", self._options.allow_pickle
        return ShardPlan(self.files[shard], self._before + shard, _dtype(self._options), pickled, skips_bad, videos)


def _dtype(options: PackOptions) -> str:
    return options.dtype or DTYPES[0]


def _examples(names: Collection[str], shown: int = 3) -> str:
    listed = sorted(names)[:shown]
    return ", ".join(map(repr, listed)) + (", ..." if len(names) > shown else "") or "none"
