"""The typed hand-offs between stages; this file imports nothing of ours, and every stage may import it.

Shape letters, here and everywhere: B videos, T snippets (padded to the longest), D input width, F embedding width,
A = F/m key width, K action units, R bottleneck of the value encoder, C classes, N rows of a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


MOST_S = 1e9
"""No time or duration is further from 0 (32 years, or a year of frames): beyond, differences lose their fractions."""

MOST_STREAMS = 8
STREAM_NAME = re.compile(r"[a-z][a-z0-9_]{0,15}")  # WebDataset makes small letters of others
JOINT = "joint"
"""The network that sees the features of all streams, among those of a stream each."""
NO_STREAMS = (
    "json joint default all add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double "
    "dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items "
    "keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop "
    "register_buffer register_module requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty "
    "train training type update values xpu zero_grad"
)
"""What stands beside streams in a sample or a setting, and what a torch module with a part a stream has of its own."""

HELD_OUT = "held_out"
"""In place of a subset's name: the videos to evaluate on that are held out of training."""

VIDEO_ENDINGS = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Of files that are taken for videos."""


Place = Path | str
"""Where a shard set lies: a folder, or an address of a store such as s3://bucket/set; see `place_of`."""


class InputError(ValueError):
    """Something a user gave cannot be used; the message names it, its value, the rule and the remedy (exit code 2)."""

    teller: int | None = None  # the rank that tells it, once the ranks have agreed on one; see `runtime.ending`
    code = 2

    def __init__(self, message: str, *details: str) -> None:
        super().__init__("\n  ".join((message, *details)))


def place_of(text: str | Path) -> Place:
    """A user's words for where a shard set lies: what has :// is an address, which no Path could hold."""
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    return Path(text.removeprefix("file://")) if text.startswith("file://") else text.rstrip("/")


def check_streams(names: Collection[str]) -> None:
    """InputError unless these can be streams: names of tar members, of columns and of parameters begin with them."""
    bad = [name for name in names if not STREAM_NAME.fullmatch(name) or name in NO_STREAMS.split()]
    if bad:
        raise InputError(
            f"A stream cannot be named {bad[0]!r}: give a small letter and up to 15 more, digits or underscores, and "
            "no word that has a meaning already, such as json, joint or default."
        )
    if not 0 < len(names) <= MOST_STREAMS or len(set(names)) < len(names):
        raise InputError(
            f"{', '.join(names) or 'Nothing'} cannot be the streams of a set: give one to {MOST_STREAMS}, each once."
        )


class Stopped(BaseException):
    """This process was asked to stop and does, or has lost other ranks; the same command goes on later.

    No Exception, so that no library takes it for a failure of its own; see `runtime.preemption`.
    """

    teller: int | None = None

    def __init__(self, sentence: str, *, signal: int, code: int) -> None:
        super().__init__(sentence)
        self.signal, self.code = signal, code


class Clock(NamedTuple):
    """When snippets are: each is read from `window_frames` frames, and the next one's begin `stride_frames` later."""

    stride_frames: int
    window_frames: int

    def seconds(self, snippet: Any, fps: float) -> Any:
        """When the time that a snippet stands for begins, half a stride before its window's middle; it ends where the
        next one's begins.
        """
        return snippet * (self.stride_frames / fps) + (self.window_frames - self.stride_frames) / 2 / fps

    def lasts_s(self, snippets: Any, fps: Any) -> Any:
        """How long a video is of which so many snippets were read, to its last window's end."""
        return ((snippets - 1) * self.stride_frames + self.window_frames) / fps

    def __str__(self) -> str:
        window = f", each of {self.window_frames}" if self.window_frames != self.stride_frames else ""
        return f"every {self.stride_frames} frames{window}"


