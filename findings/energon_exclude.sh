#!/usr/bin/env bash
# megatron-energon 7.4.1 with torch 2.13.0. Tried 2026-11-30, Debian, CPython 3.11.
# `.nv-meta/split.yaml` may exclude shards and single samples; WebdatasetSplits says a sample is written "<shard name>/<sample index>". By its index
# nothing is excluded, without a word; by its key, "<shard name>/<key>", it is.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check megatron-energon==7.4.1 torch==2.13.0
mkdir set
venv/bin/python - <<'END'
import webdataset

with webdataset.TarWriter("set/a.tar") as tar:
    for number in range(3):
        tar.write({"__key__": f"video_{number}", "txt": str(number)})
END
venv/bin/energon prepare --non-interactive --split-parts 'train:a.tar' --sample-type CrudeWebdataset set
venv/bin/python - <<'END'
import inspect
import logging
from pathlib import Path

from megatron.energon import (
    Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, get_loader, get_val_dataset, stateless,
)
from megatron.energon.flavors.webdataset.structs import WebdatasetSplits

logging.disable()


def keys(exclude):
    Path("set/.nv-meta/split.yaml").write_text(f"split_parts: {{train: [a.tar]}}\nexclude: {exclude}\n")
    found = []

    @stateless
    def cook(sample):
        found.append(sample["__key__"])
        return Sample(**basic_sample_keys(sample))

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(cook)]

        def batch(self, samples):
            return samples

        def encode_sample(self, sample):
            return sample

    config = WorkerConfig(rank=0, world_size=1, num_workers=0)
    for _ in get_loader(get_val_dataset("set", split_part="train", worker_config=config, batch_size=1, task_encoder=Encoder())):
        pass
    return found


by_index, by_key = keys(["a.tar/1"]), keys(["a.tar/video_1"])
print("exclude a.tar/1:", by_index)
print("exclude a.tar/video_1:", by_key)
assert "<shard name>/<sample index>" in inspect.getsource(WebdatasetSplits), "it is told otherwise now"
assert by_index == ["video_0", "video_1", "video_2"], "a sample is excluded by its index now"
assert by_key == ["video_0", "video_2"], "a sample is no longer excluded by its key"
print("as found: a sample is excluded by its key, not by its index")
END
