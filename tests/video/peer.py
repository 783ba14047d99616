"""Features and speed beside piergiaj/pytorch-i3d (commit 05783d1), whose checkout is the argument; RGB, on a CPU.

    python -m tests.video.peer CHECKOUT CLIP

The peer reads JPEGs and needs a GPU as it stands. Here its network, with the same weights, reads what OpenCV decodes
and scales, window by window (its script's batch is 1), without a thread that is ahead. Its script reads whole videos at
once, which costs as much a frame.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from aumn.video import weights
from aumn.video.extract import extract_video
from aumn.video.extractor import open_extractor, read_settings

WINDOW, SIDE, CROP = 16, 256, 224


def main() -> None:
    checkout, clip = sys.argv[1:]
    sys.path.insert(0, checkout)
    from pytorch_i3d import InceptionI3d

    arrays = weights.load("rgb", None).arrays
    peer = InceptionI3d(400, in_channels=3).eval()
    missing = peer.load_state_dict(dict(arrays), strict=False)
    assert all(name.endswith(("bn.weight", "num_batches_tracked")) for name in missing.missing_keys), missing
    assert not missing.unexpected_keys, missing
    settings = read_settings({"streams": {"rgb": {}}, "dtype": "float32", "fps": None}, "peer")
    ours, took = open_extractor(settings, {}), {"ours": [], "peer": []}
    for _ in range(3):
        start_s = time.perf_counter()
        found = extract_video(Path(clip), ours)
        took["ours"].append(time.perf_counter() - start_s)
        start_s = time.perf_counter()
        with torch.inference_mode():
            features = [peer.extract_features(window)[0, :, 0, 0, 0] for window in windows(clip)]
        took["peer"].append(time.perf_counter() - start_s)
    expected = torch.stack(features).numpy()
    frames = WINDOW * len(expected)
    rates = {name: frames / min(seconds) for name, seconds in took.items()}
    print(f"{frames} frames; frames a second: ours {rates['ours']:.1f}, peer {rates['peer']:.1f}: ", end="")
    print(f"{rates['ours'] / rates['peer']:.2f} times; features from OpenCV's own frames differ by ", end="")
    print(f"{np.abs(expected - found.streams['rgb']).max():.1e} at most")
    same = [torch.from_numpy(window) for window in np.stack([w.numpy()[0] for w in windows(clip)])[:4]]
    with torch.inference_mode():
        theirs = torch.cat([peer.extract_features(window[None])[:, :, 0, 0, 0] for window in same])
        difference = (theirs - ours.readers["rgb"](torch.stack(same))).abs().max()
    print(f"of the same frames, features differ by {difference:.1e} at most")
    assert difference < 1e-3


def windows(clip: str):
    """1 x 3 x T x H x W, in [-1, 1], of whole windows."""
    video, frames = cv2.VideoCapture(clip), []
    while (read := video.read())[0]:
        height, width = read[1].shape[:2]
        scale = SIDE / min(height, width)
        picture = cv2.resize(read[1], (round(width * scale), round(height * scale)))[:, :, ::-1]
        top, left = ((size - CROP) // 2 for size in picture.shape[:2])
        frames.append((picture[top : top + CROP, left : left + CROP] / 255.0) * 2 - 1)
        if len(frames) == WINDOW:
            yield torch.from_numpy(np.asarray(frames, np.float32).transpose(3, 0, 1, 2)[None].copy())
            frames = []


if __name__ == "__main__":
    main()
