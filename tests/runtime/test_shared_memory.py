"""Sums through shared memory are the sums, the same bits on every rank, whatever the sizes and whoever is slow."""

import json
import os

import pytest

from aumn.runtime import shared_memory
from aumn.runtime.shared_memory import room_bytes
from tests.launching import succeed, torchrun

PROGRAM = """
import hashlib, json, random, sys, time
import torch
from aumn.runtime import shared_memory
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import connect
from aumn.runtime.shared_memory import SharedSum

shared_memory.ROOM_BYTES = int(sys.argv[1])
with connect() as ranks:
    random.seed(ranks.rank)
    sums = SharedSum.open(ranks, 8 * 4_000)
    def values(rank, round, dtype):
        generator = torch.Generator().manual_seed(100 * round + rank)
        sizes = [(round % 7 + 1, 11), (1,), (37 * round % 991 + 1,), ()]
        return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    error, digest = 0.0, hashlib.sha256()
    for round in range(40):
        dtype = (torch.float32, torch.float64)[round % 2]
        ours = values(ranks.rank, round, dtype)
        time.sleep(random.random() * 0.004 * (round % 3))
        sums.sum_(ours)
        for *of_ranks, total in zip(*(values(rank, round, dtype) for rank in range(ranks.size)), ours, strict=True):
            expected = torch.stack(of_ranks).double().sum(0)
            error = max(error, (total - expected).abs().max().item() / torch.finfo(dtype).eps)
            digest.update(total.numpy().tobytes())
    first = [torch.full((3, 5), ranks.rank + 1.5), torch.tensor(-2.0 * ranks.rank)]
    sums.copy_from_first_(first)
    copied = [value.flatten().tolist() for value in first]
    if ranks.rank == 1:
        shared_memory._map = lambda place, token: None
    none = SharedSum.open(ranks, 8) is None
    found = ranks.gather({"error": error, "digest": digest.hexdigest(), "copied": copied, "none": none})
    if ranks.is_first:
        print(json.dumps(found))
leave()
"""


@pytest.mark.parametrize(("ranks", "room"), [(2, 64), (3, 1 << 20), (3, 2048)])
def test_sums_are_the_sums_on_every_rank(tmp_path, ranks, room):
    """Rooms smaller than one tensor, than all together, and large enough."""
    (tmp_path / "program.py").write_text(PROGRAM)
    found = json.loads(succeed(torchrun(ranks, tmp_path / "program.py", room)).stdout)
    assert len(found) == ranks
    for of_rank in found:
        assert of_rank["error"] < 10  # of a dtype's rounding; values are below 5
        assert of_rank["digest"] == found[0]["digest"]
        assert of_rank["copied"] == [[1.5] * 15, [0.0]]
        assert of_rank["none"]  # one rank cannot map it, so nobody uses it


def test_memory_of_another_machine_is_told_by_what_stands_in_it():
    file = os.memfd_create("test")
    token = bytes(range(64))
    os.pwrite(file, token + b"more", 0)
    place = f"/proc/{os.getpid()}/fd/{file}"
    assert shared_memory._map(place, token)[64:68] == b"more"
    assert shared_memory._map(place, token[::-1]) is None
    os.truncate(file, 0)
    assert shared_memory._map(place, token) is None
    os.close(file)
    assert shared_memory._map(place, token) is None


def test_a_room_holds_whole_numbers_of_any_dtype():
    assert room_bytes(1) == 64
    assert room_bytes(65) == 128
    assert room_bytes(1 << 40) == shared_memory.ROOM_BYTES
