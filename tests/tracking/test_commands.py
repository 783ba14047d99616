"""The commands of the registry and of delivery, as they answer."""

import pytest

from tests.answering import answer, refusal
from tests.tracking.conftest import add_version, save_card
from tests.tracking.test_promotion import CONFIG, measured


@pytest.fixture
def two_versions(store, track, tmp_path, monkeypatch) -> None:
    """The second has a lower mAP and another learning rate."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for average, rate in ((0.3, 0.1), (0.25, 0.2)):
        folder = save_card(tmp_path / "artifact", metrics=measured(average))
        config = {**CONFIG, "optimizer": {"learning_rate": rate}}
        add_version(folder, track().end(), config=config)


def test_compare_shows_metrics_settings_and_data(two_versions):
    shown = answer("models", "compare", "models:/aumn/1", "models:/aumn/2")
    assert "metric, % models:/aumn/1 models:/aumn/2 difference" in shown
    assert "testing/mAP/average 30.0 25.0 -5.0" in shown
    assert "optimizer.learning_rate 0.1 0.2" in shown
    assert "identity sha256:0123 sha256:0123" in shown
    shown = answer("models", "compare", "models:/aumn/1", "models:/aumn/1")
    assert "No setting differs." in shown


def test_promote_says_what_it_did_or_why_not(two_versions):
    promote = ("models", "promote", "aumn")
    assert answer(*promote, 1, "champion") == ["models:/aumn@champion is version 1 now."]
    assert "pass --force" in refusal(*promote, 2, "champion")
    assert answer(*promote, 2, "champion", "--force") == ["models:/aumn@champion is version 2 now; it was 1."]


def test_deliver_says_what_it_delivered(track):
    run = track()
    before = run.sent
    run.log({"loss": 1.0}, 4)
    run.end()
    before.write(run.path)
    assert answer("deliver", run.path) == [f"{run.path}: delivered the metrics of step 4 and how the run ended."]
    assert answer("deliver", run.path) == [f"{run.path}: nothing waits to be delivered."]
