"""Run under torchrun by test_train: training steps in float64 on made-up videos; the first rank saves what came out."""

import gc
import json
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aumn.config.run_config import RunConfig
from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.model.losses import Objective
from aumn.model.settings import LossSettings, ModelSettings
from aumn.records import Batch, Step, Video, is_bank
from aumn.runfolder.checkpoint import read_last_checkpoint
from aumn.runfolder.saving import RunWriter
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import Ranks, connect
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.finite import FiniteWatch
from aumn.training.loop import Run, _save
from aumn.training.resume import Progress
from aumn.training.step import train_step
from tests.training.footprint_steps import CARD

WIDTHS, CLASSES = {"rgb": 6, "flow": 9}, 5
SHAPE = ModelSettings(
    embedding_width=12,
    key_ratio=3,
    units=7,
    bottleneck=4,
    dropout=0.3,
    channel_dropout=0.2,
    mixing_dropout=0.4,
    prototypes=True,
)
LOSS = LossSettings(
    diversity=0.3,
    homogeneity=0.7,
    sparsity={"rgb": 0.4, "flow": 0.1, "joint": 0.2},
    pseudo_labels=0.6,
    pseudo_labels_from=0.0,
)
OBJECTIVE = Objective(LOSS, steps=9)
CONFIG = RunConfig.model_validate(
    {"data": {"shards": "unused"}, "run": {"folder": "unused", "steps": 9, "log_every": 1}, "loss": LOSS.model_dump()}
)


def make_batch(videos: np.ndarray) -> Batch:
    lengths = [4 + (5 * video) % 7 for video in videos.tolist()]
    longest = max(lengths, default=1)
    mask_BT = torch.arange(longest) < torch.tensor(lengths).reshape(-1, 1)
    features = {
        stream: torch.zeros(len(videos), longest, width, dtype=torch.float64) for stream, width in WIDTHS.items()
    }
    for row, video in enumerate(videos.tolist()):
        generator = torch.Generator().manual_seed(video)
        for stream, width in WIDTHS.items():
            drawn = torch.randn(lengths[row], width, dtype=torch.float64, generator=generator)
            features[stream][row, : lengths[row]] = drawn
    labels_BC = torch.zeros(len(videos), CLASSES, dtype=torch.float64)
    labels_BC[range(len(videos)), videos % CLASSES] = 1
    labels_BC[range(len(videos)), videos // CLASSES % CLASSES] = 1
    named = tuple(
        Video(str(video), "training", length, (), length / 25, 25.0)
        for video, length in zip(videos, lengths, strict=True)
    )
    return Batch(named, tuple(lengths), tuple(videos.tolist()), features, mask_BT, labels_BC)


def single(batch: Batch) -> Batch:
    features = {stream: features_BTD.float() for stream, features_BTD in batch.features.items()}
    return replace(batch, features=features, labels_BC=batch.labels_BC.float())


def make_step(videos: int, micro_batches: int, ranks: Ranks, index: int = 0) -> Step:
    pieces = np.array_split(np.arange(videos) + index, micro_batches * ranks.size)
    mine = pieces[ranks.rank * micro_batches : (ranks.rank + 1) * micro_batches]
    return Step(index, 0, videos, tuple(map(make_batch, mine)))


def build(
    ranks: Ranks, streams: str = "apart", units: int = 7, bank_ranks: int = 1, dtype: torch.dtype = torch.float64
) -> Engine:
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"streams": streams, "units": units})
    bank = Bank.over(ranks.split(bank_ranks)[0], units)
    network = StreamNetworks.build(WIDTHS, CLASSES, shape, scores_snippets=True, bank=bank).to(dtype)
    optimizer, settings = OptimizerSettings(clip_norm=0.1), EngineSettings(bank_ranks=bank_ranks)
    return build_engine("ddp", network, ranks, torch.device("cpu"), optimizer=optimizer, engine=settings)


def run_step(
    videos: int, micro_batches: int, ranks: Ranks, streams: str = "apart", units: int = 7, bank_ranks: int = 1
) -> dict[str, torch.Tensor]:
    """The step's report summed over ranks, its gradients and gradient norms, and the weights after the update."""
    engine = build(ranks, streams, units, bank_ranks)

    def whole(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(engine.bank.gather(tensor)) if is_bank(name) else tensor.clone()

    report = train_step(engine, make_step(videos, micro_batches, ranks), OBJECTIVE)
    named = list(engine.network.named_parameters())
    out = {f"report/{name}": ranks.sum_(value.double().clone()) for name, value in report.items()}
    out |= {f"gradient/{name}": whole(name, parameter.grad) for name, parameter in named}
    out |= {f"norm/{name}": norm for name, norm in engine.update(1e-3).items()}
    return out | {f"weight/{name}": whole(name, parameter.detach()) for name, parameter in named}


def go_on(folder: Path, ranks: Ranks, bank_ranks: int, units: int) -> list[float]:
    """A step more from the last checkpoint, in float32; what was read is written once more, into `again`."""
    engine = build(ranks, "apart", units, bank_ranks, torch.float32)
    bank, index = engine.network.bank, 0
    if found := read_last_checkpoint(folder, bank.rows if bank else None):
        checkpoint = found[1]
        engine.load_state(checkpoint.weights, checkpoint.trainer_tensors, checkpoint.trainer_facts["optimizer"])
        index = checkpoint.step
        save(engine, folder / "again", index)
    step = make_step(5, 2, ranks, index)
    step = replace(step, micro_batches=tuple(map(single, step.micro_batches)))
    report = train_step(engine, step, OBJECTIVE)
    norms = engine.update(1e-2)
    if bank:
        held = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.dim() == 2]
        assert not any(units in one.shape for one in held), "no rank holds all rows"
        memory = engine.network.networks["rgb"].memory.units_KF
        own = [memory, *(slot for slot in engine._adams["rgb"].state[memory].values() if slot.dim())]
        assert [tuple(one.shape) for one in own] == 3 * [(bank.rows.stop - bank.rows.start, SHAPE.embedding_width)]
    save(engine, folder, index + 1)
    return [*ranks.sum_(torch.stack([report["rgb/total"], report["flow/total"]])).tolist(), *map(float, norms.values())]


def save(engine: Engine, folder: Path, step: int) -> None:
    """As the loop does, by all ranks."""
    with ExitStack() as stack:
        writer = stack.enter_context(closing(RunWriter(folder, 9, print))) if engine.ranks.is_first else None
        run = Run(CONFIG, engine, None, FiniteWatch(engine), Progress(CARD, step), writer=writer)
        _save(run)
        assert writer is None or writer.wait()
        run.rows.wait()


def main() -> None:
    folder, *cases = sys.argv[1:]
    with connect() as ranks:
        for case in cases:
            if case.startswith("go_on"):
                curve = go_on(Path(folder), ranks, *map(int, case.split("x")[1:]))
                if ranks.is_first:
                    (Path(folder) / f"{case}.json").write_text(json.dumps(curve))
                continue
            videos, micro_batches, streams, *bank = case.split("x")
            out = run_step(int(videos), int(micro_batches), ranks, streams, *map(int, bank))
            if ranks.is_first:
                torch.save(out, Path(folder) / f"{case}x{ranks.size}.pt")


if __name__ == "__main__":
    main()
    leave()
