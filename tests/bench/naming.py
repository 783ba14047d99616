"""What naming slow ranks costs: two ranks that train the step of `step.py`, with and without it, in turn.

Time is the processor's, so that what else the machine does counts little. What naming adds is also taken alone, of the
thread that trains: it is too little to be seen in steps.
"""

import statistics
import time

from harness import Row, fresh_seed, in_process, main
from problems import OBJECTIVE, make_step
from step import SETTINGS, SIZE

STEPS, RUNS, ASKED, LOG_EVERY = 8, 5, 400, 10


def measure() -> list[Row]:
    found = in_process("ranks", fresh_seed(), ranks=2, environment={"OMP_NUM_THREADS": "1"}, timeout_s=600)
    extra_s, plain_s = found["extra_s"], statistics.median(found["steps_plain_s"])
    extra = Row("naming slow ranks: a step's extra, of a step", extra_s / plain_s, "<= 0.005", extra_s, plain_s, "s")
    paired = Row.of_runs(
        "  steps with it against steps without it", "<= 1.02", found["steps_named_s"], found["steps_plain_s"], "s"
    )
    return [extra, paired]


def on_ranks(seed: str) -> dict[str, float] | None:
    import torch

    from aumn.model.aumn import StreamNetworks
    from aumn.model.settings import ModelSettings
    from aumn.runtime.engines import build_engine
    from aumn.runtime.ranks import connect
    from aumn.runtime.settings import EngineSettings, OptimizerSettings
    from aumn.training.slow import SlowRanks, place_of
    from aumn.training.step import train_step

    torch.manual_seed(int(seed))
    network = StreamNetworks.build({"rgb": SIZE["width"]}, SIZE["classes"], ModelSettings(**SETTINGS))
    with connect() as ranks:
        device = torch.device("cpu")
        engine = build_engine("ddp", network, ranks, device, optimizer=OptimizerSettings(), engine=EngineSettings())
        step = make_step(int(seed) + ranks.rank, **SIZE)
        slow = SlowRanks(ranks.gather(place_of(ranks.rank, 0, device)), print, None)
        begin, end = engine.own_time.begin, engine.own_time.end

        def ask(index: int, *, named: bool) -> None:
            """A signal's question, as every step has it, and what naming adds to it."""
            is_read = named and index % LOG_EVERY == LOG_EVERY - 1
            own_us = round(engine.own_time.read() * 1e6) if is_read else None
            answer = ranks.ask_and_tell(int, own_us)
            if named:
                begin()
                end()
            if own := answer()[1:]:
                slow.add(LOG_EVERY, [own_us / 1e6 for own_us in own])

        def take(index: int, *, named: bool) -> None:
            engine.own_time.begin, engine.own_time.end = (begin, end) if named else (lambda: None, lambda: None)
            ask(index, named=named)
            train_step(engine, step, OBJECTIVE)
            engine.update(1e-4)

        def turns(call, count: int, clock, middle=statistics.median) -> tuple[float, float]:
            """The middle of each side, whose turns change places; a mean where a tenth of the calls counts."""
            took_s: dict[bool, list[float]] = {True: [], False: []}
            for index in range(count):
                for named in (True, False) if index % 2 else (False, True):
                    start_s = clock()
                    call(index, named=named)
                    took_s[named].append(clock() - start_s)
            return middle(took_s[True]), middle(took_s[False])

        turns(take, 5, time.process_time)
        asked_s = [
            named_s - plain_s
            for named_s, plain_s in (turns(ask, ASKED, time.thread_time, statistics.fmean) for _ in range(5))
        ]
        runs = [turns(take, STEPS, time.process_time) for _ in range(RUNS)]
        named_s, plain_s = zip(*runs, strict=True)
        found = {"extra_s": max(0.0, statistics.median(asked_s)), "steps_named_s": named_s, "steps_plain_s": plain_s}
        return found if ranks.is_first else None


if __name__ == "__main__":
    main(measure, ranks=on_ranks)
