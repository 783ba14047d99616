"""`aumn tune` on tiny synthetic sets: the plan, what a kill costs, what comes of it, and what is never looked at."""

import csv
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from aumn.config.run_config import load_config
from aumn.data.shards.shard_set import ShardSet
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import Clock, InputError, Video, VideoScores
from aumn.runtime.ranks import Ranks
from aumn.tracking import job_run
from aumn.tracking.job_run import job_tags
from aumn.training import validation
from aumn.training.finite import NotFiniteError
from aumn.training.run import run_training
from aumn.tuning import criterion, tuning
from aumn.tuning.candidates import candidates
from aumn.tuning.criterion import classification_map, evidence_map, judge
from aumn.tuning.plan import affordable, entrants, full_runs, rungs, to_try
from aumn.tuning.points import read_record, read_scores
from aumn.tuning.statistics import Statistics
from aumn.tuning.tuning import RECOMMENDED, Asked, tune
from tests.launching import aumn, succeed
from tests.running import start

QUIET = [
    *("model.streams=apart", "model.embedding_width=16", "model.kernel=3", "model.embedding_layers=1"),
    *("run.steps=96", "run.checkpoint_every=4", "run.engine=single", "tracking.enabled=false"),
    *("localize.scale=probability", "localize.smoothing=1", "localize.contrast=0.0", "localize.nms_tiou=0.3"),
    *("localize.fusion=nms", "localize.thresholds=[]", "localize.class_threshold=0.02", "evaluation.videos=testing"),
]
"""A small network, and few rules to try; few of the candidates leave these alone, which is all one."""
STATISTICS = Statistics(
    videos=9, classes=2, widths={"rgb": 4}, snippets=(1, 2, 3), snippet_s=1.0, labels=1.5, share_several=0.5,
    share_none=0.25, videos_a_class=(3, 4),
)  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """`timed` and `untimed`: the same features, of which the second has no times in training."""
    root = tmp_path_factory.mktemp("sets")
    succeed(aumn("synth", "f", "--videos", 40, "--classes", 3, "--width", 12, "--snippets", 40, cwd=root))
    succeed(aumn("pack", "f", "timed", "--annotations", "f/gt.json", cwd=root))
    rows = [("video", "label", "start", "end", "subset", "duration", "fps")]
    for video, entry in json.loads((root / "f/gt.json").read_text())["database"].items():
        for instance in entry["annotations"]:
            times = instance["segment"] if entry["subset"] == "testing" else ["", ""]
            rows.append((video, instance["label"], *times, entry["subset"], entry["duration"], entry["fps"]))
    with (root / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    succeed(aumn("pack", "f", "untimed", "--annotations", "videos.csv", cwd=root))
    return root


class Tuned:
    """A tuning in a folder of its own."""

    def __init__(self, shards: Path, folder: Path, monkeypatch) -> None:
        self.shards, self.folder, self.said = shards, folder, []
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)

    def run(self, *overrides: str, only: str | None = None, **asked) -> str | None:
        words = {"budget": 3, **asked}
        command = Asked(shards=str(self.shards), overrides=[*QUIET, *overrides], **words)
        watch = lambda _name: nullcontext(lambda _done, _steps: None)  # noqa: E731
        return tune(command, Path("tuned"), Ranks(), say=self.said.append, watch=watch, only=only)

    @property
    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / "tuned" / name).read_bytes() for name in ("config.yaml", "table.md")}

    @property
    def runs(self) -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in (self.folder / "tuned/runs").glob("*/tuned.json")}


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        found = Tuned(sets / "timed", tmp_path_factory.mktemp("undisturbed"), patch)
        found.told = found.run()
        yield found


@pytest.mark.parametrize(
    ("candidates", "expected", "cost"),
    [
        (1, [(1, 1)], 1),
        (2, [(2, 1)], 2),
        (3, [(3, 0.1), (2, 1)], 2.3),
        (6, [(6, 0.1), (2, 1)], 2.6),
        (12, [(12, 0.1), (4, 0.2), (2, 1)], 4),
        (27, [(27, 0.1), (9, 0.2), (3, 1)], 7.5),
    ],
)
def test_rungs_halve_what_is_tried(candidates, expected, cost):
    assert rungs(candidates) == expected
    assert full_runs(candidates) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ({0: 0.1, 1: 0.3, 2: 0.5, 3: 0.4}, [2, 0, 3, 1]),  # the first is in every rung
        ({0: 0.5, 1: 0.3, 2: 0.5}, [0, 2, 1]),
        ({2: 0.5, 0: 0.5}, [0, 2]),  # and what is no better than it is not chosen
        ({0: 0.2}, [0]),
    ],
)
def test_the_configuration_to_start_from_is_in_every_rung(values, order):
    assert entrants(values) == order


