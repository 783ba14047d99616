"""SLURM's short way to write the names of nodes, read without asking SLURM, whose commands a container lacks."""

from __future__ import annotations

import re
from itertools import product

from aumn.records import InputError

RANGES = r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
NAMES = rf"(?:[^,\[\]]|{RANGES})+"


def node_names(text: str) -> list[str]:
    """The nodes of such as `n[1-3,05-07],x3`, in the order written; a number keeps the zeros in front of it.

    `rack[1-2]n[1-3]` has six names: every choice of one bracket with every choice of the next.
    """
    if not re.fullmatch(rf"{NAMES}(?:,{NAMES})*", text, re.ASCII):
        raise InputError(
            f"SLURM_JOB_NODELIST={text!r} must be names of nodes such as n[1-3],x5: set MASTER_ADDR and MASTER_PORT."
        )
    parts = (re.findall(r"\[[^\]]*\]|[^\[\]]+", part) for part in re.findall(NAMES, text, re.ASCII))
    return ["".join(chosen) for pieces in parts for chosen in product(*map(_choices, pieces))]


def _choices(piece: str) -> list[str]:
    if not piece.startswith("["):
        return [piece]
    ends = (numbers.partition("-") for numbers in piece[1:-1].split(","))
    return [f"{n:0{len(first)}}" for first, _, last in ends for n in range(int(first), int(last or first) + 1)]
