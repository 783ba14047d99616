"""`make gpu-check`: what only a GPU can show, as one table; under eight minutes on one GPU.

Correctness against float64, 16 bits, NCCL with one rank, DeepSpeed's stages, copies to the host, steps that wait for
nothing, times and memory. `--device cpu` runs the same rows at small sizes, which says that the script runs and nothing
about GPUs. Exit code 0: every row holds; 1: some row does not; 77: there is no GPU, and nothing was checked.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from problems import AsWritten, check_against_as_written, check_against_reference, make_engine, make_step, our_step

from aumn.model.aumn import StreamNetworks
from aumn.model.losses import Objective
from aumn.model.settings import ModelSettings
from aumn.records import Step
from aumn.runfolder.saving import HostCopy
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import Ranks, group_of_one
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.step import train_step
from tests.runtime import engine_ranks
from tests.training.train_ranks import LOSS, OBJECTIVE

NO_GPU = 77
SIZES = {
    "cuda": {"videos": 32, "snippets": 200, "width": 1024, "classes": 200},
    "cpu": {"videos": 3, "snippets": 20, "width": 12, "classes": 5},
}
UNITS = {"cuda": (7, 4096, 65536), "cpu": (7, 64, 65536)}


@dataclass(frozen=True)
class Row:
    """A line of the table: what was found, and the most it may be; without a bound it is a figure to keep."""

    name: str
    found: float
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.found <= self.bound

    def __str__(self) -> str:
        bound = "" if self.bound is None else f"<= {self.bound:g}"
        return f"| {self.name} | {self.found:.4g} | {bound} | {('yes' if self.holds else 'NO') if bound else ''} |"


Check = Callable[[torch.device], Iterator[Row]]


def against_float64(device: torch.device) -> Iterator[Row]:
    """Losses and gradients of a small step in every precision, against float64 on the CPU; no dropout."""
    shape = ModelSettings(embedding_width=64, units=7, bottleneck=8)
    exact = _losses_and_gradients("fp32", shape, torch.device("cpu"), torch.float64)
    for precision, loss_bound, gradient_bound in (("fp32", 1e-5, 1e-3), ("bf16", 5e-3, 0.2), ("fp16", 1e-3, 0.05)):
        found = _losses_and_gradients(precision, shape, device, torch.float32)
        errors = [
            max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(mine, other, strict=True))
            for mine, other in zip(found, exact, strict=True)
        ]
        yield Row(f"{precision} against float64: loss, relative", errors[0], loss_bound)
        yield Row(f"{precision} against float64: worst gradient, relative", errors[1], gradient_bound)


def _losses_and_gradients(
    precision: str, shape: ModelSettings, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    network = StreamNetworks.build(engine_ranks.WIDTHS, engine_ranks.CLASSES, shape).to(dtype)
    how = {"optimizer": OptimizerSettings(), "engine": EngineSettings(precision=precision)}
    engine = build_engine("ddp", network, Ranks(), device, **how)
    step = _cast(engine_ranks.make_step(0, Ranks(), 1), dtype)
    report = train_step(engine, step, _objective(pseudo_labels=0.0))
    scales = {name: scale.value.item() for name, scale in engine.scales.items()}
    gradients = [
        parameter.grad.cpu().double() / scales[name.split(".")[0]]
        for name, parameter in network.networks.named_parameters()
    ]
    return [report[f"{stream}/total"].cpu().double() for stream in scales], gradients


def _objective(**changes: float) -> Objective:
    return Objective(LOSS.model_copy(update=changes), steps=9)


def _cast(step: Step, dtype: torch.dtype) -> Step:
    (batch,) = step.micro_batches
    features = {stream: features_BTD.to(dtype) for stream, features_BTD in batch.features.items()}
    return replace(step, micro_batches=(replace(batch, features=features, labels_BC=batch.labels_BC.to(dtype)),))


def the_equations(device: torch.device) -> Iterator[Row]:
    """Our loss is the float64 reference's, our gradients are those of the equations as written; raises otherwise."""
    for units in (7, 300):
        engine = make_engine(1, 20, 6, device=device.type, units=units, bottleneck=8)
        step = make_step(1, 3, 20, 20, 6)
        check_against_reference(engine, step)
        check_against_as_written(engine, AsWritten(engine.network.networks["rgb"]).to(device), step)
    yield Row("equations as written, K=7 and 300: disagreements", 0, 0)


