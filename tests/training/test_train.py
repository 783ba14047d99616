"""A training step gives one result, however its videos were cut into ranks and micro-batches."""

import json
from types import SimpleNamespace as Fake

import pytest
import torch
from torch.testing import assert_close

from aumn.data.problems import StoreGoneError
from aumn.model.bank import Bank
from aumn.records import InputError, Step, Stopped
from aumn.runfolder.checkpoint import read_model
from aumn.runfolder.folder import RunFolder, Status
from aumn.runtime.engines import build_engine
from aumn.runtime.ranks import Ranks
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.training import loop, run
from aumn.training.step import learning_rate
from aumn.training.validation import Validation
from tests.launching import aumn, succeed, together
from tests.tiny import Tiny
from tests.training import train_ranks

CONFIG = Fake(run=Fake(steps=60, checkpoint_every=100, start_timeout_s=600, step_timeout_s=None), store_away_s=0.0)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("micro_batches", [2, 4, 8, 11])
def test_micro_batches_change_nothing(micro_batches):
    whole = train_ranks.run_step(8, 1, Ranks())
    assert_same(train_ranks.run_step(8, micro_batches, Ranks()), whole)
    assert whole["report/rgb/homogeneity"] > 0.01
    assert whole["norm/rgb"] > 0.1  # so that clipping is part of the comparison


APART = ["8x1xapart", "8x2xapart", "7x1xapart", "1x1xapart", "2x2xapart", "8x2xboth"]
CASES = {  # videos x micro-batches x streams x units x ranks of a bank
    2: [*APART, "8x1xapartx37x1", "8x1xapartx37x2", "7x2xbothx13x2", "1x1xapartx7x2", "8x2xapartx2x2"],
    3: APART,
    4: ["8x1xapartx37x2", "7x3xbothx13x2", "2x1xbothx7x4", "1x2xapartx13x4"],
}


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_change_nothing_even_where_a_rank_has_no_video(ranks, tmp_path):
    """Nor does a memory bank over ranks, of more and of fewer units than the embedding is wide (12), even or not."""
    cases = CASES[ranks]
    succeed(together(ranks, train_ranks.__file__, tmp_path, *cases))
    for case in cases:
        videos, _, streams, units, *_ = (*case.split("x"), 7)
        alone = train_ranks.run_step(int(videos), 1, Ranks(), streams, int(units))
        assert_same(torch.load(tmp_path / f"{case}x{ranks}.pt", weights_only=True), alone)


def test_any_mesh_goes_on_from_any_others_checkpoint_and_writes_it_again_byte_for_byte(tmp_path):
    """Of 13 units, so that ranks hold unequal numbers; one process is the first and the last."""
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    curve = [train_ranks.go_on(alone, Ranks(), 1, 13) for _ in range(5)]
    ours = [train_ranks.go_on(ranks, Ranks(), 1, 13)]
    meshes = [f"go_onx{bank_ranks}x13" for bank_ranks in (2, 4, 1)]
    succeed(together(4, train_ranks.__file__, ranks, *meshes))
    ours += [json.loads((ranks / f"{mesh}.json").read_text()) for mesh in meshes]
    ours.append(train_ranks.go_on(ranks, Ranks(), 1, 13))
    assert_close(ours, curve, rtol=1e-5, atol=1e-6)
    for step in range(1, 5):
        first, again = (folder / "checkpoints" / f"step_{step:08d}" for folder in (ranks, ranks / "again"))
        for name in ("model.safetensors", "trainer.safetensors"):
            assert (first / name).read_bytes() == (again / name).read_bytes(), (step, name)
    theirs, found = (read_model(folder / "checkpoints" / "step_00000005")[0] for folder in (alone, ranks))
    assert_close(found, theirs, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_is_a_function_of_the_step():
    constant = OptimizerSettings(learning_rate=0.5, warmup_steps=4)
    assert [learning_rate(constant, step, 8) for step in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    cosine = OptimizerSettings(learning_rate=0.5, warmup_steps=2, schedule="cosine")
    assert learning_rate(cosine, 2, 10) == 0.5
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.25)
    assert learning_rate(cosine, 10, 10) == pytest.approx(0)
    trapezoid = OptimizerSettings(learning_rate=0.5, warmup_steps=2, schedule="trapezoid")
    rates = [learning_rate(trapezoid, step, 10) for step in range(11)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0])


def test_a_single_process_engine_refuses_several_ranks():
    with pytest.raises(InputError, match=r"run.engine=single trains in one process, but 2 ranks .* set run.engine=ddp"):
        build_engine("single", None, Ranks(0, 2), "cpu", optimizer=OptimizerSettings(), engine=EngineSettings())


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(
        InputError, match=r"over 3 ranks \(engine\.bank_ranks, .*there are 4: start 3 or 6, say, or share"
    ):
        Ranks(0, 4).split(3)
    with pytest.raises(InputError, match=r"model\.units=7 are too few for a memory over 8 ranks .*take fewer ranks"):
        Bank.over(Ranks(0, 8), 7)


