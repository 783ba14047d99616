"""`aumn report` as a user meets it: a run, its detections, many units, MLflow, and what is wrong in one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from aumn.cli import app
from aumn.cli.evaluation import report
from aumn.data.loader import split_holdout, whole_videos
from aumn.data.settings import DataSettings
from aumn.data.shards.shard_set import ShardSet
from aumn.inference.localize import load_network
from aumn.inference.snippet_scores import KEPT_UNITS, STEPS, read_scores
from aumn.records import InputError
from aumn.report.reporting import Choices, report_of
from aumn.runfolder.folder import RunFolder
from tests.launching import aumn, succeed
from tests.report.cases import contents_of

UNITS = 66  # more than are kept, so that they have to be chosen
SETTINGS = {
    "data": {"snippets": 24},
    "model": {"embedding_width": 16, "units": UNITS, "bottleneck": 4},
    "batch": {"global_videos": 8},
    "run": {"steps": 4, "log_every": 2},
    "evaluation": {"videos": "testing"},
    "tracking": {"uri": "sqlite:///mlflow.db"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a short run in it."""
    root = tmp_path_factory.mktemp("report")
    succeed(aumn("synth", "features", "--videos", 24, "--classes", 3, "--width", 12, "--snippets", 30, cwd=root))
    succeed(aumn("pack", "features", "shards", "--annotations", "features/gt.json", cwd=root))
    settings = {section: dict(fields) for section, fields in SETTINGS.items()}
    settings["data"]["shards"], settings["run"]["folder"] = "shards", "run"
    (root / "tiny.yaml").write_text(yaml.safe_dump(settings))
    succeed(aumn("train", "tiny.yaml", cwd=root, timeout_s=240))
    return root


@pytest.fixture(scope="module")
def reported(place: Path) -> Path:
    said = succeed(aumn("report", "run", "--annotations", "features/gt.json", "--out", "run.html", cwd=place)).stdout
    assert "run.html: mAP " in said
    assert "on 8 videos, " in said
    assert "kept with the run in MLflow as report/run.html (run " in said
    return place / "run.html"


@pytest.fixture(scope="module")
def localized(place: Path) -> Path:
    """Detections with scores, from two ranks."""
    command = ("localize", "run/model", "shards", "--subset", "testing", "--out", "detections", "--scores")
    succeed(aumn(*command, cwd=place, ranks=2))
    return place / "detections"


def test_a_run_is_reported_as_evaluate_measures_it(place, reported, localized):
    command = ("evaluate", localized, "--annotations", "features/gt.json", "--protocol", "thumos14", "--json", "m.json")
    succeed(aumn(*command, cwd=place))
    expected = json.loads((place / "m.json").read_text())
    overview = contents_of(reported)["overview"]
    assert overview["map"] == list(expected["mAP"].values())
    assert overview["population"] == expected["population"]


def test_held_out_videos_are_shown_as_they_were_measured(place, tmp_path):
    run = shutil.copytree(place / "run", tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"holdout_share": 0.5, "shards": str(place / "shards")}
    settings = DataSettings.model_validate(config["data"])
    choices = Choices(place / "features/gt.json", subset="held_out")
    shown = {"attach": False, "say": lambda _: None, "advance": lambda *_: None}
    with pytest.raises(InputError, match=r"run was trained on all videos of training, and held none out: name others"):
        report_of(run, tmp_path / "held_out.html", replace(choices, shards=place / "shards"), **shown)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    report_of(run, tmp_path / "held_out.html", choices, **shown)
    shards = ShardSet.open(place / "shards")
    training = shards.indices("training")
    names = shards.ids(split_holdout(training, shards.ids(training), settings)[1])
    contents = contents_of(tmp_path / "held_out.html")
    assert contents["overview"]["population"]["videos"] == len(names) < len(training)
    assert contents["videos"]["ids"] == sorted(names)
    assert contents["facts"]["Subset"] == "held_out"
    with pytest.raises(InputError, match=r"--subset held_out is of a run: give its folder"):
        report_of(tmp_path / "found", tmp_path / "held_out.html", choices, **shown)


def test_training_curves_are_those_of_the_runs_record(reported):
    training = contents_of(reported)["training"]
    assert training["note"] is None
    assert training["curves"]["loss"][0] == [2, 4]
    assert training["curves"]["testing/mAP/average"][0] == [4]


def test_a_store_that_does_not_answer_costs_the_keeping_alone(place, localized, tmp_path):
    said = []
    choices = Choices(place / "features" / "gt.json", detections=localized, tracking_uri="http://127.0.0.1:9")
    options = {"attach": True, "say": said.append, "advance": lambda _done, _total: None}
    report_of(place / "run", tmp_path / "page.html", choices, **options)
    assert "page.html is written, but is not kept with the run in MLflow. The tracking store" in said[-1]


def test_mlflow_has_the_page(place, reported):
    (kept,) = place.glob("mlartifacts/*/artifacts/report/run.html")
    assert kept.read_bytes() == reported.read_bytes()


