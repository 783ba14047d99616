"""A training step against the equations as written, where W (B x T x F x C) and the values exist: time and memory.

Memory is the rise of the process's resident memory above weights and inputs during a step, each side in a process of
its own; gradients count, as both sides have them.
"""

from functools import partial

from harness import MEASURABLE, Row, fresh_seed, in_process, main, peak_growth_bytes, take_turns
from problems import (
    AsWritten,
    check_against_as_written,
    check_against_reference,
    make_engine,
    make_step,
    our_step,
    step_as_written,
)

SIZE = {"videos": 8, "snippets": 200, "width": 1024, "classes": 200}
SETTINGS = {"units": 7, "embedding_width": 512, "bottleneck": 64}


def measure() -> list[Row]:
    seed = fresh_seed()
    sides = make_sides(seed, SIZE, SETTINGS)
    best_s = take_turns(7, **sides)
    peak = {name: in_process(name, seed, environment=MEASURABLE)["bytes"] / 1e6 for name in sides}
    time_ratio, memory_ratio = best_s["theirs"] / best_s["ours"], peak["theirs"] / peak["ours"]
    return [
        Row("step against the equations as written", time_ratio, ">= 12", best_s["ours"], best_s["theirs"], "s"),
        Row("  its extra memory", memory_ratio, ">= 20", peak["ours"], peak["theirs"], "MB"),
    ]


def make_sides(seed: int, size: dict[str, int], settings: dict[str, int]) -> dict:
    engine = make_engine(seed, size["width"], size["classes"], **settings)
    step = make_step(seed + 1, **size)
    check_against_reference(engine, step)
    model = AsWritten(engine.network.networks["rgb"])
    check_against_as_written(engine, model, step)
    return {"ours": partial(our_step, engine, step), "theirs": partial(step_as_written, model, step.micro_batches[0])}


def check() -> None:
    make_sides(fresh_seed(), {"videos": 3, "snippets": 11, "width": 10, "classes": 6}, {"units": 4, "bottleneck": 5})


def peak_of(side: str, seed: str) -> dict[str, int]:
    engine = make_engine(int(seed), SIZE["width"], SIZE["classes"], **SETTINGS)
    step = make_step(int(seed) + 1, **SIZE)
    model = AsWritten(engine.network.networks["rgb"])
    call = partial(our_step, engine, step) if side == "ours" else partial(step_as_written, model, step.micro_batches[0])
    call()  # what a first step sets up once is no part of a step
    model.zero_grad()
    engine.network.zero_grad()
    return {"bytes": peak_growth_bytes(call)}


if __name__ == "__main__":
    main(measure, ours=partial(peak_of, "ours"), theirs=partial(peak_of, "theirs"))
