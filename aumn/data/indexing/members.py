"""A tar's samples as webdataset itself would yield them, with each member's place in the tar instead of its bytes.

The one importer of webdataset, whose functions say how a name is cut, which members are one sample, and how a pattern
of tars is expanded.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from aumn.records import InputError

META = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips; tests hold this against its pipeline
NO_MEMBERS = {"__key__", "__url__"}


class Member(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    bytes: int


class Sample(NamedTuple):
    """Members that follow one another under one key, by their suffixes in small letters; what is wrong with them."""

    key: str
    members: dict[str, Member]
    problem: str = ""


def list_samples(file: BinaryIO, name: str) -> Iterator[Sample]:
    """Every sample of an open tar, read by its headers alone; InputError where the tar is damaged.

    webdataset refuses a whole tar for a member that is there twice; here its sample alone has the problem.
    """
    from webdataset.tariterators import group_by_keys

    problems: list[str] = []  # with the sample that is being put together

    def note(error: Exception) -> bool:
        problems.append(f"has a member twice: {str(error.args[0]).partition(' dict_keys')[0][:200]}")
        return True

    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in group_by_keys(_files(tar, problems), handler=note):
                yield _sample(sample, problems)
            _check_end(file, tar.offset, name)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{name} is no whole tar ({error}): fetch it again, or pack it again.") from None


def _files(tar: tarfile.TarFile, problems: list[str]) -> Iterator[dict[str, Any]]:
    for member in tar:
        if member.isreg() and not META.match(member.name):
            yield {"fname": member.name, "data": Member(member.offset_data, member.size), "__url__": ""}
            if member.sparse is not None:
                problems.append(f"has the sparse member {member.name!r}: pack it anew, without --sparse")


def _sample(grouped: dict[str, Any], problems: list[str]) -> Sample:
    key = grouped["__key__"]
    members = {suffix: place for suffix, place in grouped.items() if suffix not in NO_MEMBERS}
    if any("\ud800" <= character <= "\udfff" for name in (key, *members) for character in name):
        problems.append("has a name that is no UTF-8: rename it")  # nothing could store it
        key = key.encode(errors="backslashreplace").decode()
    told = "; ".join(problems)
    problems.clear()
    return Sample(key, members, told)


def _check_end(file: BinaryIO, offset: int, name: str) -> None:
    """The tarfile library takes any damage between two members for the end."""
    file.seek(offset)
    header = file.read(tarfile.BLOCKSIZE)
    if any(header):
        raise InputError(
            f"{name} is damaged: it has no tar header at byte {offset:,}; fetch it again, or pack it again."
        )
    if len(header) < tarfile.BLOCKSIZE:
        raise InputError(
            f"{name} ends without the mark of a tar's end, so it may be cut short: fetch it again, or mark it "
            f"(head -c 1024 /dev/zero >> {name})."
        )


def expand(pattern: str) -> list[str]:
    """The names that a pattern such as train-{000..007}.tar stands for."""
    from webdataset.shardlists import expand_urls

    try:
        return list(expand_urls(pattern))
    except Exception as error:  # of unbalanced braces, of a ${NAME} that is not set
        raise InputError(
            f"{pattern!r} is no pattern of tars ({error}): write it like 'train-{{000..007}}.tar'."
        ) from None
