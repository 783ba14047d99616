"""Small videos, weights and extractors made for tests."""

import struct
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from aumn.video.i3d import shapes


def shade(number: int) -> int:
    """The grey of a frame, by which a test knows it again."""
    return (number * 9) % 250


def flat(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), shade(number), np.uint8)


def moving(number: int, width: int, height: int) -> np.ndarray:
    """A smooth pattern that moves to the right, two pixels a frame."""
    x, y = np.meshgrid(np.arange(width) - 2 * number, np.arange(height))
    return np.stack([127 + 100 * np.sin(x / 5 + colour) * np.cos(y / 7) for colour in range(3)], 2).astype(np.uint8)


def write_video(
    path: Path,
    times_s: Sequence[float],
    *,
    size: tuple[int, int] = (64, 48),
    picture: Callable[[int, int, int], np.ndarray] = flat,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    tick: Fraction = Fraction(1, 600),
    rate: int = 30,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "5"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = tick
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base, frame.duration = round(time_s / tick), tick, round(1 / rate / tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, matrix: Sequence[int]) -> Path:
    """Let an MP4 ask to be shown turned, as phones do."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    content[place : place + 16] = struct.pack(">4i", matrix[0], matrix[1], 0, matrix[2])
    content[place + 16 : place + 20] = struct.pack(">i", matrix[3])
    path.write_bytes(content)
    return path


def random_weights(channels: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Such that activations stay of a size through all layers."""
    made = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(channels).items():
        values = torch.randn(shape, generator=made)
        if name.endswith("conv3d.weight"):
            values *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            values = 0.5 + values.abs()
        else:
            values *= 0.1
        found[name] = values
    return found


def corners(windows_NCTHW: torch.Tensor) -> torch.Tensor:
    """An extractor of a test: the means over time of some places, quickly."""
    return windows_NCTHW.mean(2)[:, :, ::8, ::8].flatten(1)


def slow_corners(windows_NCTHW: torch.Tensor) -> torch.Tensor:
    time.sleep(0.15)
    return corners(windows_NCTHW)


def wrong(windows_NCTHW: torch.Tensor) -> torch.Tensor:
    return windows_NCTHW
