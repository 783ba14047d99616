"""What a user says of the streams: their names, where each lies, and how a joint array's columns are shared out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from aumn.records import STREAM_NAME, InputError, check_streams

USUAL = {"rgb": "rgb", "flow": "flow"}
WHOLE = "."  # in place of a word: all arrays there are

Words = dict[str, str]
"""What names have in lower case -> the stream that it stands for."""
Joint = dict[str, int | None]
"""How a joint array's columns are shared out: the streams in order, each with its width or, without, evenly."""


def in_order(streams: Iterable[str]) -> tuple[str, ...]:
    """A set's streams in the order in which it has them: rgb and flow first, however they were named."""
    return tuple(sorted(streams, key=lambda stream: [*USUAL, stream].index(stream)))


def parse_streams(text: str) -> Words:
    """Read `rgb,flow,audio`, or `rgb=RGB,flow=OF`, where folders or endings are not the streams' names."""
    pairs = [part.strip().lower().partition("=") for part in text.split(",")]
    streams = [stream for stream, _, _ in pairs]
    check_streams(streams)
    words = {(word if equals else stream).strip("/"): stream for stream, equals, word in pairs}
    if len(words) < len(pairs) or "" in words or any("/" in word for word in words):
        raise InputError(f"--streams {text}: give each stream a folder or an ending of its own, as in rgb=RGB,flow=OF.")
    if WHOLE in words and len(words) > 1:
        raise InputError(f"--streams {text}: {WHOLE} is all of the features, which leaves none for another stream.")
    return words


def say_streams(words: Words, more: Iterable[str]) -> str:
    """The option that takes these streams, and more that were found under these names."""
    told = [stream if word == stream else f"{stream}={word}" for word, stream in words.items()]
    told += [name if STREAM_NAME.fullmatch(name.lower()) else f"NAME={name}" for name in more]
    return f"--streams {','.join(told)}"


def parse_joint(text: str) -> Joint:
    """Read `rgb,flow`, or `flow=1024,rgb=2048`."""
    pairs = [part.strip().lower().partition("=") for part in text.split(",")]
    check_streams([stream for stream, _, _ in pairs])
    for stream, equals, width in pairs:
        if equals and not (width.isdecimal() and int(width)):
            raise InputError(f"{text!r}: the width {width!r} of {stream} must be a whole number above 0.")
    if len({equals for _, equals, _ in pairs}) > 1:
        raise InputError(
            f"{text!r} does not say how joint arrays hold the streams: name them in the columns' order, as in "
            "rgb,flow, or all with their widths, as in rgb=2048,flow=1024."
        )
    return {stream: int(width) if equals else None for stream, equals, width in pairs}


def split_columns(joint: Joint, columns: int) -> dict[str, tuple[int, int]]:
    """First column and width of each stream; InputError, without a subject, where they do not fit."""
    widths = [width or columns // len(joint) for width in joint.values()]
    if sum(widths) != columns:
        remedy = f"--joint {','.join(f'{stream}=WIDTH' for stream in joint)} names them in the columns' order"
        wanted = " + ".join(map(str, widths))
        raise InputError(f"has {columns} columns, which {wanted} of {' and '.join(joint)} do not fill: {remedy}.")
    return dict(zip(joint, zip(accumulate([0, *widths]), widths, strict=False), strict=True))
