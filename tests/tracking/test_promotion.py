"""Comparing versions, and an alias that only a better one gets."""

import pytest

from aumn.records import InputError
from aumn.tracking.promotion import Promotion, compare, promote
from tests.answering import answer, refusal
from tests.tracking.conftest import add_version, aliases, save_card

DATA = {"subset": "training", "holdout_share": 0.2, "holdout_seed": 0}
CHOSEN_ON_TEST = (
    "chosen by its mAP on testing of spliced, which is no measure of it any more: choose on training videos, "
    "evaluation.videos=held_out"
)
CONFIG = {"data": DATA, "optimizer": {"learning_rate": 0.1}, "run": {"folder": "x"}}


def measured(average: float, videos: str = "testing", tiou: float = 0.5) -> dict[str, float]:
    return {f"{videos}/mAP/{tiou}": average, f"{videos}/mAP/average": average}


@pytest.fixture
def add(track, tmp_path):
    """Register the next version of `aumn`, of a card that differs so."""

    def add(alias: str | None = None, config=CONFIG, **changes) -> int:
        folder = save_card(tmp_path / "artifact", **changes)
        return add_version(folder, track().end(), alias, config=config)

    return add


def test_a_version_as_good_as_the_one_before_takes_over_the_alias(add, store):
    add(metrics=measured(0.3))
    add(metrics=measured(0.3))
    assert promote("aumn", "1", "champion", store) == Promotion(1, None, None)
    assert promote("aumn", "2", "champion", store) == Promotion(2, 1, CHOSEN_ON_TEST)
    assert promote("aumn", "2", "champion", store) == Promotion(2, 2, None)
    assert aliases(store, "aumn")["champion"] == 2


WORSE = {
    "a lower mAP": (
        {"metrics": measured(0.29)},
        r"^models:/aumn/2 has mAP 29\.0% on testing of spliced \(tIoU 0\.5 to 0\.5\), less than the 30\.0% of version "
        r"1, which is @champion now: promote a better one, or pass --force\.$",
    ),
    "no mAP": ({"metrics": {}}, r"cannot be compared with version 1, .*: the first records no mAP\. Measure both"),
    "other videos": (
        {"metrics": measured(0.5, "held_out")},
        r"one has 50\.0% on 20% of training held out with seed 0, of spliced .* the other 30\.0% on testing of spliced",
    ),
    "other thresholds": ({"metrics": measured(0.5, tiou=0.7)}, r"one has .*tIoU 0\.7.*, the other .*tIoU 0\.5"),
    "other data": (
        {"metrics": measured(0.5), "dataset_identity": "sha256:4567"},
        r"they were measured on other data, sha256:4567 and sha256:0123",
    ),
}


def test_a_version_that_is_not_known_to_be_better_is_refused_unless_forced(add, store):
    add("champion", metrics=measured(0.3))
    for case, (changes, message) in WORSE.items():
        version = add(**changes)
        with pytest.raises(InputError, match=message):
            promote("aumn", str(version), "champion", store)
        assert aliases(store, "aumn")["champion"] == 1, case
    assert promote("aumn", str(version), "champion", store, force=True) == Promotion(version, 1, None)
    assert aliases(store, "aumn")["champion"] == version


def test_held_out_videos_are_the_same_only_for_the_same_share_and_seed(add, store):
    add("champion", metrics=measured(0.3, "held_out"))
    add(metrics=measured(0.4, "held_out"), config={**CONFIG, "data": {**DATA, "holdout_seed": 1}})
    add(metrics=measured(0.4, "held_out"), config=None)
    add(metrics=measured(0.4, "held_out"))
    with pytest.raises(InputError, match=r"20% of training held out with seed 1.*20% of training held out with seed 0"):
        promote("aumn", "2", "champion", store)
    with pytest.raises(InputError, match=r"which videos were held out is not recorded"):
        promote("aumn", "3", "champion", store)
    assert promote("aumn", "4", "champion", store) == Promotion(4, 1, None)


def test_a_version_without_an_map_makes_way_and_that_is_said(add, store):
    add("champion", metrics={})
    add(metrics=measured(0.1))
    assert promote("aumn", "2", "champion", store) == Promotion(2, 1, "version 1 records no mAP to compare with")


def test_two_versions_side_by_side(add, store):
    add("champion", metrics=measured(0.3))
    config = {**CONFIG, "optimizer": {"learning_rate": 0.2}, "run": {"folder": "y"}}
    add(metrics=measured(0.25), config=config, commit="beef")
    found = compare("models:/aumn@champion", "models:/aumn/2", store)
    assert (str(found.first), str(found.second)) == ("models:/aumn/1", "models:/aumn/2")
    assert found.metrics == [("testing/mAP/0.5", 0.3, 0.25), ("testing/mAP/average", 0.3, 0.25)]
    assert found.settings == [("optimizer.learning_rate", 0.1, 0.2)]
    assert ("identity", "sha256:0123", "sha256:0123") in found.data
    assert ("commit", "c0ffee", "beef") in found.data
    assert found.incomparable is None


def test_versions_of_other_data_are_compared_as_far_as_that_goes(add, store):
    add(metrics=measured(0.3), config=None, model={"units": 3, "dropout": 0.5})
    add(metrics={}, dataset="other", dataset_identity="sha256:89", model={"units": 4})
    found = compare("models:/aumn/1", "models:/aumn/2", store)
    assert found.metrics == [("testing/mAP/0.5", 0.3, None), ("testing/mAP/average", 0.3, None)]
    assert sorted(found.settings) == [("model.dropout", 0.5, 0.0), ("model.units", 3, 4)]
    assert ("dataset", "spliced", "other") in found.data
    assert found.incomparable == "the second records no mAP"


def test_a_pipeline_promotes_by_alias_and_takes_a_worse_version_for_no_failure(add, store):
    add("champion", metrics=measured(0.3))
    add("challenger", metrics=measured(0.2))
    command = ("models", "promote", "aumn", "@challenger", "champion", "--tracking-uri", store)
    assert "less than the 30.0% of version 1" in refusal(*command)
    (kept,) = answer(*command, "--if-better")
    assert kept.startswith("models:/aumn@champion stays as it is: models:/aumn/2 has mAP 20.0%")
    assert aliases(store, "aumn")["champion"] == 1
    add("challenger", metrics=measured(0.4))
    assert answer(*command, "--if-better") == [f"models:/aumn@champion is version 3 now; it was 1 ({CHOSEN_ON_TEST})."]
