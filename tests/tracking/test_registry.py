"""The registry in a real sqlite store; test_server.py does the same through a server."""

import os
from datetime import UTC, datetime, timedelta

import pytest
import torch

from aumn.checkpoint import read_model
from aumn.records import InputError
from aumn.tracking.registry import check_names, list_models, promote, register, resolve, show_model

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated:DeprecationWarning")


@pytest.fixture
def versions(store, track, artifact) -> str:
    """A store with two models: aumn-thumos14 of three versions, the second one champion, and another."""
    for alias in (None, "champion", None):
        track(run_name="training").register_model(artifact, "aumn-thumos14", alias)
    track().register_model(artifact, "aumn-anet", None)
    return store


def test_a_model_is_registered_and_found_by_alias_and_version(store, track, artifact):
    tracker = track()
    registered = register(artifact, "aumn", "champion", run_id=tracker.run_id, uri=store)
    assert (registered.name, registered.version, registered.aliases) == ("aumn", 1, ("champion",))
    assert registered.run_id == tracker.run_id
    assert datetime.now(UTC) - registered.created < timedelta(minutes=1)
    for uri in ("models:/aumn@champion", "models:/aumn/1"):
        weights, card = read_model(resolve(uri, store))
        assert torch.equal(weights["memory"], torch.arange(6.0).reshape(3, 2))
        assert card.classes == ("Golf", "Diving")


def test_a_local_store_is_not_copied(versions, tmp_path):
    found = resolve("models:/aumn-thumos14@champion", versions)
    assert found.is_relative_to(tmp_path / "a store" / "mlartifacts")
    assert not (tmp_path / "cache").exists()


def test_a_version_says_where_it_comes_from(versions):
    tags = show_model("aumn-anet", versions)[0].tags
    assert tags["dataset"] == "spliced"
    assert tags["dataset_identity"] == "sha256:0123"
    assert tags["commit"] == "c0ffee"
    assert float(tags["mAP/average"]) == 1 / 3


def test_models_are_listed(versions):
    listed = [(model.name, model.newest_version, model.aliases) for model in list_models(versions)]
    assert listed == [("aumn-anet", 1, {}), ("aumn-thumos14", 3, {"champion": 2})]


def test_an_empty_registry_lists_nothing(store):
    assert list_models(store) == []


def test_versions_are_shown_newest_first_with_their_aliases(versions):
    shown = [(version.version, version.aliases) for version in show_model("aumn-thumos14", versions)]
    assert shown == [(3, ()), (2, ("champion",)), (1, ())]


def test_promoting_moves_the_alias(versions):
    assert promote("aumn-thumos14", 3, "champion", versions) == 2
    assert promote("aumn-thumos14", 3, "challenger", versions) is None
    assert show_model("aumn-thumos14", versions)[0].aliases == ("challenger", "champion")
    assert resolve("models:/aumn-thumos14@champion", versions) == resolve("models:/aumn-thumos14/3", versions)


def test_mlflow_itself_finds_the_files_and_ties_them_to_the_run(store, track, artifact):
    from mlflow import MlflowClient

    tracker = track()
    tracker.register_model(artifact, "aumn", "champion")
    client = MlflowClient(store)
    version = client.get_model_version_by_alias("aumn", "champion")
    (output,) = client.get_run(tracker.run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.artifact_location == version.source
    assert (logged.source_run_id, str(logged.status)) == (tracker.run_id, "READY")


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_with_an_mlmodel_file_a_version_is_a_pyfunc(store, track, artifact, tmp_path, monkeypatch):
    import mlflow.pyfunc
    from mlflow.models import Model

    (tmp_path / "answering.py").write_text(
        "def _load_pyfunc(path):\n"
        "    class Answer:\n"
        "        def predict(self, inputs, params=None):\n"
        "            return path\n"
        "    return Answer()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = Model()
    model.add_flavor("python_function", loader_module="answering", env={})
    model.save(artifact / "MLmodel")
    track().register_model(artifact, "aumn", "champion")
    folder = resolve("models:/aumn@champion", store)
    weights_file = mlflow.pyfunc.load_model(str(folder)).predict(None) + "/model.safetensors"
    assert os.path.samefile(weights_file, folder / "model.safetensors")
    assert read_model(folder)[1].dataset == "spliced"


# What cannot be found


@pytest.mark.parametrize("ask", [lambda uri: resolve("models:/aumn@x", uri), lambda uri: show_model("aumn", uri)])
def test_an_unknown_model_lists_the_known(versions, ask):
    with pytest.raises(
        InputError, match=r"No model is registered as aumn in .*; the names are aumn-anet, aumn-thumos14\."
    ):
        ask(versions)


def test_an_unknown_model_in_an_empty_registry(store):
    with pytest.raises(InputError, match=r"No model is registered as aumn in sqlite:///.*; there are no names yet\."):
        promote("aumn", 1, "champion", store)


def test_an_unknown_alias_lists_the_known(versions):
    with pytest.raises(InputError, match=r"^Model aumn-thumos14 has no alias best; the aliases are champion\.$"):
        resolve("models:/aumn-thumos14@best", versions)
    with pytest.raises(InputError, match=r"^Model aumn-anet has no alias best; there are no aliases yet\.$"):
        resolve("models:/aumn-anet@best", versions)


@pytest.mark.parametrize(
    "ask",
    [lambda uri: resolve("models:/aumn-thumos14/4", uri), lambda uri: promote("aumn-thumos14", 4, "champion", uri)],
)
def test_an_unknown_version_lists_the_known(versions, ask):
    with pytest.raises(InputError, match=r"^Model aumn-thumos14 has no version 4; the versions are 3, 2, 1\.$"):
        ask(versions)
    assert list_models(versions)[1].aliases == {"champion": 2}


@pytest.mark.parametrize(
    "uri", ["models:/a", "models:/a/latest", "models:/a@b/c", "models:/a/1/x", "models://a/1", "a@b"]
)
def test_a_malformed_uri_says_how_to_write_it(uri):
    with pytest.raises(
        InputError, match=r"is no registered model: write models:/<name>@<alias> or models:/<name>/<version>"
    ):
        resolve(uri, "sqlite:////proc/never/opened.db")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a@b", "..", "a b"])
def test_a_name_that_the_registry_cannot_hold(name):
    with pytest.raises(InputError, match=r"model name '.*' must be letters, digits, - _ and \. only"):
        check_names(name)


@pytest.mark.parametrize("alias", ["", "latest", "Latest", "v3", "V12", "a b", "größe"])
def test_an_alias_that_the_registry_cannot_hold(alias):
    with pytest.raises(
        InputError, match=r"alias '.*' must be letters, digits, - and _, and neither `latest` nor like v3"
    ):
        check_names("aumn", alias)


@pytest.mark.parametrize("alias", ["champion", "v3-tuned", "2026_01", "latest-good"])
def test_aliases_that_are_taken_by_mlflow_too(versions, alias):
    promote("aumn-anet", 1, alias, versions)
    assert list_models(versions)[0].aliases == {alias: 1}


def test_only_model_artifacts_are_registered(store, track, tmp_path):
    tracker = track()
    with pytest.raises(InputError, match=r"is no model artifact or checkpoint: it has no model\.json"):
        tracker.register_model(tmp_path / "nothing", "aumn", None)
    assert list_models(store) == []
