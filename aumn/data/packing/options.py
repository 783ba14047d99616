"""What a user may say about packing, declared once; `aumn pack` has its arguments and their help from here.

Every start of every command reads this, so annotations are left as they are, and nothing is made that nobody uses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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


@dataclass(frozen=True, eq=False, repr=False)
class PackOptions:
    """What to pack, from where and how; what is None is found out."""

    features: Annotated[Path, "Folder or archive of features, each T x D; see --layout."]
    out: Annotated[
        str, "Shard set to make, e.g. data_shards/thumos14 or s3://bucket/thumos14, or to add to with --append."
    ]
    annotations: Annotated[Path, "Ground truth: ActivityNet's JSON, a CSV, or W-TALC's folder."]
    name: Annotated[str | None, "Name of the set; default: OUT's."] = None
    layout: Annotated[
        str | None, "folders (rgb/VIDEO), suffixes (VIDEO_rgb), single, joint or wtalc; default: found by looking."
    ] = None
    joint: Annotated[
        str | None, "Arrays are joint, of these streams' columns: flow,rgb or rgb=1024,flow=1024,audio=128."
    ] = None
    streams: Annotated[
        str | None,
        "The streams, one to eight, by their folders or endings: rgb,flow,audio, or rgb=RGB,flow=OF where these have "
        "other names. A single name takes a plain folder of arrays, and clip=. any folder, as that one stream. "
        "Default: rgb and flow, or the one of them that is there.",
    ] = None
    prefix: Annotated[str, "What features' names have before the annotations', e.g. v_."] = ""
    suffix: Annotated[str, "What they have after them, e.g. _i3d."] = ""
    crops: Annotated[str | None, "Of several crops of a video: mean, centre, or the number of one."] = None
    transposed: Annotated[bool | None, "Arrays are D x T; asked for where they look so."] = None
    rescaled: Annotated[
        bool | None, "Features were resized to one length, whatever a video's; asked for where they look so."
    ] = None
    stride_frames: Annotated[
        int | None, "Frames from one snippet to the next; default: as extraction.json or an archive tells, else 16."
    ] = None
    window_frames: Annotated[int | None, "Frames that a snippet was read from; default: the stride."] = None
    fps: Annotated[
        float | None,
        "Frame rate of the features; default: as their extraction or an archive tells, else the ground truth's.",
    ] = None
    classes: Annotated[Path | None, "Text file, a class a line, to fix their order."] = None
    dtype: Annotated[str | None, "float16 or float32; default: as `aumn extract` wrote, else float16."] = None
    shard_mb: Annotated[float, "Size to aim at for a shard, in MB."] = 256
    workers: Annotated[int | None, "Processes; default: one a core. Changes no byte."] = None
    trim_streams: Annotated[bool, "Cut a video's longer streams to the shortest."] = False
    on_bad: Annotated[
        str | None,
        "Videos with a missing or damaged stream, instances that end before they start: stop, skip (leave them out) or "
        "swap (an instance's start and end). Default: stop.",
    ] = None
    allow_pickle: Annotated[bool, "Read pickled arrays too; nothing but arrays is unpickled."] = False
    append: Annotated[
        bool, "Add to OUT, a shard set, the videos that it lacks; streams, dtype, stride and the like are the set's."
    ] = False

    def __post_init__(self) -> None:
        """InputError where a value cannot be meant."""
        if self.dtype not in {None, *DTYPES}:
            raise InputError(f"dtype {self.dtype!r} is not one that shards hold: choose {' or '.join(DTYPES)}.")
        check_on_bad(self.on_bad)
        if self.crops not in {None, "mean", "centre"} and not str(self.crops).isdecimal():
            raise InputError(f"crops is {self.crops!r}: choose mean, centre or the number of a crop.")
        if self.joint and (self.streams or self.layout not in {None, "joint", "wtalc"}):
            raise InputError("--joint names the streams that each array holds: leave --streams or --layout out.")
        check_bounds(self)


def check_bounds(options: Any) -> None:
    """InputError where a number cannot be meant, or two options contradict each other."""
    if options.rescaled and options.window_frames:
        raise InputError("window_frames has no meaning for rescaled features: leave one of the two out.")
    for name, (least, most) in BOUNDS.items():
        value = getattr(options, name, None)
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} is {value}; it must be from {least:g} to {most:,}.")
