"""What CUDA is asked for, seen without a GPU: fake tensors have devices, and stubs write down what they are given."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aumn.records import InputError
from aumn.runfolder.saving import HostCopy
from aumn.runtime.ranks import Ranks

SECOND = torch.device("cuda", 1)


def test_a_rank_makes_its_own_gpu_the_current_one(monkeypatch):
    """What names no device lies there then, such as NCCL's buffers and DeepSpeed's; else all ranks share the first."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert Ranks(rank=5, size=6, local_rank=1).device("cuda") == SECOND
    assert chosen == [SECOND]
    assert Ranks(rank=5, size=6, local_rank=1).device("cpu").type == "cpu"
    with pytest.raises(InputError, match="this machine has 2 for local rank 2"):
        Ranks(rank=2, size=3, local_rank=2).device("cuda")
    assert chosen == [SECOND]


def test_a_host_copy_waits_on_the_stream_of_the_device_that_has_the_numbers(monkeypatch):
    """On the current device, which may be another one, the event is done before the copy is."""
    calls = []

    class Recorded:
        def __init__(self, device=None):
            self.device = device

        def record_event(self):
            calls.append(("recorded", self.device))
            return self

        def synchronize(self):
            calls.append(("waited for", self.device))

    monkeypatch.setattr(torch.cuda, "current_stream", Recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(calls.append(("current", device))))
    with FakeTensorMode():
        copy = HostCopy({"rgb": torch.ones((), device=SECOND), "flow": torch.ones((), device=SECOND)})
    assert calls == [("recorded", SECOND)]
    assert copy.read()["flow"].device.type == "cpu"
    assert calls == [("recorded", SECOND), ("current", SECOND), ("waited for", SECOND)]
