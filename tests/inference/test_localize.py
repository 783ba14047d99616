"""`aumn localize` of a subset: on disks that refuse one rank, and of a run's folder."""

import json
import re
import shutil

import numpy as np
import pytest
from torch.testing import assert_close

from aumn.data.loader import whole_videos
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_ground_truth
from aumn.evaluation.evaluate import evaluate
from aumn.inference.detections import detections_of, read_detections
from aumn.inference.localize import check_fit, localize_subset
from aumn.inference.one_video import load_network
from aumn.inference.remembered import RememberedScores
from aumn.inference.settings import LocalizeSettings
from aumn.records import InputError
from aumn.runfolder.checkpoint import read_card, read_model, save_model
from aumn.runtime.ranks import Ranks
from tests.launching import aumn, succeed, torchrun
from tests.refusing import BrokenDisk, FullDisk
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A trained run of a few steps, and its shard set."""
    tiny = Tiny(tmp_path_factory.mktemp("localize"))
    succeed(tiny.train("run", "run.steps=6", "evaluation.videos=null"))
    return tiny


def command(tiny, model, *options):
    return ("localize", model, tiny.shards, "--subset", "testing", *options)


def on_two_ranks(tiny, out, *options, environment):
    arguments = command(tiny, "run/model", "--out", out, *options)
    return torchrun(2, "-m", "aumn", *arguments, cwd=tiny.root, environment=environment)


def test_a_disk_that_refuses_one_rank_ends_all_with_its_sentence(tiny, tmp_path):
    disk = BrokenDisk(tmp_path / "disk", "write")
    out = tmp_path / "disk" / "found"
    disk.refuse(0)
    only_rank_1 = {"BROKEN_FOLDER": str(out.with_name(".found.partial") / ".part-00001")}
    ended = on_two_ranks(tiny, out, environment=disk.environment | only_rank_1)
    disk.close()
    assert_one_sentence(ended, rf"aumn: {out} cannot be written: Input/output error\. Free space, mend its folder, or")
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_full_disk_ends_all_ranks_with_one_sentence(tiny, tmp_path):
    disk = FullDisk(tmp_path / "disk")
    if not disk._is_mounted:
        pytest.skip("mounting is not permitted")
    out = tmp_path / "disk" / "found"
    disk.refuse(0)
    ended = on_two_ranks(tiny, out, "--scores", environment=disk.environment)
    disk.close()
    assert_one_sentence(ended, rf"aumn: {out} cannot be written: No space left on device\. Free space")


def assert_one_sentence(ended, sentence):
    assert ended.returncode == 1  # torchrun's own; the ranks' are in its report
    assert re.findall(r"exitcode *: (\d+)", ended.stderr) == ["2"] * ended.stderr.count("exitcode")
    assert len(re.findall(sentence, ended.stderr)) == 1, ended.stderr
    assert ended.stderr.count("Traceback") == 1, ended.stderr  # torchrun's own


def test_a_runs_folder_stands_for_its_final_model_and_its_only_detections(tiny):
    said = succeed(aumn(*command(tiny, "run"), cwd=tiny.root)).stdout
    assert re.match(r"run/detections/testing: \d+ detections by run/model in subset testing of ", said)
    found, metadata = read_detections(tiny.root / "run" / "detections" / "testing")
    assert len(found) > 0
    assert metadata["model"] == "run/model"
    evaluate = ("--annotations", "features/gt.json", "--protocol", "thumos14")
    assert (
        "run/detections/testing, subset testing of" in succeed(aumn("evaluate", "run", *evaluate, cwd=tiny.root)).stdout
    )
    again = aumn(*command(tiny, "run"), cwd=tiny.root)
    assert again.returncode == 2
    assert "run/detections/testing already exists: name a new folder" in again.stderr


def test_detections_of_a_run_are_never_guessed(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run is a run that holds no detections in .*run aumn localize .*run SHARDS"):
        detections_of(run)
    for subset in ("testing", "validation"):
        (run / "detections" / subset).mkdir(parents=True)
    with pytest.raises(InputError, match=r"several detections: name one of .*/testing, .*/validation\."):
        detections_of(run)
    assert detections_of(run, "testing") == run / "detections" / "testing"
    with pytest.raises(InputError, match=r"holds no detections of subset 'tasting'"):
        detections_of(run, "tasting")
    shutil.rmtree(run / "checkpoints")
    assert detections_of(run) == run


def test_a_set_of_fewer_classes_in_another_order_is_localized_and_measured_by_name(tiny, tmp_path):
    """As each set is that a model was trained on with others."""
    database = json.loads((tiny.root / "features" / "gt.json").read_text())["database"]
    labels = sorted({instance["label"] for video in database.values() for instance in video["annotations"]})
    of = {name: {instance["label"] for instance in video["annotations"]} for name, video in database.items()}
    some = {name: database[name] for name, found in of.items() if labels[0] not in found}
    gt, classes, found = tmp_path / "gt.json", tmp_path / "classes.txt", {}
    gt.write_text(json.dumps({"database": some}))
    classes.write_text("\n".join(labels[:0:-1]))
    pack(tiny.root / "features", tmp_path / "shards", gt, classes=classes, workers=1)
    assert ShardSet.open(tmp_path / "shards").classes == (labels[2], labels[1])
    how = {"model": "m", "subset": "testing", "device": "cpu", "advance": lambda *_: None, "with_scores": True}
    for name, shards in (("whole", tiny.shards), ("some", tmp_path / "shards")):
        localize_subset(tiny.root / "run" / "model", shards, tmp_path / name, Ranks(), **how)
        one = read_detections(tmp_path / name)[0]
        columns = (one.video_N, one.label_N, one.score_N, one.start_s_N, one.end_s_N)
        rows = ((one.videos[video], one.labels[label], *rest) for video, label, *rest in zip(*columns, strict=True))
        found[name] = sorted(row for row in rows if row[0] in some)
        assert evaluate(one, read_ground_truth(gt, "testing"), (0.1, 0.5), Ranks()).labels == (labels[1], labels[2])
    assert found["some"] == found["whole"] != []
    relabelled = ShardSet.open(tmp_path / "shards").relabelled(tuple(labels))  # whose labels scores are kept for
    assert {video.id: {labels[label] for label in video.labels} for video in relabelled.videos} == {
        name: of[name] for name in some
    }
    card = read_card(tiny.root / "run" / "model")
    with pytest.raises(
        InputError, match=r"shards has classes that the model m does not know \(2 of 3: .*use a model of"
    ):
        check_fit(card.model_copy(update={"classes": tuple(labels[:1])}), "m", ShardSet.open(tiny.shards))


def test_a_memory_over_ranks_is_trained_followed_and_read_as_in_one_process(tiny, tmp_path):
    """Three units over two ranks, which have unequal numbers of held-out and of testing videos."""
    said = succeed(tiny.train("mesh", "run.steps=6", "evaluation.every=6", "engine.bank_ranks=2", ranks=2)).stderr
    assert "mAP" in said
    alone, mesh = (read_model(tiny.root / run / "model")[0] for run in ("run", "mesh"))
    assert_close(mesh, alone, rtol=1e-4, atol=1e-5)
    succeed(aumn(*command(tiny, "run/model", "--out", tmp_path / "one"), cwd=tiny.root))
    several = command(tiny, "run/model", "--out", tmp_path / "two", "--bank-ranks", 2)
    succeed(aumn(*several, ranks=2, cwd=tiny.root))
    truth = read_ground_truth(tiny.root / "features" / "gt.json", "testing")
    one, two = (read_detections(tmp_path / name)[0] for name in ("one", "two"))
    assert len(one) == len(two) > 0
    assert_close(np.sort(two.score_N), np.sort(one.score_N), rtol=1e-4, atol=1e-6)
    assert evaluate(two, truth, (0.1, 0.5), Ranks()).average == pytest.approx(
        evaluate(one, truth, (0.1, 0.5), Ranks()).average, abs=1e-6
    )
    how = {"model": "m", "subset": "testing", "device": "cpu", "advance": None, "with_scores": True, "bank_ranks": 2}
    with pytest.raises(InputError, match=r"^--scores needs whole memories, which --bank-ranks shares out"):
        localize_subset(tiny.root / "run" / "model", tiny.shards, tmp_path / "x", Ranks(0, 2), **how)


def test_rules_of_a_trained_model_are_changed_by_a_word_each(tiny, tmp_path):
    """As if it had been trained with them: rules are no part of training."""
    given = ("localize.class_threshold=0.4", "localize.proposals=class_activation", "localize.nms_tiou=0.6")
    succeed(aumn(*command(tiny, "run/model", "--out", tmp_path / "changed", *given), cwd=tiny.root))
    shutil.copytree(tiny.root / "run" / "model", tmp_path / "model")
    network, card = load_network(tmp_path / "model")
    rules = LocalizeSettings(class_threshold=0.4, proposals="class_activation", nms_tiou=0.6)
    shutil.rmtree(tmp_path / "model")
    save_model(tmp_path / "model", network.state_dict(), card.model_copy(update={"localize": rules}))
    succeed(aumn(*command(tiny, tmp_path / "model", "--out", tmp_path / "trained"), cwd=tiny.root))
    (changed, told), (trained, untold) = (read_detections(tmp_path / name) for name in ("changed", "trained"))
    for name in ("video_N", "label_N", "score_N", "start_s_N", "end_s_N"):
        assert np.array_equal(getattr(changed, name), getattr(trained, name)), name
    assert (LocalizeSettings.model_validate_json(told["rules"]), "rules" in untold) == (rules, False)
    shards = ShardSet.open(tiny.shards)
    batches = whole_videos(shards, shards.indices("testing"), rank=0, world_size=1)
    remembered = RememberedScores.of(network, batches, card).localize(rules)
    assert [remembered.videos[number] for number in remembered.video_N] == [
        trained.videos[number] for number in trained.video_N
    ]
    for name in ("score_N", "start_s_N", "end_s_N"):  # scores once computed give the same by any rules
        assert np.array_equal(getattr(remembered, name), getattr(trained, name)), name
    refused = aumn(*command(tiny, "run/model", "--out", tmp_path / "no", "localize.treshold=1"), cwd=tiny.root)
    assert (refused.returncode, "localize.treshold is not a setting: did you mean" in refused.stderr) == (2, True)
