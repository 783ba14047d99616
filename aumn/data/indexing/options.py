"""What a user may say about tars that others packed, declared once; `aumn index` has its arguments from here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from aumn.data.packing.options import check_bounds
from aumn.data.problems import check_on_bad
from aumn.records import InputError


@dataclass(frozen=True, eq=False, repr=False)
class IndexOptions:
    """Which tars, and what their members are; what is None is found out."""

    tars: Annotated[
        list[str],
        "WebDataset tars: a folder, files, patterns such as 'train-{000..007}.tar', also of addresses (https://), a "
        "wids index, or a folder that Energon prepared, whose splits are subsets.",
    ]
    out: Annotated[Path, "Shard set to make: a description and tables; the tars stay where they are."]
    streams: Annotated[
        str | None,
        "The streams and their members: rgb=rgb.npy,flow=flow.pth. Default: rgb and flow, or the only array; otherwise "
        "what there is is told.",
    ] = None
    annotations: Annotated[
        Path | None, "Ground truth as `aumn pack` reads it; it then tells subsets, labels, durations and times."
    ] = None
    labels: Annotated[
        str | None,
        "Without annotations, the member that tells a sample's labels, cls or txt, or a field, json:FIELD. Default: "
        "cls, or the JSON's labels, label or classes.",
    ] = None
    id: Annotated[
        str | None,
        "Videos' names: json:FIELD, or key, the whole key. Default: the JSON's id, video or video_id, else the key's "
        "last part where it is unique.",
    ] = None
    subset: Annotated[
        str | None, "Of all samples, without annotations; default: Energon's split, the JSON's or the tar's name."
    ] = None
    name: Annotated[str | None, "Name of the set; default: OUT's."] = None
    prefix: Annotated[str, "What samples' names have before the annotations', e.g. v_."] = ""
    suffix: Annotated[str, "What they have after them, e.g. _i3d."] = ""
    classes: Annotated[Path | None, "Text file, a class a line, in the order in which labels count them."] = None
    transposed: Annotated[bool | None, "Arrays are D x T; asked for where they look so."] = None
    stride_frames: Annotated[int, "Frames from one snippet to the next."] = 16
    window_frames: Annotated[int | None, "Frames that a snippet was read from; default: the stride."] = None
    fps: Annotated[float | None, "Frame rate of the features; default: the ground truth's, or the JSON's fps."] = None
    rescaled: Annotated[
        bool | None, "Features were resized to one length, whatever a video's; asked for where they look so."
    ] = None
    workers: Annotated[int | None, "Processes; default: one a core. Changes no byte."] = None
    on_bad: Annotated[
        str,
        "Samples that cannot be taken, instances that end before they start: stop, skip (leave them out) or swap (an "
        "instance's start and end).",
    ] = "stop"
    allow_pickle: Annotated[bool, "Read W-TALC's pickled annotations too."] = False

    def __post_init__(self) -> None:
        """InputError where a value cannot be meant."""
        if re.match(r"[a-z0-9+]+:/", str(self.out)):
            raise InputError(f"--out {self.out}: the set is a folder here; only the tars may lie elsewhere.")
        check_on_bad(self.on_bad)
        check_bounds(self)
        given = [name for name in ("labels", "subset") if getattr(self, name)]
        if self.annotations and given:
            raise InputError(f"--annotations tell labels and subsets: leave --{given[0]} out.")
        if self.id is not None and self.id != "key" and not all(self.id.partition(":")):
            raise InputError(f"--id {self.id}: give key, or json:FIELD.")
