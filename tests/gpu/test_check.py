"""`make gpu-check` says that there is no GPU, and its rows run on a CPU."""

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.launching import python, succeed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_does_not_end_well():
    ended = python("-m", "tests.gpu.check", cwd=REPOSITORY)
    assert ended.returncode == 77
    assert ended.stdout == "No GPU is here, so nothing was checked. --device cpu runs the same rows on the CPU.\n"


@pytest.mark.slow
def test_rows_run_and_hold_on_the_cpu():
    """Those without DeepSpeed's and large banks' minutes; `make gpu-check` plays all."""
    checks = ("against_float64", "nccl_with_one_rank", "copies_to_the_host", "a_step_waits_for_nothing")
    table = succeed(python("-m", "tests.gpu.check", "--device", "cpu", *checks, cwd=REPOSITORY, timeout_s=200)).stdout
    for name in ("fp16 against float64", "NCCL with one rank"):
        assert name in table
