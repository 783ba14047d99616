"""What a user may say about packing, declared once; `aumn pack` has its arguments and their help from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from aumn.data.problems import check_on_bad
from aumn.records import InputError

DTYPES = ("float16", "float32")
BOUNDS = {
    "fps": (0.001, 100_000),
    "stride_frames": (1, 100_000),
    "window_frames": (1, 100_000),
    "shard_mb": (1e-6, 1_000_000),
    "workers": (1, 1024),
}
"""Far beyond what anybody needs, and within what the arithmetic and a machine can bear."""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What to pack, from where and how; what is None is found out."""

    features: Annotated[Path, "Folder or archive of features, each T x D; see --layout."]
    out: Annotated[Path, "Shard set to make, e.g. data_shards/thumos14."]
    annotations: Annotated[Path, "Ground truth: ActivityNet's JSON, a CSV, or W-TALC's folder."]
    name: Annotated[str | None, "Name of the set; default: OUT's."] = None
    layout: Annotated[
        str | None, "folders (rgb/VIDEO), suffixes (VIDEO_rgb), joint or wtalc; default: found by looking."
    ] = None
    joint: Annotated[
        str | None, "Arrays are joint, with these columns: flow,rgb or rgb=2048,flow=1024; default: rgb,flow."
    ] = None
    streams: Annotated[str | None, "The streams' folders or endings, where others than rgb=rgb,flow=flow."] = None
    prefix: Annotated[str, "What features' names have before the annotations', e.g. v_."] = ""
    suffix: Annotated[str, "What they have after them, e.g. _i3d."] = ""
    crops: Annotated[str | None, "Of several crops of a video: mean, centre, or the number of one."] = None
    transposed: Annotated[bool | None, "Arrays are D x T; asked for where they look so."] = None
    rescaled: Annotated[
        bool | None, "Features were resized to one length, whatever a video's; asked for where they look so."
    ] = None
    stride_frames: Annotated[
        int | None, "Frames from one snippet to the next; default: as an archive tells, else 16."
    ] = None
    window_frames: Annotated[int | None, "Frames that a snippet was read from; default: the stride."] = None
    fps: Annotated[
        float | None, "Frame rate of the features; default: as an archive tells, else the ground truth's."
    ] = None
    classes: Annotated[Path | None, "Text file, a class a line, to fix their order."] = None
    dtype: Annotated[str, "float16 or float32."] = "float16"
    shard_mb: Annotated[float, "Size to aim at for a shard, in MB."] = 256
    workers: Annotated[int | None, "Processes; default: one a core. Changes no byte."] = None
    trim_streams: Annotated[bool, "Cut a video's longer stream to the shorter."] = False
    on_bad: Annotated[
        str,
        "Videos with a missing or damaged stream, instances that end before they start: stop, skip (leave them out) or "
        "swap (an instance's start and end).",
    ] = "stop"
    allow_pickle: Annotated[bool, "Read pickled arrays too; nothing but arrays is unpickled."] = False

    def __post_init__(self) -> None:
        """InputError where a value cannot be meant."""
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is not one that shards hold: choose {' or '.join(DTYPES)}.")
        check_on_bad(self.on_bad)
        if self.crops not in {None, "mean", "centre"} and not str(self.crops).isdecimal():
            raise InputError(f"crops is {self.crops!r}: choose mean, centre or the number of a crop.")
        if self.rescaled and self.window_frames:
            raise InputError("window_frames has no meaning for rescaled features: leave one of the two out.")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; it must be from {least:g} to {most:,}.")
