"""Run under torchrun by test_train: training steps in float64 on made-up videos; the first rank saves what came out."""

import sys
from pathlib import Path

import numpy as np
import torch

from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.model.losses import Objective
from aumn.model.settings import LossSettings, ModelSettings
from aumn.records import Batch, Step, Video, is_bank
from aumn.runtime.engines import build_engine
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import Ranks, connect
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.step import train_step

WIDTHS, CLASSES = {"rgb": 6, "flow": 9}, 5
SHAPE = ModelSettings(
    embedding_width=12, key_ratio=3, units=7, bottleneck=4, dropout=0.3, channel_dropout=0.2, mixing_dropout=0.4
)
LOSS = LossSettings(
    diversity=0.3,
    homogeneity=0.7,
    sparsity={"rgb": 0.4, "flow": 0.1, "joint": 0.2},
    pseudo_labels=0.6,
    pseudo_labels_from=0.0,
)
OBJECTIVE = Objective(LOSS, steps=9)


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


def make_step(videos: int, micro_batches: int, ranks: Ranks) -> Step:
    pieces = np.array_split(np.arange(videos), micro_batches * ranks.size)
    mine = pieces[ranks.rank * micro_batches : (ranks.rank + 1) * micro_batches]
    return Step(0, 0, videos, tuple(map(make_batch, mine)))


def run_step(
    videos: int, micro_batches: int, ranks: Ranks, streams: str = "apart", units: int = 7, bank_ranks: int = 1
) -> dict[str, torch.Tensor]:
    """The step's report summed over ranks, its gradients and gradient norms, and the weights after the update."""
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"streams": streams, "units": units})
    bank = Bank.over(ranks.split(bank_ranks)[0], units)
    network = StreamNetworks.build(WIDTHS, CLASSES, shape, scores_snippets=True, bank=bank).double()
    optimizer, settings = OptimizerSettings(clip_norm=0.1), EngineSettings(bank_ranks=bank_ranks)
    engine = build_engine("ddp", network, ranks, torch.device("cpu"), optimizer=optimizer, engine=settings)

    def whole(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(engine.bank.gather(tensor)) if is_bank(name) else tensor.clone()

    report = train_step(engine, make_step(videos, micro_batches, ranks), OBJECTIVE)
    out = {f"report/{name}": ranks.sum_(value.double().clone()) for name, value in report.items()}
    out |= {f"gradient/{name}": whole(name, parameter.grad) for name, parameter in network.named_parameters()}
    out |= {f"norm/{name}": norm for name, norm in engine.update(1e-3).items()}
    return out | {f"weight/{name}": whole(name, parameter.detach()) for name, parameter in network.named_parameters()}


def main() -> None:
    folder, *cases = sys.argv[1:]
    with connect() as ranks:
        for case in cases:
            videos, micro_batches, streams, *bank = case.split("x")
            out = run_step(int(videos), int(micro_batches), ranks, streams, *map(int, bank))
            if ranks.is_first:
                torch.save(out, Path(folder) / f"{case}x{ranks.size}.pt")


if __name__ == "__main__":
    main()
    leave()
