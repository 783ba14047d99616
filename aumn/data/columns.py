"""A million things as columns: texts in one piece of memory, and objects that are made while somebody looks at them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class Made(Sequence[Item], Generic[Item]):
    """What `make` makes of each of the places, anew whenever it is looked at."""

    def __init__(self, make: Callable[[int], Item], places: Iterable[int]) -> None:
        self._make = make
        self._places = np.fromiter(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        assert not isinstance(index, slice)
        return self._make(int(self._places[index]))

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, map(int, self._places))

    def take(self, indices: Iterable[int]) -> Made[Item]:
        """Those at some indices."""
        return Made(self._make, self._places[np.fromiter(indices, np.int64)])


class Texts(Sequence[str]):
    """Texts behind each other as UTF-8, a tenth of the memory of as many objects."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._content, self._bounds = bytearray(), array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Put one more behind them."""
        self._content += text.encode("utf-8", "surrogatepass")  # names of files are not always UTF-8
        self._bounds.append(len(self._content))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: Any) -> Any:
        assert not isinstance(index, slice)
        first = range(len(self))[index]
        return self._content[self._bounds[first] : self._bounds[first + 1]].decode("utf-8", "surrogatepass")
