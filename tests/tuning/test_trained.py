"""`aumn tune --rules`: a trained model's rules, by its own held-out videos, in a new folder or a new version."""

import json
import shutil

import numpy as np
import pytest
import yaml

from aumn.config.run_config import load_config
from aumn.data.loader import split_holdout, whole_videos
from aumn.data.shards.shard_set import ShardSet
from aumn.evaluation.evaluate import evaluate, parse_tious
from aumn.inference.localize import localize
from aumn.inference.one_video import load_network
from aumn.runfolder.checkpoint import read_card
from aumn.runfolder.folder import RunFolder
from aumn.runtime.ranks import Ranks
from aumn.tracking.registry import resolve, show_model
from aumn.training.run import run_training
from aumn.training.validation import held_out_truth
from tests.answering import answer, refusal
from tests.tracking.conftest import add_version, blank_database, store, track  # noqa: F401

SETTINGS = {
    "data": {"subset": "training", "snippets": 24, "holdout_share": 0.3},
    "model": {"embedding_width": 16, "units": 3, "bottleneck": 4},
    "batch": {"global_videos": 8},
    "run": {"steps": 12, "engine": "single"},
    "optimizer": {"learning_rate": 0.003},
    "evaluation": {"videos": "held_out", "every": 12},
    "localize": {"class_threshold": 0.9},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A shard set, and a run on it."""
    root = tmp_path_factory.mktemp("trained")
    answer("synth", root / "f", "--videos", 40, "--classes", 3, "--width", 12, "--snippets", 40)
    answer("pack", root / "f", root / "shards", "--annotations", root / "f/gt.json")
    SETTINGS["data"]["shards"], SETTINGS["run"]["folder"] = str(root / "shards"), str(root / "run")
    (root / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    config = load_config(root / "run.yaml")
    run_training(config, Ranks(), resume=False, say=lambda _line: None, advance=lambda *_: None)
    return root


@pytest.fixture
def of_held_out(root):
    """Names of the run's held-out videos, and metrics of a model on them."""
    shards, data = ShardSet.open(root / "shards"), load_config(root / "run.yaml").data
    training = shards.indices("training")
    _, indices = split_holdout(training, shards.ids(training), data)
    truth, _ = held_out_truth(shards, data, indices)

    def measure(folder) -> dict[str, float]:
        network, card = load_network(folder)
        found = localize(network, whole_videos(shards, indices, rank=0, world_size=1), card, rules=card.localize)
        result = evaluate(found, truth, parse_tious("0.1:0.7:0.1"), Ranks())
        names = [f"held_out/mAP/{tiou}" for tiou in (*result.tious, "average")]
        return dict(zip(names, [*result.map_T, result.average], strict=True))

    return tuple(sorted(shards.ids(indices))), measure


def test_a_runs_rules_are_chosen_on_its_held_out_videos_and_written_with_its_weights(root, of_held_out, monkeypatch):
    names, measure = of_held_out
    opened = []
    monkeypatch.setattr("aumn.training.validation.read_ground_truth", _spy(opened))
    said = answer("tune", "--rules", root / "run", "--out", root / "tuned")
    assert set(opened) == {"training"}
    before, after = read_card(root / "run/model"), read_card(root / "tuned")
    assert (root / "tuned/model.safetensors").read_bytes() == (root / "run/model/model.safetensors").read_bytes()
    chosen = after.chosen_rules
    assert (chosen.of, chosen.subset, chosen.measure, chosen.videos) == (str(root / "run"), "held_out", "mAP", names)
    assert after.metrics == measure(root / "tuned")
    assert after.metrics["held_out/mAP/average"] > before.metrics["held_out/mAP/average"]
    same = {"localize", "metrics", "chosen_rules"}
    assert after.model_dump(exclude=same) == before.model_dump(exclude=same)
    assert "chosen_rules" not in json.loads((root / "run/model/model.json").read_text())
    (own,) = (line for line in said if line.startswith("the model's "))
    assert own.split()[2] == f"{100 * before.metrics['held_out/mAP/average']:.1f}"
    best = next(line for line in said if line.startswith("best: "))
    assert f"chosen by mAP on {len(names)} videos held out of training, for the weights of {root / 'run'}." in best
    again = refusal("tune", "--rules", root / "run", "--out", root / "tuned")
    assert "tuned already exists: name a new folder for the model with --out." in again
    (kept,) = [line for line in answer("tune", "--rules", root / "tuned", root / "shards", "--subset", "testing",
               "--out", root / "more", *_all_of(after)) if "nothing is written" in line]  # fmt: skip
    assert not (root / "more").exists()
    assert kept.startswith("None of the 1 tried is better")


def _spy(opened):
    from aumn.data.truth.annotations import read_ground_truth

    def spy(place, subset, **options):
        opened.append(subset)
        return read_ground_truth(place, subset, **options)

    return spy


def _all_of(card):
    return [f"localize.{name}={json.dumps(value)}" for name, value in card.localize.model_dump(mode="json").items()]


def test_a_registered_model_gets_a_version_of_the_same_weights(root, of_held_out, track):  # noqa: F811
    run = track()
    add_version(root / "run/model", run.end(), name="m", config=RunFolder(root / "run").config())
    where = ("--tracking-uri", run.sent.store)
    said = answer("tune", "--rules", "models:/m/1", *where, "localize.nms_tiou=0.4")
    assert said[-1] == "registered: models:/m/2, the weights of models:/m/1 with these rules"
    assert answer("tune", "--rules", "models:/m/1", *where, "localize.nms_tiou=0.4")[-1] == said[-1]  # the same one
    first, second = (resolve(f"models:/m/{number}", where[1]) for number in (1, 2))
    card = read_card(second)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert (card.localize.nms_tiou, card.chosen_rules.of) == (0.4, "models:/m/1")
    assert card.metrics == of_held_out[1](second)
    newest, oldest = show_model("m", where[1])
    assert (newest.run_id, newest.tags["rules"]) == (oldest.run_id, str(card.chosen_rules))
    assert f"0.4, fusion {card.localize.fusion}" not in (first / "MODEL_CARD.md").read_text()
    assert str(card.chosen_rules) in (second / "MODEL_CARD.md").read_text()
    compared = answer("models", "compare", "models:/m/1", "models:/m/2", *where)
    assert "localize.nms_tiou 0.3 0.4" in compared
    assert any(line.startswith("rules the run's chosen by mAP on ") for line in compared)
    assert not any("cannot be compared" in line for line in compared)
    answer("models", "promote", "m", 1, "champion", *where)
    (promoted,) = answer("models", "promote", "m", 2, "champion", *where)
    assert "version 2 now; it was 1 (its rules were chosen on these very videos, 30% of training held out" in promoted
    assert "less than the" in refusal("models", "promote", "m", 1, "champion", *where)


def test_without_times_labels_choose_the_streams(root):
    database = json.loads((root / "f/gt.json").read_text())["database"]
    rows = ["video,label,start,end,subset,duration,fps"]
    for video, entry in database.items():
        labels = {instance["label"] for instance in entry["annotations"]}
        rows += [f"{video},{label},,,{entry['subset']},{entry['duration']},{entry['fps']}" for label in labels]
    (root / "untimed.csv").write_text("\n".join(rows))
    answer("pack", root / "f", root / "untimed", "--annotations", root / "untimed.csv")
    how = ("--subset", "testing", "--out", root / "labels")
    said = answer("tune", "--rules", root / "run/model", root / "untimed", *how, "localize.class_threshold=0.5")
    assert any(line.startswith("classification mAP (%) of 11 rules; ") for line in said)
    card = read_card(root / "labels")
    assert (card.metrics, card.localize.class_threshold, card.localize.thresholds) == ({}, 0.5, ())
    assert card.chosen_rules.measure == "classification mAP"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN", "--budget", 3], "--rules trains nothing: leave out --budget"),
        (["RUN", "SET", "SET"], "name one shard set; and of settings, those of localize alone."),
        (["RUN", "model.units=3"], "model.units=3 is not a shard set"),
        (["ROOT/nowhere"], "ROOT/nowhere is no model artifact or checkpoint: it has no model.json."),
        (["RUN/model"], "Name a folder for ROOT/run/model with the chosen rules: --out FOLDER."),
        (["RUN", "localize.treshold=1"], "localize.treshold is not a setting: did you mean"),
        (["RUN", "--subset", "tasting"], "shards has no subset 'tasting'; it has testing"),
        (["RUN", "--subset", "training", "localize.weights={sound: 1}"], "localize.weights names sound"),
        (["ALONE", "--out", "x"], "ALONE lies in no run's folder, so which videos were held out of its training"),
        (["ALL"], "ALL was trained on all videos of training, and held none out: name others with --subset"),
        (["RUN", "OTHER"], "OTHER is not what ROOT/run was trained on (identity "),
    ],
)
def test_what_cannot_choose_rules(root, words, sentence):
    if not (root / "all").exists():
        shutil.copytree(root / "run", root / "all")
        config = yaml.safe_load((root / "all/config.yaml").read_text())
        config["data"]["holdout_share"] = 0.0
        (root / "all/config.yaml").write_text(yaml.safe_dump(config))
        shutil.copytree(root / "run/model", root / "deep/er/alone")
        answer("synth", root / "g", "--videos", 8, "--classes", 3, "--width", 12, "--snippets", 40, "--seed", 1)
        answer("pack", root / "g", root / "other", "--annotations", root / "g/gt.json")
    places = {"RUN": "run", "SET": "shards", "ALONE": "deep/er/alone", "ALL": "all", "OTHER": "other", "ROOT": ""}

    def filled(text: object) -> str:
        for name, place in places.items():
            text = str(text).replace(name, str(root / place).rstrip("/"))
        return str(text)

    assert filled(sentence) in refusal("tune", "--rules", *map(filled, words))
    assert not np.any([(root / name).exists() for name in ("run/tuned", "all/tuned", "x")])
