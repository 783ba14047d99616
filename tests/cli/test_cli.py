"""The command line as a user meets it: one pipeline on two ranks, and one clear sentence for whatever is wrong."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from tests.launching import aumn, python, succeed, torchrun

SETTINGS = {
    "data": {"snippets": 24},
    "model": {"embedding_width": 16, "units": 3, "bottleneck": 4},
    "loss": {"pseudo_labels": 0.3, "pseudo_labels_from": 0},
    "optimizer": {"learning_rate": 0.003},
    "batch": {"global_videos": 8},
    "run": {"steps": 6, "log_every": 2, "checkpoint_every": 3},
    "evaluation": {"videos": "testing", "every": 3},
    "tracking": {"uri": "sqlite:///mlflow.db", "model_name": "tiny", "alias": "challenger"},
}


class Workplace:
    """A folder in which the whole pipeline has run once, on two ranks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.features, self.gt, self.shards = root / "features", root / "features" / "gt.json", root / "shards"
        self.config, self.run_folder, self.detections = root / "tiny.yaml", root / "run", root / "detections"
        settings = {section: dict(fields) for section, fields in SETTINGS.items()}
        settings["data"]["shards"], settings["run"]["folder"] = str(self.shards), str(self.run_folder)
        self.config.write_text(yaml.safe_dump(settings))

    def aumn(self, *arguments, **options):
        return aumn(*arguments, cwd=self.root, **options)

    def torchrun(self, *arguments):
        return torchrun(2, "-m", "aumn", *arguments, cwd=self.root)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("pipeline"))
    succeed(place.aumn("synth", place.features, "--videos", 30, "--classes", 3, "--width", 12, "--snippets", 40))
    succeed(place.aumn("pack", place.features, place.shards, "--annotations", place.gt))
    place.trained = succeed(place.torchrun("train", place.config))
    localize = ("localize", "models:/tiny@challenger", place.shards, "--subset", "testing", "--out", place.detections)
    uri = ("--tracking-uri", "sqlite:///mlflow.db", "--json", place.root / "results.json")
    succeed(place.torchrun(*localize, *uri))
    return place


def test_the_pipeline_ends_in_a_table_with_its_population_and_the_same_numbers_at_any_ranks(place, tmp_path):
    command = ("evaluate", place.detections, "--annotations", place.gt, "--protocol", "thumos14", "--json")
    alone = succeed(place.aumn(*command, tmp_path / "1.json", "--per-class"))
    succeed(place.aumn(*command, tmp_path / "2.json", ranks=2))
    exported = (place.root / "results.json", "--subset", "testing", *command[2:])
    succeed(place.aumn("evaluate", *exported, tmp_path / "3.json"))
    files = [tmp_path / f"{name}.json" for name in (1, 2, 3)]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    result = json.loads((tmp_path / "1.json").read_text())
    assert list(result["mAP"]) == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
    population = result["population"]
    assert population["videos"] == 10
    assert f"10 videos, {population['instances']} instances, 3 classes" in alone.stdout
    assert f"{100 * result['average']:.1f}" in alone.stdout
    assert all(label in alone.stdout for label in result["per_class"])


def test_training_says_and_records_what_it_did(place):
    log = place.trained.stderr
    assert "20 training videos, 0 held out; steps 0 to 6 of 8 videos on 2 ranks." in log
    assert "step 6/6  loss " in log
    assert "step 3: mAP " in log
    assert "on 10 videos: testing" in log
    assert "registered: models:/tiny/1, which is now models:/tiny@challenger" in log
    assert (place.run_folder / "checkpoints" / "step_00000006" / "model.safetensors").is_file()
    uri = ("--tracking-uri", "sqlite:///mlflow.db")
    assert "tiny" in succeed(place.aumn("models", "list", *uri)).stdout
    assert "models:/tiny/1 @challenger" in succeed(place.aumn("models", "show", "tiny", *uri)).stdout