@pytest.mark.parametrize(
    ("minutes", "count"),
    [(0.5, 1), (4 + 18 / 6 + 0.001, 12), (4 + 18 / 6 - 0.01, 11), (1000, 12)],  # a full run takes one, and its end 10 s
)
def test_minutes_become_as_many_candidates_as_fit(minutes, count):
    assert affordable(minutes, 60, 10, 12) == count


def test_every_candidate_can_be_trained_and_differs_and_what_the_user_has_set_stays():
    base = load_config(RECOMMENDED, ["data.holdout_share=0.25"])
    offered, settings = candidates(STATISTICS), base.model_dump(mode="json")
    kept, left_out = to_try(offered, settings, set())
    assert (kept, left_out) == (offered, [])
    assert len({candidate.name for candidate in kept}) == len(kept) >= 12
    assert not kept[0].changes
    kept, left_out = to_try(offered, settings, {"model.kernel"})
    assert all("model.kernel" not in candidate.changes for candidate in kept)
    assert left_out
    assert all(line.endswith(", since you set model.kernel") for line in left_out)


def test_what_comes_of_it_says_its_reasons_loads_and_trains(undisturbed, sets):
    lines = undisturbed.told.splitlines()
    assert lines[0].startswith("mAP (%, mean over tIoU 0.1:0.7:0.1) on 5 held-out training videos (with fewer than")
    assert lines[-1].endswith("Next: aumn train tuned/config.yaml")
    records = {path.name: read_record(path) for path in (undisturbed.folder / "tuned/runs").iterdir()}
    full = {name for name in records if name.endswith("_96")}
    best = max(records.keys() - full, key=lambda name: records[name].map)
    assert len(full) == 2
    assert full >= {"recommended_96", best.replace("_10", "_96")}, "the best goes on, and what it starts from"
    last = max(full, key=lambda name: records[name].map)
    row = next(line for line in lines if line.startswith(f"| {last.removesuffix('_96')} |"))
    assert f"| {100 * records[last.replace('_96', '_10')].map:.1f} | {100 * records[last].map:.1f} |" in row
    text = undisturbed.files["config.yaml"].decode()
    assert row in text
    assert "held out: synth_000003, synth_000008, synth_000009" in text
    assert "27 training videos of 16 to 94 snippets" in text
    config = load_config(undisturbed.folder / "tuned/config.yaml", ["run.steps=2"])
    assert config.data.holdout_share == 0
    assert config.evaluation.videos == "testing", "what the user has set stays"
    assert config.localize == records[last].rules
    assert config.model.embedding_width == 16
    run_training(config, Ranks(), resume=False, say=lambda _: None, advance=lambda *_: None)
    assert (undisturbed.folder / "tuned/run/model/model.json").exists()


def test_the_same_command_trains_nothing_again(undisturbed, monkeypatch):
    monkeypatch.chdir(undisturbed.folder)
    runs, files = undisturbed.runs, undisturbed.files
    config = undisturbed.folder / "tuned/config.yaml"
    config.write_bytes(files["config.yaml"] + b"# mine\n")
    assert undisturbed.run() == undisturbed.told
    assert config.read_bytes().endswith(b"# mine\n"), "who has edited it keeps that"
    config.write_bytes(files["config.yaml"])
    assert (undisturbed.runs, undisturbed.files) == (runs, files)
    assert len(runs) == 5


def test_killed_in_the_midst_of_a_run_it_goes_on_from_the_checkpoint_and_ends_the_same(
    undisturbed, sets, tmp_path, monkeypatch
):
    found = Tuned(sets / "timed", tmp_path / "killed", monkeypatch)
    words = ("-m", "aumn", "tune", found.shards, *QUIET, "--budget", "3")
    with start(*words, cwd=found.folder) as running:
        half = found.folder / "tuned/runs/recommended_10/checkpoints"
        running.wait_until(lambda: list(half.glob("step_*")), what="a checkpoint")
        running.kill_all()
    assert not found.runs
    assert found.run() == undisturbed.told
    assert any(" steps 0 to 10 " not in line and " to 10 of" in line for line in found.said), found.said
    assert found.files == undisturbed.files


def test_run_by_run_in_any_order_as_an_array_does_it_comes_to_the_same(undisturbed, sets, tmp_path, monkeypatch):
    found = Tuned(sets / "timed", tmp_path / "array", monkeypatch)
    assert found.run(only="plan") is None
    with pytest.raises(InputError, match="tuned/runs/recommended_10 is not done: let all runs of this rung end first"):
        found.run(only="1.0")
    for only in ("0.2", "0.0", "0.1", "0.11", "1.1", "1.0", "2.0"):
        before = len(found.runs)
        assert found.run(only=only) is None
        assert len(found.runs) == before + (only not in {"0.11", "2.0"})
    assert "tuned: its plan has no run 0.11, so there is nothing to do." in found.said
    assert found.said[-1] == "tuned: its plan has no run 2.0, so there is nothing to do."
    runs = found.runs
    assert found.run() == undisturbed.told
    assert (found.runs, found.files) == (runs, undisturbed.files)


