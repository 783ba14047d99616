"""Run under torchrun by test_engines and equality: short trainings in float32 weights, one launch for many engines."""

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank
from aumn.records import InputError, Rows, Step
from aumn.runtime.engines import Engine, build_engine
from aumn.runtime.preemption import leave
from aumn.runtime.ranks import Ranks, connect
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training.finite import FiniteWatch
from aumn.training.loop import Run
from aumn.training.loop import train as run_steps
from aumn.training.resume import Progress
from aumn.training.step import train_step
from tests.training.footprint_steps import CARD
from tests.training.train_ranks import CLASSES, CONFIG, OBJECTIVE, SHAPE, WIDTHS, make_batch, single

VIDEOS, STEPS = 7, 6
CPU = torch.device("cpu")
BANK = "ddp-0-fp32-none-2"
OFFLOADS = ("deepspeed-1-fp32-optimizer", "deepspeed-2-fp32-optimizer", "deepspeed-3-fp32-all")


def cases(precision: str) -> list[str]:
    """Every engine and stage: `engine-stage-precision`; behind it may stand what is offloaded, and a bank's ranks."""
    return [f"ddp-0-{precision}", *(f"deepspeed-{stage}-{precision}" for stage in range(4))]


def build(case: str, ranks: Ranks, units: int = 7, device: torch.device = CPU, *, prototypes: bool = True) -> Engine:
    """A case's engine on a network that is the same for every case."""
    name, stage, precision, *more = case.split("-")
    offload, bank_ranks = (*more, *("none", "1")[len(more) :])
    torch.manual_seed(0)
    shape = SHAPE.model_copy(update={"units": units, "prototypes": prototypes})
    bank = Bank.over(ranks.split(int(bank_ranks))[0], units)
    network = StreamNetworks.build(WIDTHS, CLASSES, shape, scores_snippets=True, bank=bank)
    optimizer = OptimizerSettings(clip_norm=1.0, weight_decay=0.1)
    settings = EngineSettings(precision=precision, zero_stage=int(stage), offload=offload, bank_ranks=int(bank_ranks))
    engine = build_engine(name, network, ranks, device, optimizer=optimizer, engine=settings)
    for scale in engine.scales.values():
        scale.value.clamp_(max=2.0**10)  # so that no step overflows and is skipped
    return engine


def make_step(index: int, ranks: Ranks, micro_batches: int = 2) -> Step:
    """Other videos in every step; a rank's share is never the same as another's."""
    pieces = np.array_split(np.arange(VIDEOS) + VIDEOS * index, micro_batches * ranks.size)
    mine = pieces[ranks.rank * micro_batches : (ranks.rank + 1) * micro_batches]
    return Step(index, 0, VIDEOS, tuple(single(make_batch(piece)) for piece in mine))


def train(engine: Engine, first: int = 0, last: int = STEPS) -> list[list[float]]:
    """Both streams' losses and gradient norms, step by step."""
    curve = []
    for index in range(first, last):
        report = train_step(engine, make_step(index, engine.ranks), OBJECTIVE)
        losses = engine.ranks.sum_(torch.stack([report["rgb/total"], report["flow/total"]]))
        curve.append([*losses.tolist(), *map(float, engine.update(1e-2).values())])
    return curve


def curves(ranks: Ranks, names: list[str]) -> dict[str, list[list[float]]]:
    return {case: train(build(case, ranks)) for case in names}


def save(engine: Engine) -> tuple:
    """What a checkpoint holds, on every rank; facts pass through JSON as they do there."""
    weights, (tensors, facts) = engine.weights(), engine.trainer_state()
    weights = {name: one.own if isinstance(one, Rows) else one for name, one in weights.items()}
    tensors = {name: one.own if isinstance(one, Rows) else one for name, one in tensors.items()}
    return deepcopy(engine.ranks.broadcast((weights, tensors, json.dumps(facts))))


def restore(engine: Engine, state: tuple) -> Engine:
    weights, tensors, facts = deepcopy(state)  # an engine may train on in the very tensors it is given
    engine.load_state(weights, tensors, json.loads(facts))
    return engine


def resumed(ranks: Ranks, folder: Path, source: str, targets: list[str]) -> dict[str, list[list[float]]]:
    """The second half of a training that stopped in its middle, `source` being its undisturbed second half."""
    engine = build(source, ranks)
    train(engine, 0, STEPS // 2)
    state = save(engine)
    if ranks.is_first:
        torch.save(state, folder / f"{source}.pt")
    halves = {source: train(engine, STEPS // 2)}
    return halves | {
        f"{source} to {target}": train(restore(build(target, ranks), state), STEPS // 2) for target in targets
    }


def go_on(ranks: Ranks, folder: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """The second half of trainings whose first half another number of ranks has done."""
    states = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}
    return {name: train(restore(build(name, ranks), state), STEPS // 2) for name, state in states.items()}


class DamagedSteps:
    """Step 4 holds a video, 31, with one feature that is not a number."""

    steps_per_epoch, wait_s, may_lack = 10, 0.0, False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def steps(self, first: int, last: int, _give_up: object = None) -> Iterator[Step]:
        for index in range(first, last):
            step = make_step(index, self.ranks)
            for batch in step.micro_batches:
                for place, video in enumerate(batch.videos):
                    if video.id == "31":
                        batch.features["flow"][place, 2, 3] = torch.nan
            yield step


def damage(ranks: Ranks, case: str) -> list[tuple[str, int, bool]]:
    """What each rank says of a step that it cannot take, how many it took, and if its weights are as before."""
    engine, taken = build(case, ranks), []

    def keep(done: int, steps: int) -> None:
        taken.append((done, save(engine)[0]))

    progress, watch = Progress(CARD, step=3), FiniteWatch(engine)
    try:
        run_steps(Run(CONFIG, engine, DamagedSteps(ranks), watch, progress, advance=keep))
        said = "nothing"
    except InputError as error:
        said = str(error)
    (done, before), after = taken[-1], save(engine)[0]
    return ranks.gather((said, done, all(torch.equal(before[name], after[name]) for name in before)))


def scored(ranks: Ranks, case: str) -> list[list[list[float]]]:
    """Each rank's scores of videos of its own, of which the ranks have unequal numbers, after a step."""
    engine = build(case, ranks)
    train(engine, 0, 1)
    network = engine.whole_network().eval()
    batches = [single(make_batch(np.array([video]))) for video in range(3 * ranks.rank, 1 + 5 * ranks.rank)]
    found = [network.localize(batch)["flow"].video_C.tolist() for batch in batches]
    network.serve()
    network.train()
    train(engine, 1, 2)  # it can still be trained
    return ranks.gather(found)


def main() -> None:
    folder, *commands = sys.argv[1:]
    result = {}
    with connect() as ranks:
        for command in commands:
            kind, names = command.split(":")[0], command.split(":")[1].split(",")
            if kind == "curves":
                result[kind] = curves(ranks, names)
            elif kind == "resume":
                halves = [resumed(ranks, Path(folder), source, names) for source in names]
                result[kind] = {name: half for part in halves for name, half in part.items()}
            elif kind == "again":
                result[kind] = {
                    name: half
                    for source in names
                    for name, half in resumed(ranks, Path(folder), source, [source]).items()
                }
            elif kind == "go_on":
                result[kind] = go_on(ranks, Path(folder), names)
            elif kind == "scored":
                result[kind] = {name: scored(ranks, name) for name in names}
            elif kind == "damage":
                result[kind] = {name: damage(ranks, name) for name in names}
        if ranks.is_first:
            (Path(folder) / f"{ranks.size}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    leave()