@pytest.mark.parametrize("whose", ["mine", "another's"])
def test_a_store_that_is_gone_in_an_evaluation_ends_the_run_with_a_checkpoint_on_all_ranks(whose, monkeypatch):
    def videos(*_, **__):
        if whose == "mine":
            raise StoreGoneError("my store has not answered.")
        yield from ()

    class TwoRanks(Ranks):
        def gather(self, item):
            return [item, "" if item else "another's store has not answered."]

    saved = []
    monkeypatch.setattr(loop, "_save", saved.append)
    monkeypatch.setattr(loop, "_how_to_go_on", lambda _: "here holds step 20 of 60")
    monkeypatch.setattr("aumn.training.validation.whole_videos", videos)
    monkeypatch.setattr("aumn.training.validation.localize", lambda _, batches, *__, **___: next(batches, None))
    network = Fake(eval=lambda: None, train=lambda: None, serve=lambda: None)
    engine = Fake(ranks=TwoRanks(), whole_network=lambda: network, device="cpu", communication_s=lambda: None)
    loader = Fake(steps=lambda *_: (step for step in ()), wait_s=0.0, may_lack=True)
    watch, progress = Fake(settle=lambda: None), Fake(step=20, evaluation_due=True)
    validation = Validation("held_out", None, [0], None, (), Fake(localize=None))
    run = loop.Run(CONFIG, engine, loader, watch, progress, validation)
    with pytest.raises(InputError, match=rf"^{whose[:1]}.* store has not answered\. Here holds step 20 of 60\."):
        loop.train(run)
    assert run.all_stop
    assert saved == [run]
    assert progress.evaluation_due


@pytest.mark.parametrize("may_lack", [False, True])
def test_a_step_is_done_without_only_where_ranks_agree_on_it(may_lack, monkeypatch):
    """A signal that comes while a local set is read slowly waits for the step, as it always did."""
    given = []
    loader = Fake(steps=lambda *given_: given.extend(given_) or (step for step in ()), wait_s=0.0, may_lack=may_lack)
    engine = Fake(ranks=Ranks(), communication_s=lambda: None)
    monkeypatch.setattr("aumn.runtime.preemption.asked", lambda: 15)
    loop.train(loop.Run(CONFIG, engine, loader, None, Fake(step=20, evaluation_due=False)))
    assert given[2]() is may_lack


@pytest.mark.parametrize("other", ["waits", "has damage"])
def test_a_rank_without_data_outranks_one_with_damage(other, monkeypatch):
    class Three(Ranks):
        def ask(self, question):
            return lambda: max(question(), loop.ASKED + 15 if other == "waits" else loop.HAS_DAMAGE)

    monkeypatch.setattr("aumn.runtime.preemption.asked", lambda: 0 if other == "waits" else 15)
    damaged = Step(7, 0, 6, (), damaged={"v": "why"})
    waiting = Step(7, 0, 0, (), problem=InputError("A step was waited for in vain."))
    step = damaged if other == "waits" else waiting
    run = loop.Run(CONFIG, Fake(ranks=Three()), Fake(damaged_limit=9), None, None)
    assert loop._agree(run, step) == (step, 15)


@pytest.mark.parametrize("independent", [True, False])
def test_videos_without_an_action_are_trained_on_and_untimed_ones_are_not_measured_on(independent, tmp_path_factory):
    """Half of the held-out videos, which are named, have no times; a third of the others no action at all."""
    root = tmp_path_factory.getbasetemp() / "background"
    if not root.exists():
        root.mkdir()
        Tiny(root)
        database = json.loads((root / "features" / "gt.json").read_text())["database"]
        training = sorted(name for name, video in database.items() if video["subset"] == "training")
        rows = ["video,subset,duration,label,start,end"]
        for name, video in database.items():
            facts = f"{name},{video['subset']},{video['duration']}"
            instances = [] if name in training[4::3] else video["annotations"]
            times = [",," if name in training[:2] else f",{one['segment'][0]},{one['segment'][1]}" for one in instances]
            rows += [f"{facts},{one['label']}{time}" for one, time in zip(instances, times, strict=True)] or [
                f"{facts},,,"
            ]
        (root / "gt.csv").write_text("\n".join(rows))
        succeed(aumn("pack", "features", "background", "--annotations", "gt.csv", "--fps", 25, cwd=root))
        (root / "names.txt").write_text("\n".join(training[:4]))
    words = ("data.shards=background", "data.holdout_share=0", "data.holdout_videos=names.txt", "run.steps=6")
    settings = (
        *words,
        "evaluation.every=6",
        f"model.independent_classes={independent}".lower(),
        f"run.folder=run_{independent}",
    )
    subsets = "data.subset=[training,testing]" if independent else "data.subset=training"
    told = succeed(aumn("train", "tiny.yaml", *settings, subsets, cwd=root)).stderr
    count = len(
        {
            line.split(",")[0]
            for line in (root / "gt.csv").read_text().split("\n")[1:]
            if independent or ",training," in line
        }
    )
    assert f"{count - 4} training videos, 4 held out" in told
    assert f"{'each says of every class' if independent else 'the softmax of Eq. 9 says nothing'}" in told
    assert "on 2 videos: held out" in told
    lines = [json.loads(line) for line in (root / f"run_{independent}" / "metrics.jsonl").read_text().splitlines()]
    assert all(value is not None for line in lines for value in line.values())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x: mend it."), 2),
        (Stopped("Step 3: another rank has not answered.", signal=0, code=75), 75),
        (Stopped("Stopped by SIGTERM.", signal=15, code=75), None),
        (Stopped("Another rank has ended.", signal=0, code=1), None),
        (ValueError("a defect"), None),
    ],
)
def test_a_rank_other_than_the_first_notes_what_nobody_else_may_know_of(error, code, tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_status(Status())
    with pytest.raises(type(error)), run._verdict(folder, Ranks(rank=1, size=2)):
        raise error
    assert folder.status().code == code
