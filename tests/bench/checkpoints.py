"""How long a checkpoint keeps training waiting: written behind its back, against waited for.

python tests/bench/checkpoints.py [K]
"""

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from aumn.config.run_config import RunConfig
from aumn.runfolder.checkpoint import Checkpoint
from aumn.runfolder.saving import RunWriter
from aumn.runtime.ranks import Ranks
from tests.training.footprint_steps import CARD, WIDTHS, build, make_step, take

ROUNDS = 5
SETTINGS = {"data": {"shards": "-", "snippets": 20}, "batch": {"global_videos": 2, "micro_videos": 2}}


def main(units: int) -> None:
    WIDTHS.update(rgb=1024, flow=1024)
    settings = {**SETTINGS, "run": {"folder": "-", "steps": 1}, "model": {"units": units}}
    config = RunConfig.model_validate(settings)
    engine, step = build(config, 200, Ranks()), make_step(config, 200, Ranks())
    take(engine, step, config)
    size = sum(tensor.nbytes for tensor in (*engine.weights().values(), *engine.trainer_state()[0].values()))
    print(f"K={units:,}, two streams, C=200: a checkpoint of {size / 1e6:,.0f} MB; medians of {ROUNDS}")
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(Path(folder), keep_last=1, say=print)
        with closing(writer):
            rounds = [measure(engine, step, config, writer, index) for index in range(ROUNDS)]
    for name in rounds[0]:
        print(f"{name:<48} {median(found[name] for found in rounds):7.3f} s")


def measure(engine, step, config: RunConfig, writer: RunWriter, index: int) -> dict[str, float]:
    """Wall-clock seconds need an idle machine; seconds of CPU, which all threads share, do so less."""
    take(engine, step, config)
    waited_s, waited_cpu_s = seconds(lambda: (save(engine, writer, 2 * index), writer.wait()))
    stall_s, stall_cpu_s = seconds(lambda: save(engine, writer, 2 * index + 1))
    assert writer.wait()
    return {
        "stall if training waited for the write": waited_s,
        "  of it CPU": waited_cpu_s,
        "stall: the snapshot": stall_s,
        "  of that CPU": stall_cpu_s,
    }


def save(engine, writer: RunWriter, index: int) -> None:
    writer.save(Checkpoint(index, engine.weights(), CARD, *engine.trainer_state()))


def seconds(call) -> tuple[float, float]:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 4096)
