"""Run by test_footprint in processes of its own: the memory that training steps really take.

`tensors`: the highest sum of what PyTorch's allocator gave out and took back over a step, from the profiler; it has no
noise and no blind spot, since a step allocates nothing else of size. `process`: how far the resident memory of this
process has grown since before the network was built (a tiny one has been trained then), at the highest moment of a
step; the caller sets MALLOC_MMAP_THRESHOLD_ so that freed tensors go back to the system at once. `saving`: the same,
of a step during which a checkpoint is written. Several ranks tell the bytes of a step's collectives, too.
"""

import gc
import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from aumn.config.run_config import RunConfig
from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.model.losses import Objective
from aumn.records import Batch, Step
from aumn.runfolder.checkpoint import Checkpoint, ModelCard
from aumn.runfolder.saving import RunWriter
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import Ranks, connect
from aumn.training.step import train_step

WIDTHS = {"rgb": 96, "flow": 160}
CARD = ModelCard(
    model={},
    localize={},
    classes=(),
    streams={},
    stride_frames=16,
    dataset="",
    dataset_identity="",
    metrics={},
    aumn_version="",
    commit=None,
)


def make_batch(videos: int, snippets: int, classes: int) -> Batch:
    lengths = (snippets,) * (videos - 1) + (snippets // 2,)
    mask_BT = torch.arange(snippets) < torch.tensor(lengths)[:, None]
    features = {stream: torch.randn(videos, snippets, width) * mask_BT[..., None] for stream, width in WIDTHS.items()}
    return Batch(
        (), lengths, tuple(range(videos)), features, mask_BT, torch.eye(classes)[torch.arange(videos) % classes]
    )


def build(config: RunConfig, classes: int, ranks: Ranks) -> Engine:
    bank, labels = (
        Bank.over(ranks.split(config.engine.bank_ranks)[0], config.model.units),
        config.loss.pseudo_labels > 0,
    )
    network = StreamNetworks.build(WIDTHS, classes, config.model, scores_snippets=labels, bank=bank)
    place = torch.device("cpu")
    return build_engine("ddp", network, ranks, place, optimizer=config.optimizer, engine=config.engine)


def make_step(config: RunConfig, classes: int, ranks: Ranks) -> Step:
    micro_videos = config.batch.micro_videos
    count = config.batch.global_videos // micro_videos // ranks.size
    batches = tuple(make_batch(micro_videos, config.data.snippets, classes) for _ in range(count))
    return Step(0, 0, config.batch.global_videos, batches)


def take(engine: Engine, step: Step, config: RunConfig) -> None:
    train_step(engine, step, Objective(config.loss, 1))
    engine.update(1e-4)


def tensor_bytes(config: RunConfig, classes: int) -> int:
    """Peak of one step beyond weights, optimizer state and features."""
    engine, step = build(config, classes, Ranks()), make_step(config, classes, Ranks())
    take(engine, step, config)  # makes the optimizer's state
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        take(engine, step, config)
    events = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(sizes.cumsum(0).max())


def process_bytes(config: RunConfig, classes: int, ranks: Ranks, writer: RunWriter | None = None) -> int:
    """Peak of one step beyond what this process held before the network was built and without features."""
    tiny = config.model_copy(update={"model": config.model.model_copy(update={"units": 99, "embedding_width": 8})})
    step = make_step(config, classes, ranks)
    take(build(tiny, classes, ranks), step, config)  # loads what PyTorch loads at the first step
    gc.collect()
    before = resident_bytes("VmRSS")
    engine = build(config, classes, ranks)
    take(engine, step, config)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest moment so far
    if writer:
        writer.save(Checkpoint(1, engine.weights(), CARD, *engine.trainer_state()))
    take(engine, step, config)
    return resident_bytes("VmHWM") - before


def sent_bytes(config: RunConfig, classes: int, ranks: Ranks) -> float:
    """By a rank in a step, rings' and messages' to each other rank; whole numbers, which cross on the host, apart."""
    engine, step, sent = build(config, classes, ranks), make_step(config, classes, ranks), []

    def all_reduce(tensor, *_, group=None, **options):
        if tensor.is_floating_point():
            sent.append(2 * tensor.nbytes * (1 - 1 / dist.get_world_size(group)))
        return ask_all(tensor, *_, group=group, **options)

    def all_to_all(found, tensor, received, given, group=None):
        sent.append(tensor.nbytes * (1 - given[dist.get_rank(group)] / sum(given)))
        return ask_each(found, tensor, received, given, group=group)

    ask_all, ask_each = dist.all_reduce, dist.all_to_all_single
    dist.all_reduce, dist.all_to_all_single = all_reduce, all_to_all
    train_step(engine, step, Objective(config.loss, 1))
    dist.all_reduce, dist.all_to_all_single = ask_all, ask_each
    return sum(sent)


def make_writer(folder: Path) -> RunWriter:
    """Its thread waits until a step has been taken, so that the step's peak meets the snapshot."""
    writer = RunWriter(folder, keep_last=1, say=print)
    writer.metrics.sync = lambda: time.sleep(3)  # type: ignore[method-assign]
    return writer


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    what, cases = sys.argv[1], json.loads(sys.argv[2])
    configs = [(RunConfig.model_validate(case["config"]), case["classes"]) for case in cases]
    with connect() as ranks:
        if what == "tensors":
            found = [tensor_bytes(config, classes) for config, classes in configs]
        elif what == "saving":
            with tempfile.TemporaryDirectory() as folder, closing(make_writer(Path(folder))) as writer:
                found = [process_bytes(config, classes, ranks, writer) for config, classes in configs]
                assert writer.wait()
        else:
            found = [process_bytes(config, classes, ranks) for config, classes in configs]
        if ranks.size > 1:
            found += [sent_bytes(config, classes, ranks) for config, classes in configs]
        if ranks.is_first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
    leave()
