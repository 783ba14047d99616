"""Every engine, stage and precision gives DDP's loss curve, and any of them goes on from any other's checkpoint."""

import json
import statistics

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from aumn.records import InputError
from aumn.runfolder.checkpoint import read_model
from aumn.runtime.precision import LossScale
from aumn.runtime.ranks import Ranks
from aumn.training.finite import FiniteWatch
from aumn.training.loop import Run, train
from aumn.training.resume import Progress
from aumn.training.step import train_step
from tests.launching import python, succeed, together
from tests.runtime import engine_ranks
from tests.tiny import Tiny
from tests.training.footprint_steps import CARD
from tests.training.train_ranks import OBJECTIVE

CPU = torch.device("cpu")
HALF = engine_ranks.STEPS // 2
RESUMED = ["ddp-0-fp32", "deepspeed-1-fp32", "deepspeed-3-fp32"]
SCORED = ["ddp-0-fp32", engine_ranks.BANK, "deepspeed-1-fp32", "deepspeed-3-fp32"]
AGAIN = ["ddp-0-fp32", "deepspeed-3-fp32"]  # on three ranks
DAMAGED = ["ddp-0-fp32", engine_ranks.BANK, "deepspeed-0-fp32", "deepspeed-3-bf16", "deepspeed-2-fp16"]
ROOT = engine_ranks.Path(__file__).parents[2]


