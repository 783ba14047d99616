"""A shard set of 2.2 GB behind a web server: an epoch over two ranks, cold, against other loaders on the same arrays.

Every loader reads from one nginx on this machine and delivers float32 batches of 16 videos to each of two processes.
WebDataset is asked here; PEERS=PYTHON, of an environment that has them too, asks MosaicML Streaming and LitData, each
on its own format, which they fetch by S3's protocol from the same nginx. Then what our cache, order and link do.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import BUILD, REPOSITORY, Row, fresh_seed, main
from reading import BATCH, SNIPPETS, VIDEOS, WIDTH, find_or_make

from aumn.data.loader import TrainingLoader
from aumn.data.shards.shard_set import Access, ShardSet
from tests.stores import faulty, nginx

RANKS = 2
LINK_BYTES_S = 100e6 / 8
SLOW_VIDEOS = 132  # 100 MB, five steps an epoch


def measure() -> list[Row]:
    seed = fresh_seed()
    folder = find_or_make(BUILD / "features_2gb", VIDEOS, SNIPPETS, WIDTH, seed)
    size = ShardSet.open(folder).bytes
    with tempfile.TemporaryDirectory(dir=BUILD) as work, nginx(BUILD, Path(work)) as web:
        address, cache = f"{web.plain}/{folder.name}", BUILD / "cache"
        peers = {"webdataset": [sys.executable, __file__, "--side", "webdataset", address]}
        if python := os.environ.get("PEERS"):
            peers |= {
                name: [python, str(Path(__file__).with_name("peers.py")), name, web.plain, str(BUILD)]
                for name in ("streaming", "litdata")
            }
        else:
            print("PEERS is not set: MosaicML Streaming and LitData are not asked")
        cold_s, ranged_s, cached_s, theirs_s = [], [], [], {name: [] for name in peers}
        for _ in range(3):
            for name, command in peers.items():
                theirs_s[name].append(run_ranks(command))
            shutil.rmtree(cache, ignore_errors=True)
            before = web.sent_bytes()
            cold_s.append(run_ranks(our_side(address, seed, cache)))
            sent = web.sent_bytes() - before
            ranged_s.append(run_ranks(our_side(address, seed, BUILD / "no_cache", "range")))
            cached_s.append((run_ranks(our_side(address, seed, cache)), run_ranks(our_side(folder, seed, cache))))
        half = half_cache(web, address, seed, cache, size)
    shutil.rmtree(cache, ignore_errors=True)
    for name, seconds in {"ours": cold_s, "by ranges": ranged_s, **theirs_s}.items():
        print(
            f"{name:<12} {', '.join(f'{one:.2f}' for one in seconds)} s an epoch, {size / min(seconds) / 1e9:.2f} GB/s"
        )
    fastest = min(theirs_s, key=lambda name: min(theirs_s[name]))
    return [
        Row.of_runs(f"a cold epoch from nginx against {fastest}", ">= 1.5", cold_s, theirs_s[fastest], "s"),
        Row.of_runs("  the same by ranges, nothing kept", ">= 1.5", ranged_s, theirs_s[fastest], "s"),
        Row.of_runs("  the second epoch against a local set", ">= 0.95", *zip(*cached_s, strict=True), "s"),
        Row("  bytes sent in the cold one", sent / size, "<= 1.02", sent / 1e9, size / 1e9, "GB"),
        Row(
            "  with half the cache, order=shards: bytes an epoch", half / size, "<= 1.05", half / 1e9, size / 1e9, "GB"
        ),
        *slow_link(seed),
        resume(seed),
    ]


def our_side(
    place: object, seed: int, cache: Path, order: str = "random", gigabytes: float = 100.0, epochs: int = 1
) -> list[str]:
    return [sys.executable, __file__, "--side", "ours", *map(str, (place, seed, cache, order, gigabytes, epochs))]


def run_ranks(command: list[str]) -> float:
    """Seconds from the moment at which every rank is ready until the last one has read its share."""
    environment = {**os.environ, "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(RANKS)
    ]
    for rank in ranks:
        while (line := rank.stdout.readline().strip()) != "ready":
            assert line or rank.poll() is None, f"{command} ended"
    start_s = time.perf_counter()
    for rank in ranks:
        rank.stdin.write("go\n")
        rank.stdin.flush()
    counts = [json.loads(rank.stdout.readline()) for rank in ranks]
    elapsed_s = time.perf_counter() - start_s
    for rank in ranks:
        rank.stdin.close()
        rank.wait(timeout=60)
    assert sum(counts) > 0.99 * VIDEOS, counts  # LitData leaves out what fills no batch on every rank
    return elapsed_s


def read_ours(place: str, seed: str, cache: str, order: str, gigabytes: str, epochs: str) -> None:
    local = "://" not in place
    access = Access(order != "range", Path(cache), round(float(gigabytes) * 1e9))
    wait_to_start()
    shards = ShardSet.open(Path(place) if local else place, access)
    loader = TrainingLoader(
        shards, shards.indices("training"), global_videos=BATCH, micro_videos=None, snippets=None, seed=int(seed),
        rank=int(os.environ["RANK"]), world_size=RANKS, window_shards=1 if order == "shards" else None,
    )  # fmt: skip
    told(
        sum(
            len(batch.videos)
            for step in loader.steps(0, int(epochs) * loader.steps_per_epoch)
            for batch in step.micro_batches
        )
    )


def read_webdataset(address: str) -> None:
    """Each rank takes every other tar, as its `split_by_node` does; a shuffle would only cost it more."""
    import torch
    import webdataset as wds

    shards = ShardSet.open(address)
    urls = [f"{address}/{shard.file}" for shard in shards._description.shards][int(os.environ["RANK"]) :: RANKS]
    loader = open_theirs_of(urls, shards, wds)
    wait_to_start()
    count = 0
    for keys, rgb_BTD, flow_BTD, _ in loader:
        for features_BTD in (rgb_BTD, flow_BTD):
            torch.as_tensor(features_BTD).float()
        count += len(keys)
    told(count)


def open_theirs_of(urls: list[str], shards: ShardSet, wds: object):
    classes = {label: number for number, label in enumerate(shards.classes)}

    def multi_hot(facts: dict) -> np.ndarray:
        labels_C = np.zeros(len(classes), np.float32)
        labels_C[[classes[label] for label in facts["labels"]]] = 1
        return labels_C

    dataset = (
        wds.WebDataset(urls, shardshuffle=False, nodesplitter=None)
        .decode()
        .to_tuple("__key__", "rgb.npy", "flow.npy", "json")
        .map(lambda sample: (*sample[:3], multi_hot(sample[3])))
        .batched(BATCH // RANKS)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=0)


def wait_to_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def told(count: int) -> None:
    print(json.dumps(count), flush=True)
    sys.stdin.read()


def half_cache(web, address: str, seed: int, cache: Path, size: int) -> float:
    """Bytes of the second of two epochs."""
    sent = []
    for epochs in (1, 2):
        shutil.rmtree(cache, ignore_errors=True)
        before = web.sent_bytes()
        run_ranks(our_side(address, seed, cache, "shards", size / 2e9, epochs))
        sent.append(web.sent_bytes() - before)
    return sent[1] - sent[0]


def slow_link(seed: int) -> list[Row]:
    """Training on two ranks from behind a link of 100 Mbit/s, with a cache that holds the set of 100 MB."""
    folder = find_or_make(BUILD / "features_100mb", SLOW_VIDEOS, SNIPPETS, WIDTH, seed)
    cache, run = BUILD / "cache", BUILD / "slow_run"
    for path in (cache, run):
        shutil.rmtree(path, ignore_errors=True)
    with faulty(folder) as server:
        server.bytes_s = LINK_BYTES_S
        settings = ["run.steps=50", "run.log_every=5", f"run.folder={run}", f"data.cache.folder={cache}"]
        config = BUILD / "slow.yaml"
        config.write_text(
            f"data: {{shards: '{server.address}', snippets: 64}}\nrun: {{folder: x}}\ntracking: {{enabled: false}}\n"
        )
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        command = [*launch, "-m", "aumn", "train", str(config), *settings]
        subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, timeout=600)
        link_s = server.sent_bytes / LINK_BYTES_S
    first, *later = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    took_s = SLOW_VIDEOS / first["videos_per_s"] * first["data_wait_share"]
    share = sum(line["data_wait_share"] for line in later) / len(later)
    return [
        Row("  100 Mbit/s: first epoch waits, against the link's time", took_s / link_s, "<= 1.1", took_s, link_s, "s"),
        Row("  100 Mbit/s: share of later epochs that waits", share, "<= 0.03", share, 1.0, "share"),
    ]


def resume(seed: int) -> Row:
    """From an empty cache to the first video of a step in mid-epoch, by the order of tars; beside fetching one tar."""
    folder, cache = BUILD / "features_2gb", BUILD / "cache"
    whole = ShardSet.open(folder)
    with tempfile.TemporaryDirectory(dir=BUILD) as work, nginx(BUILD, Path(work)) as web:
        shutil.rmtree(cache, ignore_errors=True)
        start_s = time.perf_counter()
        whole_tar = ShardSet.open(f"{web.plain}/{folder.name}", Access(True, cache))
        whole_tar.read(0)
        one_s = time.perf_counter() - start_s
        shutil.rmtree(cache, ignore_errors=True)
        start_s = time.perf_counter()
        shards = ShardSet.open(f"{web.plain}/{folder.name}", Access(True, cache))
        loader = TrainingLoader(
            shards, shards.indices("training"), global_videos=BATCH, micro_videos=1, snippets=None, seed=seed,
            rank=2, world_size=4, window_shards=4,
        )  # fmt: skip
        _, (first, *_), _ = loader._draws_of(41)
        index = int(first[0][0])
        found = shards.read(index)
        took_s = time.perf_counter() - start_s
        expected = whole.read(index)
        assert all(np.array_equal(found[stream], expected[stream]) for stream in expected)
    shutil.rmtree(cache, ignore_errors=True)
    return Row("  to the first video of step 41 at 4 ranks, less one tar", took_s - one_s, "<= 2", took_s, one_s, "s")


if __name__ == "__main__":
    main(measure, ours=read_ours, webdataset=read_webdataset)
