"""Sets of one stream and of three through every command that meets streams, as a user types them."""

import json
import re

import pytest

from tests.answering import answer
from tests.launching import aumn, succeed

SMALL = ("model.embedding_width=8", "model.units=3", "model.bottleneck=2", "batch.global_videos=4", "data.snippets=16")
CONFIG = """
data: {shards: shards}
run: {folder: run, steps: 4, log_every: 2}
loss: {pseudo_labels: 0.5}
evaluation: {videos: testing, every: 2}
tracking: {uri: "sqlite:///mlflow.db", model_name: streams, alias: now}
"""


@pytest.mark.parametrize(
    ("streams", "engine"), [(("clip",), "ddp"), (("rgb", "flow", "audio"), "deepspeed")], ids=["one", "three"]
)
def test_every_command_takes_any_streams(streams, engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        return "\n".join(answer(*command.split(), *arguments))

    names, truth = ",".join(streams), ("--annotations", "features/gt.json")
    run("synth features --videos 12 --classes 2 --width 6 --snippets 30 --streams", names)
    run("pack features shards --streams", names, *truth)
    looked = run("inspect shards --picture shards.png --json shards.json")
    assert all(re.search(rf"\b{stream}\b", looked) for stream in streams)
    assert [*json.loads((tmp_path / "shards/dataset.json").read_text())["streams"]] == list(streams)
    (tmp_path / "config.yaml").write_text(CONFIG)
    share = round(1 / len(streams), 4)
    weights = dict.fromkeys(streams[1:], share) | {streams[0]: 1 - share * (len(streams) - 1)}
    chosen = (f"localize.weights={json.dumps(weights)}", f"loss.sparsity={json.dumps({'default': 0.1, streams[0]: 0})}")
    assert "parameters" in run("train config.yaml --dry-run", *SMALL, *chosen)
    training = ("train", "config.yaml", f"run.engine={engine}", *SMALL, *chosen)
    trained = succeed(aumn(*training, cwd=tmp_path, ranks=2, timeout_s=240)).stderr
    last = [line for line in trained.splitlines() if "attention" in line][-1]
    assert re.findall(r"(\w+) [01]\.\d\d", last.partition("attention ")[2]) == list(streams)
    run("localize run shards --subset testing --scores --json found.json")
    run("evaluate run/detections/testing --protocol thumos14 --json map.json", *truth)
    measured = json.loads((tmp_path / "map.json").read_text())
    mirrored = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert measured["average"] == mirrored["testing/mAP/average"], (measured, mirrored)
    video = next(iter(json.loads((tmp_path / "found.json").read_text())["results"]))
    files = [f"{stream}=features/{stream}/{video}.npy" for stream in reversed(streams)]
    store = ("--tracking-uri", "sqlite:///mlflow.db")
    assert f"{video}: " in run("localize models:/streams@now --fps 25 --video", *files, *store)
    run("report run --out page.html --detections run/detections/testing", *truth)
    page = (tmp_path / "page.html").read_text()
    assert all(f'"stream":"{stream}"' in page for stream in streams)
    assert "models:/streams/1 @now" in run("models show streams", *store)