@dataclass(frozen=True, slots=True)
class Video:
    """A video as training and localization see it: which actions it holds, never when.

    `labels` are indices into the shard set's ordered classes; `Clock` says when a snippet is.
    """

    id: str
    subset: str
    snippets: int
    labels: tuple[int, ...]
    duration_s: float
    fps: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Videos of one forward pass. Features are zero and `mask_BT` is False beyond a video's own length; B may be 0.

    `seeds` holds one integer a video, a function of (run seed, epoch, video): whatever is random inside the model is
    drawn from it, so results do not depend on which rank or micro-batch a video falls into.
    """

    videos: tuple[Video, ...]
    lengths: tuple[int, ...]  # snippets of each that are here: all of them, or as many as were drawn
    seeds: tuple[int, ...]
    features: dict[str, Tensor]  # stream name -> B x T x D
    mask_BT: Tensor  # bool
    labels_BC: Tensor  # float multi-hot

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the copies overlap with compute where the memory is pinned."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        features = {stream: move(features_BTD) for stream, features_BTD in self.features.items()}
        return replace(self, features=features, mask_BT=move(self.mask_BT), labels_BC=move(self.labels_BC))


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step's data for one rank: its micro-batches, and the videos the step sees over all ranks."""

    index: int
    epoch: int
    global_videos: int
    micro_batches: tuple[Batch, ...]
    damaged: Mapping[str, str] = field(default_factory=dict)  # videos that are left out, and why; of this rank alone
    problem: InputError | None = None  # why there are no micro-batches


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor to be kept of which each rank of a bank holds some rows; the first one's come first.

    A checkpoint's writer is that rank. It asks for the others' block by block (`rest`), and says that it needs no more
    (`end`); meanwhile they `serve`, with what `own` was when the checkpoint was due.
    """

    own: Tensor
    shape: tuple[int, ...]  # of the whole
    rest: Callable[[], Iterator[Tensor]]
    end: Callable[[], None]
    serve: Callable[[Sequence[Tensor]], None]  # all that are shared out, in the order of the checkpoint


def is_bank(name: str) -> bool:
    """Whether what a checkpoint calls so has a row a unit: M of Eq. 2, and what an optimizer has of it but its step."""
    return ".memory.units_KF" in name and not name.endswith("/step")


def own_rows(count: int, place: int, ranks: int) -> slice:
    """Which of so many rows the rank at a place holds; where they do not divide, the first ranks hold one more."""
    each, more = divmod(count, ranks)
    first = place * each + min(place, more)
    return slice(first, first + each + (place < more))


@dataclass(frozen=True, slots=True)
class Scores:
    """What one stream's network says of a batch while it trains; see `losses`."""

    logits_BC: Tensor  # Eq. 8 before its softmax or sigmoids
    attention_BT: Tensor  # Eq. 7, zero on padding
    unit_sums_BK: Tensor  # sum over t of Eq. 5; of a bank over ranks, the group's videos with this rank's units
    units_KF: Tensor  # M of Eq. 2; of a bank over ranks, this rank's rows
    unit_scale: float  # as large as this times M, it enters Eq. 10
    cas_BTC: Tensor | None = None  # Eq. 15 without gradient, where pseudo-labels or prototypes need it
    likeness_BTP: Tensor | None = None  # of each snippet to each class's prototype and, last, to the background's


@dataclass(frozen=True, slots=True)
class VideoScores:
    """What one stream's network says of one whole video, as numpy arrays on the host; see `proposals`."""

    video_C: np.ndarray  # Eq. 8
    attention_T: np.ndarray  # Eq. 7
    cas_TC: np.ndarray  # Eq. 15 after its softmax over classes or its sigmoids


@dataclass(frozen=True, slots=True)
class Detections:
    """Detected instances as columns of equal length N; rows come in any order.

    `video_N` and `label_N` index `videos` and `labels`; times are seconds (or any unit the ground truth shares).
    """

    videos: Sequence[str]
    labels: Sequence[str]
    video_N: np.ndarray  # int32
    label_N: np.ndarray  # int32
    score_N: np.ndarray  # float64
    start_s_N: np.ndarray  # float64
    end_s_N: np.ndarray  # float64

    def __len__(self) -> int:
        return len(self.score_N)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """In the order in which the class takes them."""
        return self.video_N, self.label_N, self.score_N, self.start_s_N, self.end_s_N


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Annotated instances as columns of equal length N, over every video of the population, annotated or not."""

    videos: Sequence[str]
    labels: Sequence[str]
    video_N: np.ndarray  # int32
    label_N: np.ndarray  # int32
    start_s_N: np.ndarray  # float64
    end_s_N: np.ndarray  # float64
    durations_s: Mapping[str, float] = field(default_factory=dict)  # of the videos of which it is told
    untimed: Collection[str] = frozenset()  # more videos: nobody annotated when their actions happen
    left_out: int = 0  # instances that end before they start, of which a user has decided
    swapped: int = 0

    def __len__(self) -> int:
        return len(self.label_N)
