"""One video to its features: frames are decoded, and flow is found, by other threads while the network reads.

Memory does not depend on how long a video is: it holds a window, and a few batches of windows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from aumn.records import InputError
from aumn.video.extractor import Extractor
from aumn.video.flow import centre, with_flow
from aumn.video.frames import Frames
from aumn.video.settings import ExtractorSettings

BATCH = 4
AHEAD = 2  # batches that wait for the network

T = TypeVar("T")


class VideoFeatures(NamedTuple):
    """What was read of a video: `fps` is the rate of the frames that windows were cut of."""

    streams: dict[str, np.ndarray]  # T x D
    fps: float
    frames: int  # that were decoded
    duration_s: float  # until the last one's end


def extract_video(
    path: Path, extractor: Extractor, *, batch: int = BATCH, advance: Callable[[float], None] = lambda _share: None
) -> VideoFeatures:
    """Snippet t is read from frames t * stride to t * stride + window; what is left at the end is left out.

    `advance` is told which share of the video is done. InputError names the video, and what is wrong with it.
    """
    settings = extractor.settings
    frames = Frames(path, fps=settings.fps, side=settings.side)
    parts: dict[str, list[np.ndarray]] = {stream: [] for stream in settings.streams}
    done = 0
    try:
        for group in _ahead(_batched(windows(frames, settings), batch)):
            for stream, part in parts.items():
                part.append(_read(np.stack([window[stream] for window in group]), extractor, stream))
            done += len(group)
            if frames.declared_s:
                rate = settings.fps or frames.frames / max(frames.duration_s, 1e-9)
                advance(min(1.0, done * settings.stride_frames / rate / frames.declared_s))
        if not done:
            raise InputError(
                f"lasts {frames.duration_s:.2f} s, less than one window of {settings.window_frames} frames at "
                f"{frames.fps:g} a second: leave it out."
            )
        features = {stream: np.concatenate(part) for stream, part in parts.items()}
        for stream, values_TD in features.items():
            if not np.isfinite(values_TD).all():
                raise InputError(f"makes values of stream {stream} that are no {settings.dtype}: try --dtype float32.")
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    return VideoFeatures(features, frames.fps, frames.frames, frames.duration_s)


def windows(frames: Iterable[np.ndarray], settings: ExtractorSettings) -> Iterator[dict[str, np.ndarray]]:
    """T x H x W x C by stream: RGB as uint8, flow in [-1, 1]."""
    kept: deque[dict[str, np.ndarray]] = deque(maxlen=settings.window_frames)
    for number, frame in enumerate(_cropped(frames, settings), 1):
        kept.append(frame)
        if number >= settings.window_frames and (number - settings.window_frames) % settings.stride_frames == 0:
            yield {stream: np.stack([one[stream] for one in kept]) for stream in frame}


def _cropped(frames: Iterable[np.ndarray], settings: ExtractorSettings) -> Iterator[dict[str, np.ndarray]]:
    """Each frame's middle by stream, H x W x C."""
    wanted, crop = settings.streams.keys(), settings.crop
    pairs = with_flow(frames, crop) if "flow" in wanted else ((frame, frame) for frame in frames)
    for frame, flow in pairs:
        made = {"rgb": centre(frame, crop), "flow": flow}
        yield {stream: made[stream] for stream in wanted}


def _batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, made by a thread that is a few ahead."""
    end = object()
    thread = ThreadPoolExecutor(1)
    try:
        waiting = deque(thread.submit(next, items, end) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _read(windows_NTHWC: np.ndarray, extractor: Extractor, stream: str) -> np.ndarray:
    windows_NCTHW = torch.from_numpy(windows_NTHWC).to(extractor.device).permute(0, 4, 1, 2, 3)
    if stream == "rgb":
        windows_NCTHW = windows_NCTHW.float() / 127.5 - 1
    with torch.inference_mode(), np.errstate(over="ignore"):
        found_ND = extractor.readers[stream](windows_NCTHW).float().cpu().numpy()
        # A copy in any case: what a reader answers with may be a part of much more.
        return found_ND.astype(extractor.settings.dtype)
