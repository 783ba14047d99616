"""Two DDP ranks of one thread against one process of two threads: training steps on the same global batch.

Each side is its own run, update included, features in memory; the runs take turns.
"""

import statistics
import time

import torch
from harness import Row, fresh_seed, in_process, main

SIZE = {"videos": 32, "snippets": 200, "width": 1024, "classes": 200}
STEPS = 16


def measure() -> list[Row]:
    seed = fresh_seed()
    runs: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(3):
        runs["ours"].append(in_process("train", seed, ranks=2, environment={"OMP_NUM_THREADS": "1"}))
        runs["theirs"].append(in_process("train", seed, environment={"OMP_NUM_THREADS": "2"}))
    losses = [run["losses"] for side in runs.values() for run in side]
    for other in losses[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(losses[0]), rtol=1e-4, atol=1e-5)
    step_s = {side: min(run["step_s"] for run in of_side) for side, of_side in runs.items()}
    ratio = step_s["theirs"] / step_s["ours"]
    name = "two DDP ranks against one process of two threads"
    return [Row(name, ratio, ">= 0.9", step_s["ours"], step_s["theirs"], "s")]


def train(seed: str) -> dict | None:
    """The first rank's median time of a step, and every step's global loss."""
    from problems import make_engine, make_step, our_step

    from aumn.cluster.ranks import connect

    with connect() as ranks:
        engine = make_engine(int(seed), SIZE["width"], SIZE["classes"], ranks)
        step = make_step(int(seed), **SIZE, rank=ranks.rank, world_size=ranks.size)
        losses, times_s = [], []
        for _ in range(STEPS):
            start_s = time.perf_counter()
            loss = our_step(engine, step)
            engine.update(1e-4)
            times_s.append(time.perf_counter() - start_s)
            losses.append(ranks.sum_(loss.clone()).item())
        return None if ranks.rank else {"step_s": statistics.median(times_s[4:]), "losses": losses}


if __name__ == "__main__":
    main(measure, train=train)
