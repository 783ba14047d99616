"""SLURM's short way to write the names of nodes, read without asking SLURM, whose commands a container lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aumn.records import InputError


def node_names(text: str) -> list[str]:
    """The nodes of such as `n[1-3,05-07],x3`, in the order written; a number keeps the zeros in front of it."""
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not parts or ",".join(parts) != text:
        raise _refusal(text)
    return [name for part in parts for name in _expand(part, text)]


def _expand(part: str, text: str) -> Iterator[str]:
    """`rack[1-2]n[1-3]` has six names: every choice of one bracket with every choice of the next."""
    before, bracket, rest = part.partition("[")
    if not bracket:
        yield before
        return
    numbers, _, after = rest.partition("]")
    for number in numbers.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", number, re.ASCII)
        if not match:
            raise _refusal(text)
        first, last = match[1], match[2] or match[1]
        for value in range(int(first), int(last) + 1):
            yield from (f"{before}{value:0{len(first)}}{name}" for name in _expand(after, text))


def _refusal(text: str) -> InputError:
    return InputError(
        f"SLURM_JOB_NODELIST={text!r} must be names of nodes such as n[1-3],x5: set MASTER_ADDR and MASTER_PORT."
    )
