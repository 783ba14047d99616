"""One rank of other loaders' epochs over the arrays of remote.py: python peers.py NAME ADDRESS FOLDER.

It runs in an environment of theirs. Each one's format is written first, by its own writer, where FOLDER has none. They
fetch by S3's protocol, without an account, from a web server that serves FOLDER: a bucket is a folder there.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

BATCH, SNIPPETS, WIDTH, CLASSES = 16, 183, 1024, 200
os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


def samples(folder: Path):
    """The arrays of the shard set, in its order."""
    import tarfile

    for tar in sorted((folder / "features_2gb").glob("*.tar")):
        sample = {}
        with tarfile.open(tar) as opened:
            for member in opened:
                content = opened.extractfile(member).read()
                kind = member.name.partition(".")[2]
                if kind == "json":
                    facts = json.loads(content)
                    label = int(facts["labels"][0].split()[1])
                    yield {"id": facts["id"], "label": label, "rgb": sample["rgb.npy"], "flow": sample["flow.npy"]}
                    sample = {}
                else:
                    sample[kind] = np.frombuffer(content[-SNIPPETS * WIDTH * 2 :], np.float16).reshape(SNIPPETS, WIDTH)


def collate(batch: list[dict]) -> tuple:
    features = {name: torch.as_tensor(np.stack([sample[name] for sample in batch])).float() for name in ("rgb", "flow")}
    labels_BC = torch.zeros(len(batch), CLASSES)
    labels_BC[range(len(batch)), [int(sample["label"]) for sample in batch]] = 1
    return [sample["id"] for sample in batch], features, labels_BC


def streaming(address: str, folder: Path, rank: int) -> torch.utils.data.DataLoader:
    import streaming as package

    out, local = folder / "peers" / "streaming", folder / "peers" / "streaming_local"
    if not out.exists():
        columns = {
            "id": "str",
            "label": "int",
            "rgb": f"ndarray:float16:{SNIPPETS},{WIDTH}",
            "flow": f"ndarray:float16:{SNIPPETS},{WIDTH}",
        }
        with package.MDSWriter(out=str(out), columns=columns, size_limit=256 * 10**6) as writer:
            for sample in samples(folder):
                writer.write(sample)
    if rank < 0:
        return None
    os.environ |= {
        "S3_ENDPOINT_URL": address,
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=2)
    if rank == 0:
        shutil.rmtree(local, ignore_errors=True)
    dist.barrier()
    dataset = package.StreamingDataset(
        remote="s3://peers/streaming", local=str(local), shuffle=True, batch_size=BATCH, predownload=8 * BATCH
    )
    return torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=int(os.environ.get("WORKERS", "1")), collate_fn=collate
    )


def litdata(address: str, folder: Path, rank: int) -> torch.utils.data.DataLoader:
    import litdata as package

    out = folder / "peers" / "litdata"
    if not out.exists():
        from litdata.streaming.writer import BinaryWriter

        out.mkdir(parents=True)
        writer = BinaryWriter(str(out), chunk_bytes=256 * 10**6)
        for number, sample in enumerate(samples(folder)):
            writer.add_item(number, sample)
        writer.done()
        writer.merge()
    if rank < 0:
        return None
    local = folder / "peers" / "litdata_local"
    if rank == 0:
        shutil.rmtree(local, ignore_errors=True)
    options = {"endpoint_url": address}
    dataset = package.StreamingDataset(
        "s3://peers/litdata", cache_dir=str(local), shuffle=True, storage_options=options
    )
    return package.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=int(os.environ.get("WORKERS", "1")), collate_fn=collate
    )


def main(name: str, address: str, folder: str, *only_write: str) -> None:
    rank = -1 if only_write else int(os.environ["RANK"])
    loader = {"streaming": streaming, "litdata": litdata}[name](address, Path(folder), rank)
    if loader is None:
        return
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(sum(len(ids) for ids, _, _ in loader)), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