def test_scores_of_two_ranks_are_the_models_own_on_the_units_most_similar(place, localized):
    network, _ = load_network(place / "run" / "model")
    shards = ShardSet.open(place / "shards")
    similarity, means = {}, {"rgb": [], "flow": []}
    for batch in whole_videos(shards, shards.indices("testing"), rank=0, world_size=1):
        found = network.similarity(batch, {"rgb": range(UNITS), "flow": range(UNITS)})
        for stream, similarity_TK in found.items():
            similarity[batch.videos[0].id, stream] = similarity_TK
            means[stream].append(similarity_TK.mean(0))
    model, rows = read_scores(localized / "scores")
    assert model.units == UNITS
    seen = set()
    for row in rows:
        mean_K = np.mean(means[row.stream], axis=0)
        assert row.units == sorted(np.argsort(-mean_K, kind="stable")[:KEPT_UNITS].tolist())
        whole_TK = similarity[row.video, row.stream]
        assert np.abs(row.similarity_kT.T / STEPS - whole_TK[:, row.units]).max() <= 0.5 / STEPS + 1e-6
        # Eq. 7: the attention is the highest similarity, over all units
        assert np.abs(row.attention_T / STEPS - whole_TK.max(1)).max() <= 0.5 / STEPS + 1e-6
        seen.add((row.video, row.stream))
    assert seen == set(similarity)


def test_detections_that_are_there_are_taken_and_say_where_they_come_from(place, localized):
    command = ("report", localized, "--annotations", "features/gt.json", "--out", "d.html", "--protocol", "activitynet")
    said = succeed(aumn(*command, cwd=place)).stdout
    assert "kept with" not in said
    contents = contents_of(place / "d.html")
    assert contents["facts"]["Model"] == "run/model"
    assert contents["overview"]["tious"][0] == 0.5
    assert contents["training"] is None
    assert {row["stream"] for row in contents["units"]} == {"rgb", "flow"}


GIVEN = {"annotations": Path("features/gt.json"), "protocol": "thumos14"}


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        (["run"], {}, r"--annotations is missing: give the ground truth"),
        (["run", "run"], GIVEN, r"leave --annotations, --detections and --videos out"),
        (["run", "shards"], {}, r"shards is no run: several folders are compared as runs"),
        (["nothing"], GIVEN, r"nothing does not exist: give a folder of Parquet parts"),
        (["run"], GIVEN | {"annotations": Path("gone.json")}, r"There is no ground truth at gone.json"),
        (["run"], GIVEN | {"subset": "tset"}, r"gt.json has no subset 'tset'; it has training"),
        (["run"], GIVEN | {"tiou": "0.5"}, r"Give either --protocol thumos14 or activitynet, or --tiou"),
        (["run"], GIVEN | {"out": Path("features")}, r"features is a folder: name the file to write"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(place, monkeypatch, what, options, message):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=message):
        report([Path(name) for name in what], **{"out": Path("wrong.html")} | options)
    assert not Path("wrong.html").exists()


def test_of_a_run_on_several_sets_it_is_asked_which_to_look_at(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    folder = RunFolder(tmp_path / "run")
    sections = folder.config()
    folder.write_config(
        sections | {"data": sections["data"] | {"shards": ["one", "s3://far/two"], "subset": ["x", "y"]}}
    )
    with pytest.raises(
        InputError, match=r"run was trained on several shard sets, one, s3://far/two: .* with --shards\."
    ):
        report([tmp_path / "run"], **GIVEN | {"annotations": place / "features/gt.json"}, out=tmp_path / "page.html")


@pytest.mark.shared
def test_w_talcs_folder_is_measured_on(shared_data: Path, tmp_path: Path):
    """Its 1,362 test videos without times are left out, and said to be."""
    field, page, file = shared_data / "field/wtalc_folder_as_truth", tmp_path / "page.html", tmp_path / "numbers.json"
    common = [field / "stpn_results.json", "--annotations", field / "Thumos14-Annotations", "--subset", "test"]
    for command in (["evaluate", *common, "--json", file], ["report", *common, "--out", page]):
        arguments = [*map(str, command), "--protocol", "thumos14"]
        assert "or give --allow-pickle" in str(CliRunner().invoke(app, arguments).exception)
        assert CliRunner().invoke(app, [*arguments, "--allow-pickle"]).exit_code == 0
    numbers, overview = json.loads(file.read_text()), contents_of(page)["overview"]
    assert numbers["population"] == overview["population"] == {"videos": 212, "instances": 3358, "classes": 20}
    assert numbers["average"] == overview["average"] == pytest.approx(0.267, abs=5e-4)
    assert numbers["notes"] == overview["notes"]
    assert "Not measured on, for nobody annotated when: 1,362 videos." in overview["notes"]


def test_instances_that_end_before_they_start_are_counted_in_every_table(tmp_path: Path):
    true = [{"label": "Run", "segment": segment} for segment in ([1.0, 2.0], [5.0, 4.0])]
    gt, found = tmp_path / "gt.json", tmp_path / "found.json"
    gt.write_text(json.dumps({"v": {"subset": "test", "annotations": true}}))
    found.write_text(
        json.dumps({"v": [{"label": "Run", "score": 1, "segment": segment} for segment in ([1, 2], [4, 5])]})
    )
    common = [str(found), "--annotations", str(gt), "--tiou", "0.5"]
    assert "give --on-bad skip" in str(CliRunner().invoke(app, ["evaluate", *common]).exception)
    for on_bad, note in (
        ("skip", "Left out, for they end"),
        ("swap", "Taken with start and end exchanged, for they end"),
    ):
        printed = CliRunner().invoke(app, ["evaluate", *common, "--on-bad", on_bad]).stdout
        assert f"{note} before they start: 1 instance." in printed
        CliRunner().invoke(app, ["report", *common, "--on-bad", on_bad, "--out", str(tmp_path / "page.html")])
        assert f"{note} before they start: 1 instance." in contents_of(tmp_path / "page.html")["overview"]["notes"]