def launch(ranks, folder, **commands):
    """Importing deepspeed takes seconds, so one launch serves many tests."""
    arguments = [f"{kind}:{','.join(names)}" for kind, names in commands.items()]
    script = engine_ranks.__file__
    succeed(together(ranks, script, folder, *arguments, timeout_s=280))
    return json.loads((folder / f"{ranks}.json").read_text())


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    curves = [case for precision in ("fp32", "bf16", "fp16") for case in engine_ranks.cases(precision)]
    return folder, launch(
        2,
        folder,
        curves=[*curves, engine_ranks.BANK, *engine_ranks.OFFLOADS],
        resume=RESUMED,
        damage=DAMAGED,
        scored=SCORED,
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_stage_gives_the_loss_curve_of_ddp(two_ranks, precision):
    curves = two_ranks[1]["curves"]
    more = (engine_ranks.BANK, *engine_ranks.OFFLOADS) if precision == "fp32" else ()
    for case in [*engine_ranks.cases(precision), *more]:
        assert_close(
            curves[case], curves[f"ddp-0-{precision}"], rtol=1e-5, atol=1e-6, msg=lambda m, c=case: f"{c}: {m}"
        )
    assert max(curves["ddp-0-fp32"][0][2:]) > 1  # so that clipping is part of the comparison


@pytest.mark.slow
def test_resuming_is_exact_and_changes_stage_and_engine_freely(two_ranks):
    halves = two_ranks[1]["resume"]
    for source in RESUMED:
        assert halves[f"{source} to {source}"] == halves[source]
        for target in RESUMED:
            assert_close(halves[f"{source} to {target}"], halves[source], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_resuming_changes_the_number_of_ranks_freely(two_ranks):
    folder, two = two_ranks
    three = launch(3, folder, go_on=RESUMED, again=AGAIN)
    for case in RESUMED:
        assert_close(three["go_on"][case], two["resume"][case], rtol=1e-5, atol=1e-6)
    # gloo's sums of three depend on a value's place, so a place must not change while a run goes on
    for case in AGAIN:
        assert three["again"][f"{case} to {case}"] == three["again"][case]
    assert_close(three["again"][AGAIN[1]], three["again"][AGAIN[0]], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGED)
def test_a_loss_that_is_not_finite_stops_every_rank_before_the_update(two_ranks, case):
    expected = (
        "Step 5: flow/classification and flow/homogeneity are not finite for 1 of its 7 videos (31), so every rank "
        "stopped before the update. Look at those videos' features"
    )
    for said, done, unchanged in two_ranks[1]["damage"][case]:
        assert said.startswith(expected)
        assert (done, unchanged) == (4, True)


@pytest.mark.slow
def test_every_rank_may_score_as_many_videos_as_it_has_and_all_engines_score_alike(two_ranks):
    found = two_ranks[1]["scored"]
    assert [len(of_rank) for of_rank in found["ddp-0-fp32"]] == [1, 3]
    for case in SCORED:
        assert_close(found[case], found["ddp-0-fp32"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_process_alone_trains_with_deepspeed_and_compiles_nothing(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from aumn.runtime.ranks import Ranks\n"
        "from tests.runtime import engine_ranks\n"
        "print(engine_ranks.curves(Ranks(), ['deepspeed-3-fp32', 'ddp-0-fp32']))\n"
    )
    place = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "ops")}
    said = succeed(python("-c", code, ROOT, cwd=tmp_path, environment=place)).stdout
    curves = json.loads(said.strip().splitlines()[-1].replace("'", '"'))
    assert_close(curves["deepspeed-3-fp32"], curves["ddp-0-fp32"], rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "ops").exists()


def test_what_goes_on_and_is_saved_at_once_is_what_it_went_on_from():
    """No byte tells that the run was stopped in between."""
    engine = engine_ranks.build("ddp-0-fp32", Ranks())
    engine_ranks.train(engine, 0, 2)
    saved = engine_ranks.save(engine)
    again = engine_ranks.save(engine_ranks.restore(engine_ranks.build("ddp-0-fp32", Ranks()), saved))
    assert json.loads(again[2]) == json.loads(saved[2])
    for ours, theirs in zip(again[:2], saved[:2], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("precision", "loss_error", "gradient_error"), [("bf16", 0.0015, 0.05), ("fp16", 0.00015, 0.003)]
)
@pytest.mark.parametrize("units", [7, 3])  # K above and below the bottleneck: read in chunks, and at once
def test_16_bits_stay_near_float32(precision, loss_error, gradient_error, units):
    """A gradient's median over batches: where Eq. 1 is within rounding of zero, its ReLU opens or closes as a whole."""
    distances: dict[str, list[float]] = {}
    for step in range(7):
        exact, rounded = (take_step(f"ddp-0-{name}", units, step) for name in ("fp32", precision))
        for name in exact[0]:
            assert_close(rounded[0][name], exact[0][name], rtol=loss_error, atol=loss_error)
        assert any((rounded[0][name] != exact[0][name]).item() for name in exact[0])
        for name, gradient in exact[1].items():
            distance = (rounded[1][name] - gradient).norm() / gradient.norm()
            distances.setdefault(name, []).append(distance.item())
    for name, of_name in distances.items():
        assert statistics.median(of_name) < gradient_error, name


def take_step(case, units, step):
    engine = engine_ranks.build(case, Ranks(), units, prototypes=False)  # which snippets they take, rounding may change
    report = train_step(engine, engine_ranks.make_step(step, Ranks()), OBJECTIVE)
    scales = {name: scale.value.item() for name, scale in engine.scales.items()}
    parameters = engine.network.networks.named_parameters()
    return report, {name: parameter.grad / scales[name.split(".")[0]] for name, parameter in parameters}


def test_a_float16_gradient_that_overflows_skips_its_own_stream_alone_and_lowers_the_scale():
    engine = engine_ranks.build("ddp-0-fp16", Ranks())
    engine.scales["rgb"].value.fill_(2.0**40)
    before = {name: weight.clone() for name, weight in engine.weights().items()}
    train_step(engine, engine_ranks.make_step(0, Ranks()), OBJECTIVE)
    norms = engine.update(1e-2)
    assert not norms["rgb"].isfinite()
    assert 0 < norms["flow"] < 100
    assert {name: scale.value.item() for name, scale in engine.scales.items()} == {"rgb": 2.0**39, "flow": 2.0**10}
    for name, weight in engine.weights().items():
        assert torch.equal(weight, before[name]) == ("rgb" in name), name


def test_a_gradient_that_is_not_finite_at_any_scale_stops_the_run_though_the_other_stream_is_well():
    engine = engine_ranks.build("ddp-0-fp16", Ranks())
    step = engine_ranks.make_step(0, Ranks())
    report = train_step(engine, step, OBJECTIVE)
    norms = {"rgb": torch.tensor(torch.inf), "flow": torch.tensor(1.0)}
    FiniteWatch(engine).add(step, report, norms)  # an overflow
    engine.scales["rgb"].value.fill_(0.5)
    with pytest.raises(InputError, match="Step 1: a gradient is not finite, so every rank stopped"):
        FiniteWatch(engine).add(step, report, norms)


def test_no_metric_of_a_bad_step_is_logged_though_the_watch_lags():
    engine, logged = engine_ranks.build("ddp-0-fp32", Ranks()), []
    steps, watch = engine_ranks.DamagedSteps(Ranks()), FiniteWatch(engine, lag=True)
    with pytest.raises(InputError, match="Step 5: "):
        train(Run(engine_ranks.CONFIG, engine, steps, watch, Progress(CARD, step=3), say=logged.append))
    assert [line.split()[1] for line in logged] == ["4/9"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_asks_nothing_of_the_device(precision):
    """Fake tensors have shapes and no values, so whatever the host would have to wait for raises."""
    engine = engine_ranks.build(f"ddp-0-{precision}", Ranks())
    with FakeTensorMode(allow_non_fake_inputs=True):
        report = train_step(engine, engine_ranks.make_step(0, Ranks()), OBJECTIVE)
        norms = engine.update(1e-2)
        with pytest.raises(DataDependentOutputException):
            norms["rgb"].item()
    assert report["flow/total"].shape == ()


def test_a_watch_that_lags_stops_a_step_later_and_never_after_settling():
    engine = engine_ranks.build("ddp-0-fp32", Ranks())
    good, bad, next_ = list(engine_ranks.DamagedSteps(Ranks()).steps(3, 6))
    for settles in (False, True):
        watch = FiniteWatch(engine, lag=True)
        before = {}
        for step in (good, bad):
            before = {name: weight.clone() for name, weight in engine.weights().items()}
            watch.add(step, train_step(engine, step, OBJECTIVE), engine.update(1e-2))
        assert all(torch.equal(weight, before[name]) for name, weight in engine.weights().items())
        with pytest.raises(InputError, match=r"Step 5: .* not finite for 1 of its 7 videos \(31\)"):
            watch.settle() if settles else watch.add(next_, train_step(engine, next_, OBJECTIVE), engine.update(1e-2))


def test_a_loss_scale_doubles_after_two_thousand_good_steps_and_is_saved():
    scale = LossScale("fp16", CPU)
    scale.adjust(torch.tensor(False))
    assert scale.value == 2.0**15
    for _ in range(1999):
        scale.adjust(torch.tensor(True))
    resumed = LossScale("fp16", CPU)
    resumed.restore(scale.facts())
    resumed.adjust(torch.tensor(True))
    assert resumed.value == 2.0**16
    fixed = LossScale("fp32", CPU)
    fixed.restore(scale.facts())
    fixed.adjust(torch.tensor(False))
    assert fixed.value == 1


@pytest.mark.slow
def test_a_run_changes_from_ddp_to_zero_3_and_ends_in_the_same_model(tmp_path):
    tiny = Tiny(tmp_path)
    settings = ["optimizer.schedule=constant", "optimizer.warmup_steps=3", "loss.pseudo_labels=0", "evaluation.every=6"]
    succeed(tiny.train("ddp", *settings, "run.steps=6", ranks=2))
    succeed(tiny.train("changed", *settings, "run.steps=3"))
    zero_3 = ["run.engine=deepspeed", "engine.zero_stage=3"]
    log = succeed(tiny.train("changed", *settings, "run.steps=6", "--resume", *zero_3, ranks=2)).stderr
    assert "steps 3 to 6" in log
    assert "step 6: mAP" in log
    ddp, changed = (read_model(tmp_path / run / "model")[0] for run in ("ddp", "changed"))
    assert_close(changed, ddp, rtol=1e-3, atol=1e-4)
