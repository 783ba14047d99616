"""A memory bank over ranks: what one of four holds of 1,048,576 units, and steps of two against all units on each.

The other side of the steps is commit 0e01a02's, by the same launcher: `bank_before.py`. Both see the same videos.
"""

import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from harness import MEASURABLE, Row, at_commit, fresh_seed, in_process, main, resident_bytes, run
from problems import OBJECTIVE, make_step
from torch.testing import assert_close

from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.model.settings import ModelSettings
from aumn.records import Step, own_rows
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.ranks import Ranks, connect
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.step import train_step

SIZE = {"videos": 8, "snippets": 200, "width": 1024, "classes": 200}  # four videos a rank
UNITS, RUNS, STEPS = 65536, 3, 3
MANY, FEW_VIDEOS = 1 << 20, {"videos": 4, "snippets": 8, "width": 32, "classes": 20}
WIDTH = ModelSettings().embedding_width
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def measure() -> list[Row]:
    seed = fresh_seed()
    print("four ranks of 1,048,576 units take ten gigabytes of memory together")
    held = in_process("hold", MANY, seed, ranks=4, environment={**ONE_THREAD, **MEASURABLE})
    print(f"  {held['step_bytes'] / 1e9:.2f} GB more at most, in the backward pass of a step")
    code = at_commit("0e01a02")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    before = [*launcher, str(Path(__file__).with_name("bank_before.py")), str(seed), str(UNITS), str(STEPS)]
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(in_process("train", seed, UNITS, ranks=2, environment=ONE_THREAD))
        theirs.append(json.loads(run(before, ONE_THREAD, code=code).splitlines()[-1]))
        assert_close(ours[-1]["losses"][0], theirs[-1]["losses"][0], rtol=1e-4, atol=1e-5)
    times_s = [[one["step_s"] for one in side] for side in (ours, theirs)]
    return [
        Row("a rank's K=1,048,576 over 4: weights, gradients, Adam", held["bytes"] / held["share"], "<= 1.05",
            held["bytes"] / 1e9, held["share"] / 1e9, "GB"),
        Row.of_runs("step at K=65,536 over 2 ranks, against 0e01a02's DDP", ">= 1.5", *times_s, "s"),
    ]  # fmt: skip


def build(seed: int, ranks: Ranks, units: int, width: int, classes: int) -> Engine:
    """As commit 0e01a02 began and moved units."""
    torch.manual_seed(seed)
    bank = Bank.over(ranks.split(ranks.size)[0], units)
    network = StreamNetworks.build({"rgb": width}, classes, ModelSettings(units=units, unit_rates=False), bank=bank)
    how = {"optimizer": OptimizerSettings(), "engine": EngineSettings(bank_ranks=ranks.size)}
    return build_engine("ddp", network, ranks, torch.device("cpu"), **how)


def own_step(seed: int, ranks: Ranks, size: dict[str, int]) -> Step:
    """This rank's videos of a step that all have together."""
    (whole,) = make_step(seed, **size).micro_batches
    rows, of = own_rows(size["videos"], ranks.rank, ranks.size), type(whole)
    features = {name: features_BTD[rows].clone() for name, features_BTD in whole.features.items()}
    parts = whole.videos[rows], whole.lengths[rows], whole.seeds[rows], features
    return Step(0, 0, size["videos"], (of(*parts, whole.mask_BT[rows], whole.labels_BC[rows]),))


def train(seed: str, units: str) -> dict | None:
    """The first rank's median time of a step with its update, and every step's loss over all ranks."""
    with connect() as ranks:
        step = own_step(int(seed), ranks, SIZE)
        engine = build(int(seed), ranks, int(units), SIZE["width"], SIZE["classes"])
        times_s, losses = [], []
        for _ in range(1 + STEPS):
            start_s = time.perf_counter()
            loss = train_step(engine, step, OBJECTIVE)["rgb/total"]
            engine.update(1e-4)
            times_s.append(time.perf_counter() - start_s)
            losses.append(ranks.sum_(loss.clone()).item())
        return None if ranks.rank else {"step_s": statistics.median(times_s[1:]), "losses": losses}


def hold(units: str, seed: str) -> dict | None:
    """A rank's resident memory while Adam works: beyond the weights, gradients and its two means are there at once.

    The first step's, in which Adam takes its memory, and the most that all ranks have; `step_bytes` is what the
    backward pass before it took beyond weights and gradients.
    """
    with connect() as ranks:
        step = own_step(int(seed), ranks, FEW_VIDEOS)
        small = build(int(seed), ranks, 64, FEW_VIDEOS["width"], FEW_VIDEOS["classes"])
        train_step(small, step, OBJECTIVE)  # all that is imported at a first step
        small.update(1e-4)
        gc.collect()
        before = resident_bytes("VmRSS")
        engine = build(int(seed), ranks, int(units), FEW_VIDEOS["width"], FEW_VIDEOS["classes"])
        train_step(engine, step, OBJECTIVE)
        gc.collect()
        highest = resident_bytes("VmHWM") - resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        engine.update(1e-4)
        held = max(ranks.gather(resident_bytes("VmHWM") - before))
        rows = own_rows(int(units), 0, ranks.size)
        share = 4 * 4 * WIDTH * (rows.stop - rows.start)
        return None if ranks.rank else {"bytes": held, "share": share, "step_bytes": highest}


if __name__ == "__main__":
    main(measure, train=train, hold=hold)
