"""Arrays of more or fewer dimensions than two: what makes them snippets x width, known from the shapes of all of them.

Shape letters: T snippets, D width of a stream.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from aumn.records import InputError

CROPS = (5, 10)
CENTRE = 4  # of torchvision's FiveCrop and TenCrop
USUAL_WIDTHS = {200, 400, 512, 768, 1024, 1408, 2048, 2304, 2816, 3072, 4096}

Shape = tuple[int, ...]


class Form(NamedTuple):
    """What to do with an array, in this order; one of a single dimension is then a single snippet."""

    ones: tuple[int, ...] = ()  # axes that are 1 long in all arrays: dropped
    crop_axis: int | None = None
    crop: int | None = None  # which of the crops; None: their mean
    is_transposed: bool = False

    def shape(self, shape: Shape) -> Shape:
        """What `apply` makes of an array of this shape."""
        left = [length for axis, length in enumerate(shape) if axis not in self.ones]
        if self.crop_axis is not None:
            del left[self.crop_axis]
        if len(left) == 1:
            return (1, *left)
        return tuple(reversed(left)) if self.is_transposed else tuple(left)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array as T x D, where its shape allows."""
        array = array.squeeze(self.ones)
        if self.crop is not None:
            array = array.take(self.crop, self.crop_axis)
        elif self.crop_axis is not None:
            array = array.mean(self.crop_axis, dtype=np.promote_types(array.dtype, np.float32))
        if array.ndim == 1:
            return array[None]
        return array.T if self.is_transposed else array


def find_forms(
    source: object, shapes: Collection[Shape], crops: str | None, transposed: bool | None
) -> dict[int, Form]:
    """The form of the arrays of each number of dimensions; InputError where it has to be asked for."""
    forms = {}
    for dimensions in {len(shape) for shape in shapes}:
        alike = [shape for shape in shapes if len(shape) == dimensions]
        shared = [{shape[axis] for shape in alike} for axis in range(dimensions)]
        ones = tuple(axis for axis in range(dimensions) if dimensions > 2 and shared[axis] == {1})
        left = [lengths for axis, lengths in enumerate(shared) if axis not in ones]
        axes = [axis for axis in (0, 1) if len(left) == 3 and any(left[axis] == {count} for count in CROPS)]
        form = Form(ones)
        if len(axes) == 1:
            form = form._replace(crop_axis=axes[0], crop=_choose(source, crops, alike[0], min(left[axes[0]])))
        forms[dimensions] = form
    tables = [forms[len(shape)].shape(shape) for shape in shapes if len(shape) > 1]
    rows, columns = ({shape[axis] for shape in tables if len(shape) == 2} for axis in (0, 1))
    is_suspect = len(tables) > 1 and len(rows) == 1 and rows <= USUAL_WIDTHS and not columns <= USUAL_WIDTHS
    if transposed is None and is_suspect:
        raise InputError(
            f"{source}: every array has {min(rows)} rows and {_range(columns)} columns, which looks like width x "
            "snippets: give --transposed if it is, or --no-transposed if rows are snippets."
        )
    return {dimensions: form._replace(is_transposed=bool(transposed)) for dimensions, form in forms.items()}


def _choose(source: object, crops: str | None, shape: Shape, count: int) -> int | None:
    """Which of the crops; None for their mean."""
    if crops is None:
        raise InputError(
            f"{source}: arrays have shapes such as {shape}, {count} crops of each snippet: give --crops mean, --crops "
            f"centre, which is number {CENTRE} as torchvision has it, or the number of one, from 0."
        )
    crop = CENTRE if crops == "centre" else None if crops == "mean" else int(crops)
    if crop is not None and crop >= count:
        raise InputError(
            f"--crops {crop} is none of the {count} crops, which are counted from 0: give one below {count}."
        )
    return crop


def _range(numbers: set[int]) -> str:
    return f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
