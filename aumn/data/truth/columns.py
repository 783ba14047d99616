"""A million videos' ground truth in memory: columns, of which a video is made while somebody looks at it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping

from aumn.data.truth.annotated import AnnotatedVideo, Instance


class VideoColumns(Mapping[str, AnnotatedVideo]):
    """Videos by id, in the order in which they were added; 0.3 kB each, a third of what the objects take."""

    def __init__(self, videos: Iterable[AnnotatedVideo] = ()) -> None:
        self.numbers: dict[str, int] = {}
        self._name: dict[str, int] = {}  # of subsets and labels
        self._subset_N, self._duration_s_N, self._fps_N = array("i"), array("d"), array("d")  # NaN: not told
        self._first_N = array("i", [0])  # of its instances
        self._label_I, self._start_s_I, self._end_s_I = array("i"), array("d"), array("d")
        self._untimed: dict[int, tuple[str, ...]] = {}
        for video in videos:
            self.add(video)

    def add(self, video: AnnotatedVideo) -> None:
        """Put one more behind them."""
        number = self.numbers.setdefault(video.id, len(self.numbers))
        self._subset_N.append(self._code(video.subset))
        self._duration_s_N.append(math.nan if video.duration_s is None else video.duration_s)
        self._fps_N.append(math.nan if video.fps is None else video.fps)
        for instance in video.annotations:
            self._label_I.append(self._code(instance.label))
            self._start_s_I.append(instance.start_s)
            self._end_s_I.append(instance.end_s)
        self._first_N.append(len(self._label_I))
        if video.untimed:
            self._untimed[number] = video.untimed
        self._names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __contains__(self, video: object) -> bool:
        return video in self.numbers

    def __getitem__(self, video: str) -> AnnotatedVideo:
        number = self.numbers[video]
        self._names = self._names or [*self._name]
        rows = slice(self._first_N[number], self._first_N[number + 1])
        columns = (self._label_I[rows], self._start_s_I[rows], self._end_s_I[rows])
        instances = [Instance(self._names[label], *times) for label, *times in zip(*columns, strict=True)]
        duration_s, fps = self._duration_s_N[number], self._fps_N[number]
        return AnnotatedVideo(
            video,
            self._names[self._subset_N[number]],
            None if math.isnan(duration_s) else duration_s,
            None if math.isnan(fps) else fps,
            tuple(instances),
            self._untimed.get(number, ()),
        )

    def _code(self, name: str) -> int:
        return self._name.setdefault(name, len(self._name))