def nccl_with_one_rank(device: torch.device) -> Iterator[Row]:
    """Gradients that are gathered in one tensor and cross a group of this process alone are those of a process."""
    group_of_one(cuda=device.type == "cuda")
    together, alone = (_curve_without_diversity(ranks, device) for ranks in (Ranks(0, 2), Ranks()))
    yield Row("gradients through NCCL with one rank: difference", (together - alone).abs().max().item(), 0)


def _curve_without_diversity(ranks: Ranks, device: torch.device) -> Tensor:
    """Its share, alone among the terms, depends on how many ranks there are said to be."""
    engine = engine_ranks.build("ddp-0-fp32", ranks, device=device)
    norms = []
    for index in range(engine_ranks.STEPS):
        train_step(engine, engine_ranks.make_step(index, Ranks()), _objective(diversity=0.0))
        norms += [*engine.update(1e-2).values()]
    return torch.stack(norms).cpu()


def deepspeed_stages(device: torch.device) -> Iterator[Row]:
    """Every stage and precision gives the curve of PyTorch alone."""
    for precision in ("fp32", "bf16", "fp16"):
        first, *others = [*engine_ranks.cases(precision), *(engine_ranks.OFFLOADS if precision == "fp32" else ())]
        curve = torch.tensor(engine_ranks.train(engine_ranks.build(first, Ranks(), device=device)))
        for case in others:
            found = torch.tensor(engine_ranks.train(engine_ranks.build(case, Ranks(), device=device)))
            yield Row(f"{case} against ddp", (found / curve - 1).abs().max().item(), 1e-4)


def going_on(device: torch.device) -> Iterator[Row]:
    """What was saved in the middle goes on as the run does that was not stopped."""
    half = engine_ranks.STEPS // 2
    for case in ("ddp-0-fp32", "deepspeed-3-fp32"):
        engine = engine_ranks.build(case, Ranks(), device=device)
        engine_ranks.train(engine, 0, half)
        state = engine_ranks.save(engine)
        undisturbed = torch.tensor(engine_ranks.train(engine, half))
        again = engine_ranks.restore(engine_ranks.build(case, Ranks(), device=device), state)
        differing = (torch.tensor(engine_ranks.train(again, half)) != undisturbed).sum().item()
        yield Row(f"{case} resumed: numbers that differ", differing, 0)


def copies_to_the_host(device: torch.device) -> Iterator[Row]:
    """Copies hold what was there when they were asked for, though the device is behind and the tensors change."""
    differing, side = 0, 2000 if device.type == "cuda" else 20
    for round_ in range(50):
        value = torch.full((1000,), float(round_), device=device)
        work = torch.ones(side, side, device=device)
        for _ in range(20):  # the device is busy for milliseconds with this
            work = work @ work / side
        value += work[0, 0].clamp(1, 1)
        copy = HostCopy({"value": value})
        value.zero_()
        differing += int((copy.read()["value"] != round_ + 1).sum())
    yield Row("copies to the host: numbers that are not of their moment", differing, 0)


def a_step_waits_for_nothing(device: torch.device) -> Iterator[Row]:
    """No call of a step makes the host wait for the device; a wait raises."""
    engine = engine_ranks.build("ddp-0-fp16", Ranks(), device=device)
    step = engine_ranks.make_step(0, Ranks())
    step = replace(step, micro_batches=tuple(batch.to(device) for batch in step.micro_batches))
    for mode in ("default", "error"):  # what is set up once may wait
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
        try:
            train_step(engine, step, OBJECTIVE)
            engine.update(1e-3)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    yield Row("waits for the device in a step", 0, 0)


