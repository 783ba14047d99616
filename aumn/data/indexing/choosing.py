"""Which members are the streams, and where samples tell of themselves: as options say, or plain from one tar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from aumn.data.indexing.members import list_samples
from aumn.data.indexing.options import IndexOptions
from aumn.data.indexing.samples import Wanted, array_suffixes
from aumn.data.indexing.tars import Tar, open_tar
from aumn.data.sources.containers import DECODED_SUFFIXES
from aumn.data.sources.streams import USUAL, in_order, parse_streams
from aumn.records import NO_STREAMS, STREAM_NAME, InputError

FACTS = {
    "id": ("json:id", "json:video", "json:video_id"),
    "labels": ("cls", "json:labels", "json:label", "json:classes"),
    "subset": ("json:subset",),
    "duration": ("json:duration_s", "json:duration"),
    "fps": ("json:fps",),
}
"""Where each fact of a sample is looked for, unless an option says where it stands."""


def choose(options: IndexOptions, first: Tar) -> Wanted:
    """What to read of every sample; InputError tells what there is, where that is unclear."""
    with open_tar(first.path) as file:
        counts = Counter(suffix for sample in list_samples(file, str(first.path)) for suffix in sample.members)
    streams = _streams(options, first, counts)
    facts = dict(FACTS)
    for fact, place in (("id", options.id), ("labels", options.labels)):
        if place:
            suffix, mark, field = place.partition(":")
            facts[fact] = (suffix.lower() + mark + field,)
    for fact in ("labels", "subset") if options.annotations else ("subset",) if options.subset else ():
        del facts[fact]
    ordered = {stream: streams[stream] for stream in in_order(streams)}
    return Wanted(ordered, facts, bool(options.transposed))


def _streams(options: IndexOptions, first: Tar, counts: Counter[str]) -> dict[str, str]:
    arrays = array_suffixes(counts)
    if options.streams:
        words = parse_streams(options.streams)
        found = {
            stream: [suffix for suffix in arrays if word in {suffix, _stem(suffix)}] for word, stream in words.items()
        }
        if unclear := [word for word, stream in words.items() if len(found[stream]) != 1]:
            raise InputError(f"--streams {options.streams}: no member {unclear[0]}. {_say(first, counts, arrays)}")
        return {stream: suffix for stream, (suffix,) in found.items()}
    usual = [suffix for suffix in arrays if _stem(suffix) in USUAL]
    taken = usual or arrays
    if not taken or len({_stem(suffix) for suffix in taken}) < len(taken) or len(taken) > max(1, len(usual)):
        raise InputError(_say(first, counts, arrays))
    return {_stream_of(suffix): suffix for suffix in taken}


def _stem(suffix: str) -> str:
    return suffix.rpartition(".")[0]


def _stream_of(suffix: str) -> str:
    """A stream's name, made of its member's."""
    name = re.sub(r"[^a-z0-9_]+", "_", _stem(suffix)).strip("_")[:16] or "features"
    return name if STREAM_NAME.fullmatch(name) and name not in NO_STREAMS.split() else "features"


def _say(first: Tar, counts: Counter[str], arrays: Sequence[str]) -> str:
    there = ", ".join(f"{suffix} ({count:,})" for suffix, count in counts.most_common(12)) or "no members"
    if not arrays:
        return f"The samples of {first.path} have {there}: none is an array ({', '.join(DECODED_SUFFIXES)})."
    proposed = ",".join(f"{_stream_of(suffix)}={suffix}" for suffix in sorted(arrays)[:8])
    return f"The samples of {first.path} have {there}: say which are streams, such as --streams {proposed}."
