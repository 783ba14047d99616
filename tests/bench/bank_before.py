"""One of two ranks of commit 0e01a02's steps, for bank.py: python bank_before.py SEED UNITS STEPS, in its folder."""

import json
import os
import statistics
import sys
import time

sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests", "bench")]  # before this file's own folder

SIZE = {"videos": 8, "snippets": 200, "width": 1024, "classes": 200}


def main(seed: int, units: int, steps: int) -> None:
    from aumn.cluster.ranks import connect
    from problems import make_engine, make_step, our_step

    with connect() as ranks:
        step = make_step(seed, **SIZE, rank=ranks.rank, world_size=ranks.size)
        engine = make_engine(seed, SIZE["width"], SIZE["classes"], ranks, units=units)
        times_s, losses = [], []
        for _ in range(1 + steps):
            start_s = time.perf_counter()
            loss = our_step(engine, step)
            engine.update(1e-4)
            times_s.append(time.perf_counter() - start_s)
            losses.append(ranks.sum_(loss.clone()).item())
        if ranks.rank == 0:
            print("\n" + json.dumps({"step_s": statistics.median(times_s[1:]), "losses": losses}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