def times(device: torch.device) -> Iterator[Row]:
    """Milliseconds of a step with its update."""
    step = make_step(2, **SIZES[device.type])
    for precision in ("fp32", "bf16", "fp16"):
        yield Row(f"step, K=7, {precision}, ms", _step_ms(_engine(device, 7, precision), step))
    engine = _engine(device, 7)
    written = AsWritten(engine.network.networks["rgb"]).to(device)
    few = make_step(2, **(SIZES[device.type] | {"videos": min(8, SIZES[device.type]["videos"])}))
    (batch,) = few.micro_batches
    batch = batch.to(device)

    def as_written() -> None:
        written.zero_grad()
        written(batch.features["rgb"], batch.labels_BC).backward()

    ratio = _step_ms(engine, few) / _ms(as_written, device)
    yield Row("step, B=8, over the equations as written", ratio, 1 if device.type == "cuda" else None)


def many_units(device: torch.device) -> Iterator[Row]:
    """Milliseconds a step, and the memory at the largest K beyond the optimizer's state."""
    size = SIZES[device.type]
    step = make_step(3, **size)
    for units in UNITS[device.type]:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        engine = _engine(device, units)
        yield Row(f"step, K={units:,}, ms", _step_ms(engine, step, rounds=3))
        if device.type == "cuda":
            moments = sum(tensor.nbytes for tensor in engine.trainer_state()[0].values())
            used_gb = (torch.cuda.max_memory_allocated(device) - moments) / 1e9
            yield Row(f"  its memory beyond the optimizer's state, GB, K={units:,}", used_gb, 6)
        del engine


def _engine(device: torch.device, units: int, precision: str = "fp32") -> Engine:
    size = SIZES[device.type]
    return make_engine(1, size["width"], size["classes"], device=device.type, precision=precision, units=units)


def _step_ms(engine: Engine, step: Step, rounds: int = 10) -> float:
    step = replace(step, micro_batches=tuple(batch.to(engine.device) for batch in step.micro_batches))

    def whole() -> None:
        our_step(engine, step)
        engine.update(1e-4)

    return _ms(whole, engine.device, rounds)


def _ms(call: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """The best of some rounds, from an idle device to an idle device."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    best_s = float("inf")
    for _ in range(rounds + 1):
        wait()
        start_s = time.perf_counter()
        call()
        wait()
        best_s = min(best_s, time.perf_counter() - start_s)
    return 1000 * best_s


CHECKS: tuple[Check, ...] = (
    the_equations,
    against_float64,
    going_on,
    copies_to_the_host,
    a_step_waits_for_nothing,
    times,
    many_units,
    deepspeed_stages,
    nccl_with_one_rank,
)
NAMED = {check.__name__: check for check in CHECKS}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"some of {', '.join(NAMED)}; default: all")
    options = parser.parse_args()
    name = options.device
    if name == "cuda" and not torch.cuda.is_available():
        print("No GPU is here, so nothing was checked. --device cpu runs the same rows on the CPU.")
        return NO_GPU
    device = Ranks().device(name)
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name(device) if name == 'cuda' else 'the CPU'}\n")
    print("| row | found | bound | holds |\n|---|---|---|---|")
    good = [_run(NAMED[check], device) for check in options.checks or NAMED]
    return 0 if all(good) else 1


def _run(check: Check, device: torch.device) -> bool:
    """Print a check's rows; what it raises is a row that does not hold, and the next check goes on."""
    good = True
    try:
        for row in check(device):
            print(row, flush=True)
            good &= row.holds
    except Exception as error:
        print(f"| {check.__name__}: {type(error).__name__}, below | | | NO |", flush=True)
        traceback.print_exc()
        return False
    return good


if __name__ == "__main__":
    leave(main())
