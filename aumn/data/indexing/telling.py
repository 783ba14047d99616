"""What samples tell of themselves, made the ground truth of a set that is given none: names, labels, subsets."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aumn.data.indexing.options import IndexOptions
from aumn.data.indexing.samples import Found
from aumn.data.indexing.tars import Tar
from aumn.data.json_files import shown, text_of
from aumn.data.problems import about
from aumn.data.truth.annotated import DEFAULT_SUBSET, AnnotatedVideo, parse_positive
from aumn.records import InputError

NUMBER = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")  # at the end of a tar's name


@dataclass(frozen=True, slots=True)
class Named:
    """A sample, the tar that it lies in, and the video that it is."""

    id: str
    tar: int
    found: Found


def name_samples(
    samples: Sequence[tuple[int, Found]], options: IndexOptions, bad: dict[str, str]
) -> tuple[list[Named], str]:
    """The samples with their videos' names, and where those stand; samples of one name are all bad."""
    sources = {found.facts["id"][0] if "id" in found.facts else None for _, found in samples}
    keys = [found.key for _, found in samples]
    nameless = [found.key for _, found in samples if "id" not in found.facts]
    if len(sources) == 1 and None not in sources:
        names, source = [text_of(found.facts["id"][1]) or "" for _, found in samples], str(*sources)
    elif options.id not in {None, "key"}:
        raise InputError(
            f"--id {options.id}: {len(nameless):,} samples have no such field, such as {nameless[0]!r}: give "
            "another, or key."
        )
    else:
        names, source = [key.rpartition("/")[2] for key in keys], "the key's last part"
        if options.id or len(set(names)) < len(names) or "" in names:
            names, source = keys, "the whole key"
    names = [name.strip().removeprefix(options.prefix).removesuffix(options.suffix) for name in names]
    of_name = defaultdict(list)
    for name, (tar, found) in zip(names, samples, strict=True):
        of_name[name].append(Named(name, tar, found))
    unclear = {name for name, group in of_name.items() if len(group) > 1 or not name}
    for name, group in of_name.items():
        if name in unclear:
            told = ", ".join(repr(named.found.key) for named in group[:3])
            bad[name] = (
                f"{len(group):,} samples are called {name!r} by {source} ({told}): give --id, or name them apart."
            )
    return [group[0] for name, group in of_name.items() if name not in unclear], source


def fill_gaps(video: AnnotatedVideo, named: Named) -> AnnotatedVideo:
    """The video with what its sample tells, where the ground truth does not."""
    told = {fact: value for fact, (_, value) in named.found.facts.items()}
    return video._replace(
        duration_s=video.duration_s or parse_positive("duration", told.get("duration")),
        fps=video.fps or parse_positive("fps", told.get("fps")),
    )


def tell_videos(
    samples: Sequence[Named],
    tars: Sequence[Tar],
    options: IndexOptions,
    classes: Sequence[str] | None,
    bad: dict[str, str],
) -> dict[str, AnnotatedVideo]:
    """Every sample as a video whose actions are known and not when; those without labels are bad."""
    numbered = [named for named in samples if _numbers(named.found.facts)]
    if numbered and classes is None:
        source, value = numbered[0].found.facts["labels"]
        raise InputError(
            f"{len(numbered):,} samples tell their labels by numbers, such as {source} {shown(value)}: give --classes, "
            "a text file with a class a line, in the order of the numbers."
        )
    videos = {}
    for named in samples:
        tar = tars[named.tar]
        try:
            with about(f"{tar.path}: sample {named.found.key!r}"):
                labels = tuple(sorted(_labels(named.found.facts, classes or ())))
                subset = options.subset or tar.split or _subset(named.found.facts, tar)
                video = AnnotatedVideo(named.id, subset, None, None, (), labels)
                videos[named.id] = fill_gaps(video, named)
        except InputError as error:
            bad[named.id] = str(error)
    return videos


def _subset(facts: Mapping[str, tuple[str, Any]], tar: Tar) -> str:
    told = facts.get("subset", ("", None))[1]
    return told if isinstance(told, str) and told else NUMBER.sub("", Path(tar.path).stem) or DEFAULT_SUBSET


def _labels(facts: Mapping[str, tuple[str, Any]], classes: Sequence[str]) -> set[str]:
    if "labels" not in facts:
        raise InputError(
            "tells no label where --labels says, or, without it, as cls or a JSON's labels, label or classes."
        )
    source, numbers, names = facts["labels"][0], _numbers(facts), _names(facts)
    what = f"has {source} {shown(facts['labels'][1])}"
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise InputError(f"{what}, which must be class names, or their numbers in --classes.")
    if len(numbers) == len(classes) > 2 and set(numbers) <= {0, 1}:
        raise InputError(f"{what}, a row of zeros and ones: give the numbers of its classes.")
    if set(numbers) - set(range(len(classes))):
        raise InputError(f"{what}, where the list of classes has {len(classes):,}, counted from 0.")
    return {name.strip() for name in names} | {classes[number] for number in numbers}


def _values(facts: Mapping[str, tuple[str, Any]]) -> list[Any]:
    value = facts["labels"][1] if "labels" in facts else []
    return value if isinstance(value, list) else [value]


def _numbers(facts: Mapping[str, tuple[str, Any]]) -> list[int]:
    return [value for value in _values(facts) if type(value) is int]


def _names(facts: Mapping[str, tuple[str, Any]]) -> list[Any]:
    return [value for value in _values(facts) if type(value) is not int]