def test_the_tracked_run_holds_each_term_the_rates_and_the_map(place):
    client = MlflowClient(f"sqlite:///{place.root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("aumn").experiment_id])
    terms = ("classification", "diversity", "homogeneity", "sparsity", "pseudo_labels", "total")
    terms += ("attention_mean", "units_alive")
    wanted = {f"{stream}/{term}" for stream in ("rgb", "flow") for term in terms}
    wanted |= {"loss", "learning_rate", "videos_per_s", "testing/mAP/average"}
    wanted |= {"data_wait_share", "communication_wait_share"}
    assert run.info.status == "FINISHED"
    assert wanted <= run.data.metrics.keys()
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [2, 4, 6]


def test_detections_do_not_depend_on_the_ranks_or_on_how_the_model_was_named(place, tmp_path):
    def rows(folder):
        columns = pq.read_table(folder).to_pydict()
        return sorted(zip(*columns.values(), strict=True))

    out = tmp_path / "alone"
    succeed(place.aumn("localize", place.run_folder / "model", place.shards, "--subset", "testing", "--out", out))
    assert len(list(place.detections.glob("*.parquet"))) == 2
    assert rows(out) == rows(place.detections)


def test_detections_appear_behind_their_json_so_that_a_stopped_localization_is_simply_run_again(place, tmp_path):
    out, refusing = tmp_path / "out", tmp_path / "results.json"
    localize = ("localize", place.run_folder / "model", place.shards, "--subset", "testing", "--out", out, "--json")
    refusing.mkdir()
    refused = place.torchrun(*localize, refusing)
    assert re.search(rf"aumn: {refusing} cannot be written: .*Is a directory.*Free space, mend its", refused.stderr)
    assert "[rank1]: Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    refusing.rmdir()
    succeed(place.aumn(*localize, refusing, ranks=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "results.json"]
    assert refusing.read_bytes() == (place.root / "results.json").read_bytes()


def test_two_runs_of_one_seed_are_bit_identical_and_a_resumed_run_too(place, tmp_path):
    """Resume from step 3 of 6, and the same run again from the start: the final weights are those of the first."""

    def weights(folder):
        return (folder / "model" / "model.safetensors").read_bytes()

    quiet = ("tracking.enabled=false", "evaluation.videos=null")
    again, resumed = tmp_path / "again", tmp_path / "resumed"
    succeed(place.aumn("train", place.config, f"run.folder={again}", *quiet, ranks=2))
    succeed(place.aumn("train", place.config, f"run.folder={resumed}", *quiet, "run.steps=3", ranks=2))
    half = weights(resumed)
    continued = succeed(place.aumn("train", place.config, f"run.folder={resumed}", *quiet, "--resume", ranks=2))
    assert "steps 3 to 6" in continued.stderr
    assert weights(place.run_folder) == weights(again) == weights(resumed) != half


def test_a_finished_run_says_so_and_registers_nothing_anew(place):
    again = succeed(place.aumn("train", place.config, "--resume", ranks=2))
    assert "run is finished: step 6 of 6, its model is in" in again.stderr
    assert "registered" not in again.stderr


def test_training_never_opens_temporal_ground_truth(place, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(place.shards, shards)
    (shards / "annotations.parquet").unlink()
    settings = (f"data.shards={shards}", f"run.folder={tmp_path / 'run'}", "tracking.enabled=false")
    succeed(place.aumn("train", place.config, *settings, "evaluation.videos=null", "run.steps=2"))


def flip_a_bit(path: Path) -> None:
    """One bit of the last array or tensor in the file."""
    data = bytearray(path.read_bytes())
    data[max(data.rfind(b"NUMPY"), 0) + 500] ^= 1
    path.write_bytes(data)


def put_nan(path: Path) -> None:
    features_TD = np.load(path)
    features_TD[3, 5] = np.nan
    np.save(path, features_TD)


def end_unclear(path: Path) -> None:
    text = json.loads(path.read_text())
    next(iter(text["database"].values()))["annotations"][0]["segment"] = [9.0, "end"]
    path.write_text(json.dumps(text))


PACK = ["pack", "features", "packed", "--annotations", "features/gt.json"]
TRAIN = ["train", "tiny.yaml", "data.shards=shards", "run.folder=new", "tracking.enabled=false"]
LOCALIZE = ["localize", "run/model", "shards", "--subset", "testing", "--out", "new"]
BAD = {
    "features/flow/synth_000000.npy": (Path.unlink, PACK, r"has rgb of video 'synth_000000'.*but no flow: extract it"),
    "features/flow/synth_000001.npy": (put_nan, PACK, r"synth_000001.npy.*NaN"),
    "features/gt.json": (end_unclear, PACK, r"at \[9.0, 'end'\]; start and end must be finite numbers"),
    "shards/training-000000.tar": (
        lambda path: os.truncate(path, path.stat().st_size - 2048), TRAIN, r"training-000000.tar",
    ),
    "run/model/model.safetensors": (flip_a_bit, LOCALIZE, r"model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("file", BAD)
def test_bad_files_are_told_in_one_sentence_and_leave_nothing_half_written(file, place, tmp_path):
    copy, (spoil, command, message) = tmp_path / "copy", BAD[file]
    shutil.copytree(place.root, copy, ignore=shutil.ignore_patterns("mlflow*", "checkpoints"))
    spoil(copy / file)
    before = sorted(path.name for path in copy.iterdir())
    assert_refused(aumn(*command, cwd=copy), message)
    after = [path.name for path in copy.iterdir() if not path.name.endswith(".partial")]
    assert sorted(set(after) - {"new"}) == before
    begun = {"config.yaml", "lock", "metrics.jsonl", "status.json"}
    assert {path.name for path in copy.glob("new/*")} <= begun


WRONG = {
    "no run to resume": (["train", "tiny.yaml", "--resume", "run.folder=x"], r"x holds no checkpoint to resume"),
    "fewer steps than a run has": (
        ["train", "tiny.yaml", "--resume", "run.steps=4"], r"at step 6, beyond run\.steps=4: set run\.steps to 6",
    ),
    "an absent device": (["train", "tiny.yaml", "run.device=cuda", "run.folder=x"], r"device=cuda needs a GPU a rank"),
    "nothing held out": (
        ["train", "tiny.yaml", "evaluation.videos=held_out", "run.folder=x"], r"data\.holdout_share=0\.0 .*holds none",
    ),
    "a network that no machine holds": (
        ["train", "tiny.yaml", "model.units=2000000000", "run.folder=x"],
        r"model\.units=2,000,000,000 .* parameters, for which a rank would hold [\d,]+ GB .*, where it has",
    ),
    "no shards": (["train", "tiny.yaml", "data.shards=nowhere", "run.folder=x"], r"nowhere"),
    "an unknown subset": (["train", "tiny.yaml", "data.subset=trening", "run.folder=x"], r"trening.*training \(20"),
    "an unknown model": (
        ["localize", "models:/tony@best", "shards", "--subset", "testing", "--out", "x"], r"tony.*tiny",
    ),
    "no ground truth": (["evaluate", "detections", "--annotations", "no.json", "--tiou", "0.5"], r"no\.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_commands_are_told_in_one_sentence(case, place):
    arguments, message = WRONG[case]
    assert_refused(place.aumn(*arguments, MLFLOW_TRACKING_URI="sqlite:///mlflow.db"), message)
    assert not (place.root / "x").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.unts=3", "model.unts is not a setting: did you mean units?"),
        (
            "batch.micro_videos=3",
            "batch.global_videos=8 does not split evenly: 2 ranks x batch.micro_videos=3 = 6 video",
        ),
        ("tracking.uri=file://x", "file://x"),  # found by the first rank alone
        ("data.shards=damaged", "does not match its checksum"),  # by the rank that reads it
    ],
)
def test_several_ranks_tell_what_is_wrong_once_and_without_a_traceback_of_ours(place, tmp_path, override, sentence):
    shutil.copytree(place.shards, tmp_path / "damaged")
    flip_a_bit(next(tmp_path.glob("damaged/training-*.tar")))
    override = override.replace("damaged", str(tmp_path / "damaged"))
    refused = place.torchrun("train", place.config, f"run.folder={tmp_path}/y", override)
    assert sentence in refused.stderr
    assert refused.stderr.count("aumn: ") == 1, refused.stderr
    assert "aumn/cli/" not in refused.stderr, refused.stderr


def test_a_model_of_other_classes_is_refused(place, tmp_path):
    features, shards = tmp_path / "features", tmp_path / "shards"
    succeed(place.aumn("synth", features, "--videos", 8, "--classes", 4, "--width", 12, "--snippets", 40))
    succeed(place.aumn("pack", features, shards, "--annotations", features / "gt.json"))
    refused = place.aumn("localize", "run/model", shards, "--subset", "testing", "--out", tmp_path / "out")
    assert_refused(refused, r"has classes that the model run/model does not know \(1 of 4: ")


def test_debug_shows_the_traceback(place):
    shown = place.aumn("train", "tony.yaml", "--debug")
    assert "Traceback" in shown.stderr
    assert "InputError" in shown.stderr


def test_help_answers_at_once():
    took_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        assert "localize" in succeed(python("-m", "aumn", "--help")).stdout
        took_s.append(time.perf_counter() - start_s)
    assert min(took_s) < 1.5  # 0.3 s on an idle machine; torch alone would take longer than this


def assert_refused(process, message: str) -> None:
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    last = process.stderr[process.stderr.index("aumn: ") :]
    assert re.search(message, last, re.DOTALL), last
