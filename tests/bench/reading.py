"""Reading a shard set larger than 2 GB from page cache: our loader against WebDataset's own on the same tars.

Both deliver float32 batches of 32 videos with two streams and multi-hot labels, ready to train on. All videos have 183
snippets, which suits WebDataset best: its own batching serves, without padding. Then how long real training waits.
"""

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from harness import BUILD, Row, fresh_seed, main, take_turns

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.model.aumn import StreamNetworks
from aumn.runtime.engines import build_engine
from aumn.runtime.ranks import Ranks
from aumn.training.finite import FiniteWatch
from aumn.training.loop import Run, train
from aumn.training.resume import Progress
from tests.training.footprint_steps import CARD

VIDEOS, SNIPPETS, WIDTH, CLASSES, BATCH = 2900, 183, 1024, 200, 32
STREAMS = ("rgb", "flow")
TRAINING_STEPS = 24


def measure() -> list[Row]:
    seed = fresh_seed()
    folder = find_or_make(BUILD / "features_2gb", VIDEOS, SNIPPETS, WIDTH, seed)
    check_same(folder, seed)
    total_bytes = sum(len(tar.read_bytes()) for tar in folder.glob("*.tar"))  # and now they are in page cache
    sides = {f"WebLoader, {workers} workers": partial(read_theirs, folder, workers) for workers in (0, 1, 2)}
    best_s = take_turns(2, ours=partial(read_ours, folder, seed), **sides)
    for name, seconds in best_s.items():
        print(f"{name:<20} {VIDEOS / seconds:7,.0f} videos/s, {total_bytes / seconds / 1e9:.2f} GB/s of float16")
    ours, theirs = VIDEOS / best_s.pop("ours"), VIDEOS / min(best_s.values())
    share, wait_s, elapsed_s = training_waits(folder, seed)
    return [
        Row("reading against WebLoader at its best", ours / theirs, ">= 3", ours, theirs, "videos/s"),
        Row("  share of training that waits for data", share, "<= 0.03", wait_s, elapsed_s, "s"),
    ]


def find_or_make(folder: Path, videos: int, snippets: int, width: int, seed: int) -> Path:
    """The shard set, packed by our own writer; its sources are links to a hundred files, of which tars hold copies."""
    if folder.exists():
        return folder
    sources = folder.with_name(folder.name + "_sources")
    shutil.rmtree(sources, ignore_errors=True)
    rng = np.random.default_rng(seed)
    for stream in STREAMS:
        (sources / stream).mkdir(parents=True)
        for number in range(videos):
            path = sources / stream / f"video{number:05d}.npy"
            if number < 100:
                np.save(path, np.maximum(rng.standard_normal((snippets, width), np.float32), 0).astype(np.float16))
            else:
                os.link(sources / stream / f"video{number % 100:05d}.npy", path)
    database = {
        f"video{number:05d}": {
            "subset": "training",
            "fps": 25.0,
            "annotations": [{"label": f"class {number % CLASSES:03d}", "segment": [0.0, 1.0]}],
        }
        for number in range(videos)
    }
    (sources / "gt.json").write_text(json.dumps({"database": database}))
    pack(sources, folder, sources / "gt.json", name="bench")
    shutil.rmtree(sources)
    return folder


def open_ours(folder: Path, seed: int) -> TrainingLoader:
    shards = ShardSet.open(folder)
    indices = shards.indices("training")
    cut = {"micro_videos": None, "rank": 0, "world_size": 1}
    return TrainingLoader(shards, indices, global_videos=min(BATCH, len(indices)), snippets=None, seed=seed, **cut)


def read_ours(folder: Path, seed: int) -> int:
    loader = open_ours(folder, seed)
    return sum(step.global_videos for step in loader.steps(0, loader.steps_per_epoch))


def open_theirs(folder: Path, workers: int):
    """As WebDataset's documentation has it; a shuffle would only cost it more."""
    classes = {label: number for number, label in enumerate(ShardSet.open(folder).classes)}

    def multi_hot(facts: dict) -> np.ndarray:
        labels_C = np.zeros(len(classes), np.float32)
        labels_C[[classes[label] for label in facts["labels"]]] = 1
        return labels_C

    dataset = (
        wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
        .decode()
        .to_tuple("__key__", "rgb.npy", "flow.npy", "json")
        .map(lambda sample: (*sample[:3], multi_hot(sample[3])))
        .batched(BATCH)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def read_theirs(folder: Path, workers: int) -> int:
    count = 0
    for keys, rgb_BTD, flow_BTD, _labels_BC in open_theirs(folder, workers):
        for features_BTD in (rgb_BTD, flow_BTD):
            torch.as_tensor(features_BTD).float()
        count += len(keys)
    return count


def check_same(folder: Path, seed: int) -> None:
    """Some videos of a random step, as read by either."""
    loader = open_ours(folder, seed)
    (batch,) = loader.load(seed % loader.steps_per_epoch).micro_batches
    place_of = {video.id: place for place, video in enumerate(batch.videos)}
    found = 0
    for keys, rgb_BTD, flow_BTD, labels_BC in open_theirs(folder, 0):
        for row, key in enumerate(keys):
            if key in place_of:
                found += 1
                place = place_of[key]
                for stream, features_BTD in (("rgb", rgb_BTD), ("flow", flow_BTD)):
                    theirs_TD = torch.as_tensor(features_BTD)[row].float()
                    assert torch.equal(batch.features[stream][place], theirs_TD), f"{stream} of {key} differs"
                assert torch.equal(batch.labels_BC[place], torch.as_tensor(labels_BC)[row])
    assert found == len(place_of)


def training_waits(folder: Path, seed: int) -> tuple[float, float, float]:
    """The share of a short real training run that waits for data, the first step's included; both in seconds."""
    loader = open_ours(folder, seed)
    run = {"folder": folder, "steps": TRAINING_STEPS, "log_every": TRAINING_STEPS}
    config = RunConfig.model_validate({"data": {"shards": folder}, "run": run})
    network = StreamNetworks.build(dict.fromkeys(STREAMS, WIDTH), CLASSES, config.model)
    settings = {"optimizer": config.optimizer, "engine": config.engine}
    engine = build_engine("single", network, Ranks(), torch.device("cpu"), **settings)
    start_s = time.perf_counter()
    train(Run(config, engine, loader, FiniteWatch(engine), Progress(CARD)))
    elapsed_s = time.perf_counter() - start_s
    return loader.wait_s / elapsed_s, loader.wait_s, elapsed_s


def check() -> None:
    import tempfile

    seed = fresh_seed()
    with tempfile.TemporaryDirectory() as folder:
        check_same(find_or_make(Path(folder) / "small", 40, 9, 12, seed), seed)


if __name__ == "__main__":
    main(measure)
