"""The registry in a real sqlite store; test_server.py does the same through a server."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from aumn.records import InputError
from aumn.runfolder.checkpoint import read_card, read_model, save_model
from aumn.tracking import registration
from aumn.tracking.job_run import attach
from aumn.tracking.mirror import push
from aumn.tracking.promotion import promote
from aumn.tracking.registry import check_names, list_models, resolve, show_model
from tests.answering import answer
from tests.tracking.conftest import add_version, aliases, save_card
from tests.tracking.runs import TrackedRun, read_run


@pytest.fixture(scope="module")
def versions(blank_database, tmp_path_factory) -> str:
    """A store with two models: aumn-thumos14 of three versions, the second one champion, and another. Not to change."""
    folder = tmp_path_factory.mktemp("versions")
    shutil.copy(blank_database, folder / "mlflow.db")
    store, artifact = f"sqlite:///{folder / 'mlflow.db'}", save_card(folder / "model")
    for name, alias in [("thumos14", None), ("thumos14", "champion"), ("thumos14", None), ("anet", None)]:
        run = TrackedRun(folder / "run", uri=store).end()
        add_version(artifact, run, alias, name=f"aumn-{name}")
    return store


def test_a_model_is_registered_and_found_by_alias_and_version(store, track, artifact):
    run = track()
    assert add_version(artifact, run, "champion") == 1
    (registered,) = show_model("aumn", store)
    assert (registered.name, int(registered.version), registered.aliases) == ("aumn", 1, ["champion"])
    assert registered.run_id == run.sent.run
    for uri in ("models:/aumn@champion", "models:/aumn/1"):
        weights, card = read_model(resolve(uri, store))
        assert torch.equal(weights["memory"], torch.arange(6.0).reshape(3, 2))
        assert card.classes == ("Golf", "Diving")


def test_a_run_registers_the_same_files_once(store, track, artifact, tmp_path):
    """As when it is killed after registering and resumed; other files, or another run, make another version."""
    run = track(tmp_path, model_name="aumn")
    assert run.publish(1) == "models:/aumn/1"
    run.end("stopped")
    (tmp_path / "mirror.json").write_text(run.sent.model_copy(update={"models": {}}).model_dump_json())
    resumed = track(tmp_path, resumed=True, model_name="aumn", alias="champion")
    assert resumed.publish(1) == "models:/aumn/1"
    assert [version.aliases for version in show_model("aumn", store)] == [["champion"]]
    save_card(artifact, metrics={})
    assert resumed.publish(2) == "models:/aumn/2"
    resumed.end()
    assert add_version(artifact, track()) == 3


INTERRUPTIONS = [
    ("_send", False),
    ("log_model_artifacts", False),
    ("log_outputs", True),
    ("finalize_logged_model", True),
    ("create_model_version", True),
]


@pytest.mark.parametrize(("call", "after"), INTERRUPTIONS)
def test_an_interrupted_registration_goes_on_and_sends_no_file_twice(call, after, store, track, artifact, monkeypatch):
    """Whether the store did what it was asked or not; as after a kill, which leaves a part of a file too."""
    run, sent, of = track(), [], registration if call == "_send" else MlflowClient
    send, ask = registration._send, getattr(of, call)

    def fail(*arguments, **options):
        if after:
            ask(*arguments, **options)
        raise ConnectionResetError(104, "Connection reset by peer")

    def note(client, model, file):
        sent.append(file.name)
        send(client, model, file)

    with monkeypatch.context() as broken:
        broken.setattr(registration, "_send", note)
        broken.setattr(of, call, fail)
        with pytest.raises(InputError, match="Connection reset by peer"):
            add_version(artifact, run)
    (begun,) = MlflowClient(store).search_logged_models([read_run(run.path, store).info.experiment_id])
    kept = Path(begun.artifact_location.removeprefix("file://").replace("%20", " "))
    kept.mkdir(parents=True, exist_ok=True)
    (kept / ".model.safetensors.partial").write_bytes(b"half")
    monkeypatch.setattr(registration, "_send", note)
    assert add_version(artifact, run) == 1
    assert sorted(sent) == ["SHA256SUMS", "model.json", "model.safetensors"]
    (version,) = show_model("aumn", store)
    (model,) = MlflowClient(store).search_logged_models([begun.experiment_id])
    assert (version.source, str(model.status)) == (model.artifact_location, "READY")
    assert torch.equal(read_model(resolve("models:/aumn/1", store))[0]["memory"], torch.arange(6.0).reshape(3, 2))
    assert read_run(run.path, store).outputs.model_outputs[0].model_id == model.model_id
    assert add_version(artifact, run, name="other") == 1
    assert len(sent) == 3
    (model,) = MlflowClient(store).search_logged_models([begun.experiment_id])
    assert [link["name"] for link in json.loads(model.tags["mlflow.modelVersions"])][-1] == "other"


def test_a_folder_in_reach_gets_copies_of_its_own_of_linked_files_too(store, track, artifact, tmp_path):
    weights = artifact / "model.safetensors"
    weights.chmod(0o600)
    weights.rename(tmp_path / "elsewhere")  # as DVC and git-annex keep large files
    weights.symlink_to(tmp_path / "elsewhere")
    add_version(artifact, track())
    kept = resolve("models:/aumn/1", store) / "model.safetensors"
    assert not kept.is_symlink()
    assert not kept.samefile(weights)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o600, "the user's file is as it was"
    with (tmp_path / "elsewhere").open("r+b") as file:
        file.write(b"damage")
    weights.unlink()
    save_model(artifact, {"memory": torch.zeros(2)}, read_card(artifact))
    assert torch.equal(read_model(kept.parent)[0]["memory"], torch.arange(6.0).reshape(3, 2))
    shutil.rmtree(artifact)
    assert torch.equal(read_model(kept.parent)[0]["memory"], torch.arange(6.0).reshape(3, 2))


def test_a_local_store_is_not_copied(versions, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = resolve("models:/aumn-thumos14@champion", versions)
    assert found.is_relative_to(Path(versions.removeprefix("sqlite:///")).parent / "mlartifacts")
    assert not (tmp_path / "cache").exists()


def test_a_project_that_was_moved_takes_its_store_along(store, track, tmp_path, monkeypatch):
    """MLflow notes absolute addresses; nothing is made anew where the project was."""
    project = Path(store.removeprefix("sqlite:///")).parent
    run = track(project / "run", model_name="aumn", alias="champion")
    save_card(project / "run" / "model")
    assert run.publish(1) == "models:/aumn/1"
    run.end()
    moved = tmp_path / "moved project"
    project.rename(moved)
    here = f"sqlite:///{moved / 'mlflow.db'}"
    assert resolve("models:/aumn@champion", here).is_relative_to(moved / "mlartifacts")
    monkeypatch.chdir(moved)
    with pytest.raises(InputError, match=r"names the tracking store sqlite:.*/a store/mlflow.db, whose folder is gone"):
        push(moved / "run")
    resumed = track(moved / "run", uri=here, resumed=True, model_name="aumn", alias="champion")
    save_card(moved / "run" / "model", metrics={})
    assert resumed.publish(2) == "models:/aumn/2"
    resumed.end()
    attach(resumed.sent.run, moved / "run" / "config.yaml", "report", here)
    assert resolve("models:/aumn/2", here).is_relative_to(moved / "mlartifacts")
    assert list(moved.glob("mlartifacts/*/artifacts/report/config.yaml"))
    assert push(moved / "run") is None
    assert not project.exists()


def test_a_version_says_where_it_comes_from(versions):
    tags = show_model("aumn-anet", versions)[0].tags
    assert tags["dataset"] == "spliced"
    assert tags["dataset_identity"] == "sha256:0123"
    assert tags["commit"] == "c0ffee"
    assert float(tags["testing/mAP/average"]) == 1 / 3


def test_models_are_listed_and_their_versions_shown_newest_first(versions):
    listed = answer("models", "list", "--tracking-uri", versions)
    assert [line for line in listed if "aumn" in line] == ["aumn-anet 1", "aumn-thumos14 3 champion: 2"]
    shown = [line for line in answer("models", "show", "aumn-thumos14", "--tracking-uri", versions) if " run " in line]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert [line.partition(f" {today}")[0] for line in shown] == [
        "models:/aumn-thumos14/3",
        "models:/aumn-thumos14/2 @champion",
        "models:/aumn-thumos14/1",
    ]


def test_mlflow_itself_finds_the_files_and_ties_them_to_the_run(store, track, artifact):
    run = track()
    add_version(artifact, run, "champion")
    client = MlflowClient(store)
    version = client.get_model_version_by_alias("aumn", "champion")
    (output,) = client.get_run(run.sent.run).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.artifact_location == version.source
    assert (logged.source_run_id, str(logged.status)) == (run.sent.run, "READY")


# What cannot be found


@pytest.mark.parametrize("ask", [lambda uri: resolve("models:/aumn@x", uri), lambda uri: show_model("aumn", uri)])
def test_an_unknown_model_lists_the_known(versions, ask):
    with pytest.raises(
        InputError, match=r"No model is registered as aumn in .*; the names are aumn-anet, aumn-thumos14\."
    ):
        ask(versions)


def test_an_unknown_model_in_an_empty_registry(store):
    with pytest.raises(InputError, match=r"No model is registered as aumn in sqlite:///.*; there are no names yet\."):
        promote("aumn", "1", "champion", store)


def test_an_unknown_alias_lists_the_known(versions):
    with pytest.raises(InputError, match=r"^Model aumn-thumos14 has no alias best; the aliases are champion\.$"):
        resolve("models:/aumn-thumos14@best", versions)
    with pytest.raises(InputError, match=r"^Model aumn-anet has no alias best; there are no aliases yet\.$"):
        resolve("models:/aumn-anet@best", versions)


@pytest.mark.parametrize(
    "ask",
    [lambda uri: resolve("models:/aumn-thumos14/4", uri), lambda uri: promote("aumn-thumos14", "4", "champion", uri)],
)
def test_an_unknown_version_lists_the_known(versions, ask):
    with pytest.raises(InputError, match=r"^Model aumn-thumos14 has no version 4; the versions are 3, 2, 1\.$"):
        ask(versions)
    assert aliases(versions, "aumn-thumos14") == {"champion": 2}


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


def test_aliases_that_are_taken_by_mlflow_too(store, track, artifact):
    add_version(artifact, track())
    names = ("champion", "v3-tuned", "2026_01", "latest-good")
    for alias in names:
        promote("aumn", "1", alias, store)
    assert aliases(store, "aumn") == dict.fromkeys(names, 1)


def test_only_model_artifacts_are_registered(store, track, tmp_path):
    with pytest.raises(InputError, match=r"is no model artifact or checkpoint: it has no model\.json"):
        add_version(tmp_path / "nothing", track())
    assert list_models(store) == []