def test_where_nothing_is_timed_weak_labels_decide_and_no_other_subsets_truth_is_opened(sets, tmp_path, monkeypatch):
    asked = []

    def read(path, subset, *arguments, read=validation.read_ground_truth, **options):
        asked.append(subset)
        return read(path, subset, *arguments, **options)

    monkeypatch.setattr(validation, "read_ground_truth", read)
    found = Tuned(sets / "untimed", tmp_path / "weak", monkeypatch)
    told = found.run("run.steps=16", "data.holdout_groups='[0-9]$'")
    assert set(asked) == {"training"}
    assert told.startswith(f"{criterion.NAME} (%) on ")
    assert "none of them is timed" in "".join(found.said)
    plan = json.loads((found.folder / "tuned/plan.json").read_text())
    assert len({name[-1] for name in plan["held_out"]}) == 2, "a quarter of the last digits"
    folders = [found.folder / "tuned/runs" / f"{candidate['name']}_2" for candidate in plan["candidates"]]
    shards = ShardSet.open(found.shards)
    values = judge([(read_scores(folder, shards), read_record(folder).rules) for folder in folders])
    best = folders[int(np.argmax(values))].name
    assert (found.folder / "tuned/runs" / best.replace("_2", "_16")).exists()
    assert f"{100 * max(values):.1f}" in told


def test_who_finds_none_of_a_videos_classes_is_agreed_with_by_nobody():
    video = Video("v", "training", 4, (0,), 4.0, 1.0)
    curve_T = np.array([0.1, 0.9, 0.8, 0.1])
    right, wrong = (VideoScores(np.array(y), np.ones(4), np.stack([curve_T] * 2, 1)) for y in ([0.9, 0.1], [0.1, 0.9]))
    rules = LocalizeSettings(class_threshold=0.5, proposals="class_activation")
    networks = [RememberedScores((video,), ({"rgb": one},), ("a", "b"), Clock(1, 1)) for one in (right, right, wrong)]
    agreed, same, alone = judge([(one, rules) for one in networks])
    assert agreed == same > alone == evidence_map(networks[2], rules) / 2


def test_a_candidate_that_cannot_be_trained_is_the_last_and_stops_no_other(sets, tmp_path, monkeypatch):
    def fails(config, *arguments, train=run_training, **options):
        if not config.run.folder.name.startswith("recommended"):
            raise NotFiniteError("Step 1: a gradient is not finite.")
        train(config, *arguments, **options)

    monkeypatch.setattr(tuning, "run_training", fails)
    found = Tuned(sets / "timed", tmp_path / "fails", monkeypatch)
    told = found.run("run.steps=8", "localize.thresholds=[0.5]", budget=2)
    assert " | not finite | " in told
    assert "tuned/config.yaml is recommended." in told
    rules = load_config(found.folder / "tuned/config.yaml").localize
    assert (rules.thresholds, rules.class_threshold) == ((0.5,), 0.02), "what the user has set stays"


def test_with_minutes_the_first_run_tells_how_many_there_is_time_for(sets, tmp_path, monkeypatch):
    found = Tuned(sets / "timed", tmp_path / "minutes", monkeypatch)
    assert "| recommended |  |" in found.run("run.steps=16", budget=None, minutes=1e-6)
    assert set(found.runs) == {"recommended_2", "recommended_16"}
    assert re.search(r"time for 1 of [4-9] candidates", "".join(found.said))


def test_minutes_need_a_first_run_that_tells_how_long_one_takes(sets, tmp_path, monkeypatch):
    def fails(*_arguments, **_options):
        raise NotFiniteError("Step 1: a gradient is not finite.")

    monkeypatch.setattr(tuning, "run_training", fails)
    with pytest.raises(InputError, match=r"--minutes: .* Step 1: a gradient is not finite.: give --budget instead"):
        Tuned(sets / "timed", tmp_path / "untold", monkeypatch).run(budget=None, minutes=3)


def test_all_runs_are_nested_in_one(sets, tmp_path, monkeypatch):
    """As a job's steps are, by which they find it; the store itself is asked in tests/jobs/test_slurm.py."""
    begun, ended, nested = [], [], {}

    def train(config, *arguments, train=run_training, **options):
        nested[config.run.folder.name] = job_tags(os.environ)
        quiet = config.tracking.model_copy(update={"enabled": False})
        train(config.model_copy(update={"tracking": quiet}), *arguments, **options)

    monkeypatch.setattr(tuning, "run_training", train)
    monkeypatch.setattr(job_run, "begin_job", lambda *facts: begun.append(facts) or "parent")
    monkeypatch.setattr(job_run, "tag_job", lambda *facts: ended.append(facts))
    found = Tuned(sets / "timed", tmp_path / "tracked", monkeypatch)
    for _ in range(2):
        found.run("run.steps=8", "tracking.enabled=true", "tracking.uri=sqlite:///x", budget=3)
    assert [facts[:3] for facts in begun] == [("sqlite:///x", "aumn", "tuned")]
    assert ended == 2 * [("sqlite:///x", "parent", {}, "FINISHED")]
    assert {tags["mlflow.parentRunId"] for tags in nested.values()} == {"parent"}
    assert [(tags["step"], tags["point"]) for tags in nested.values()] == [
        ("rung_0", "0"), ("rung_0", "1"), ("rung_0", "2"), ("rung_1", "0"), ("rung_1", "1"),
    ]  # fmt: skip
    assert not job_tags(os.environ)


@pytest.mark.parametrize(
    ("overrides", "words", "sentence"),
    [
        (["data.holdout_share=0.0"], {}, r"data.holdout_share=0 holds no training video out, and candidates are"),
        (["data.subset=trening"], {}, r"has no subset 'trening'; it has "),
        (["loss.sparsity={audio: 1}"], {}, r"loss.sparsity names audio, and the networks are rgb, flow"),
        (["data.shards=x"], {}, r"data.shards: leave it out; SHARDS is the shard set, and --out the folder"),
        (["run.folder=x"], {}, r"run.folder: leave it out"),
        (["steps=3"], {}, r"override 'steps=3' must read section.field=value"),
        (["model.unit=3"], {}, r"model.unit is not a setting: did you mean units\?"),
        (["data.holdout_groups=synth"], {}, "change the share, data.holdout_seed or data.holdout_groups"),
        ([], {"only": "1"}, r"--only=1 must be `plan`, or RUNG.PLACE, such as 0.3"),
        ([], {"config": "no.yaml"}, r"no.yaml does not exist: give a run configuration"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_planned(overrides, words, sentence, sets, tmp_path, monkeypatch):
    found = Tuned(sets / "timed", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=sentence):
        found.run(*overrides, **words)
    assert not list(tmp_path.glob("tuned/*.*"))


def test_held_out_videos_without_any_label_compare_nothing(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(ShardSet, "unlabelled", lambda _self, indices: [*indices])
    with pytest.raises(
        InputError, match=r"^None of the 5 held-out videos has a label, so that nothing can be compared"
    ):
        Tuned(sets / "timed", tmp_path, monkeypatch).run()


def test_another_tuning_does_not_take_over_the_folder(undisturbed, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(undisturbed.folder)
    with pytest.raises(InputError, match=r"tuned holds a tuning with budget 3: give the same command, which goes on"):
        undisturbed.run(budget=4)
    file = tmp_path / "mine.yaml"
    own = Tuned(sets / "timed", tmp_path / "file", monkeypatch)
    for units in (3, 4):
        file.write_text(RECOMMENDED.read_text().replace("model:", f"model:\n  units: {units}"))
        if units == 3:
            assert own.run(only="plan", config=str(file)) is None
    assert json.loads(Path("tuned/plan.json").read_text())["candidates"][0] == {
        "name": "given", "changes": {}, "reason": f"{file} as it is",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"^tuned holds a tuning with model.units 3: give the same command"):
        own.run(only="plan", config=str(file))
    monkeypatch.chdir(undisturbed.folder)
    other = Tuned(sets / "untimed", undisturbed.folder, monkeypatch)
    with pytest.raises(InputError, match=r"holds a tuning with shards .*/timed: give"):
        other.run()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/config.yaml").touch()
    with pytest.raises(InputError, match=r"tuned holds a config.yaml and no plan: name another --out"):
        Tuned(sets / "timed", tmp_path, monkeypatch).run()


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "3", "--budget", "2"]])
def test_minutes_stand_alone(words, tmp_path):
    refused = aumn("tune", "shards", *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "must be above 0 and stand alone: leave out --budget, or --minutes." in refused.stderr


def test_the_video_scores_find_the_videos_of_each_class_that_occurs():
    score_VC = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.5], [0.1, 0.9, 0.5]]
    labels = [(0,), (1,), (0,)]  # class 0 at ranks 1 and 3, class 1 at 2; class 2 in none
    videos = tuple(Video(f"v{n}", "training", 2, of, 2.0, 1.0) for n, of in enumerate(labels))
    scores = tuple({"rgb": VideoScores(np.array(row), np.ones(2), np.ones((2, 3)))} for row in score_VC)
    remembered = RememberedScores(videos, scores, ("a", "b", "c"), Clock(1, 1))
    assert classification_map(remembered) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
