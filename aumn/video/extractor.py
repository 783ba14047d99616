"""The networks that read windows, opened by their settings: I3D for each stream, or the user's own function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from aumn.records import InputError
from aumn.video.i3d import I3D, WIDTH
from aumn.video.settings import OURS, ExtractorSettings, StreamSettings
from aumn.video.weights import CHANNELS, load

Reader = Callable[[Tensor], Tensor]
"""N x C x T x H x W in [-1, 1] to N x D; C is 3 for RGB and 2 for flow."""


@dataclass(frozen=True)
class Extractor:
    """Settings, complete with each stream's width and checksum, and the readers by stream."""

    settings: ExtractorSettings
    readers: Mapping[str, Reader]
    device: torch.device


def read_settings(facts: Any, source: str) -> ExtractorSettings:
    """Of an `extractor` object, such as a model's card has, or of what a user asks for; `source` names it in errors."""
    try:
        return ExtractorSettings.model_validate(facts)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{source}: {where or 'the settings'}: {problem['msg']} ({problem['input']!r}).") from None


def open_extractor(
    settings: ExtractorSettings, weights: Mapping[str, Path], device: torch.device | str = "cpu"
) -> Extractor:
    """Load the networks; a stream without a file in `weights` has those of the installed package.

    Where the settings know a stream's weights already, others are refused.
    """
    device = torch.device(device)
    readers: dict[str, Reader] = {}
    streams: dict[str, StreamSettings] = {}
    if stray := weights.keys() - (settings.streams.keys() if settings.name == OURS else ()):
        raise InputError(
            f"--weights {next(iter(stray))}=FILE is for no network: give weights of I3D, of streams "
            f"{','.join(settings.streams)}; an --extractor of yours loads its own."
        )
    function = None if settings.name == OURS else _function(settings.name)
    for stream, known in settings.streams.items():
        if function:
            readers[stream], found = function, _probe(function, settings, stream, device)
        else:
            loaded = load(stream, weights.get(stream))
            readers[stream] = _reader(I3D.of(loaded.arrays).to(device))
            found = StreamSettings(width=WIDTH, weights=loaded.sha256)
        if known not in {StreamSettings(), found}:
            raise InputError(
                f"Stream {stream} was extracted to {known.width} values by weights of checksum {known.weights}, and "
                f"these make {found.width} and have {found.weights}: name the right file, --weights {stream}=FILE."
            )
        streams[stream] = found
    return Extractor(settings.model_copy(update={"streams": streams}), readers, device)


def _reader(network: I3D) -> Reader:
    return lambda windows_NCTHW: network(windows_NCTHW).features_ND


def _function(name: str) -> Reader:
    """What `package.module:function` names, looked for where Python looks and in the folder one is in."""
    module, colon, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function) if colon and module else None
    except (ImportError, AttributeError) as error:
        raise InputError(f"--extractor {name} cannot be imported ({error}).") from None
    if not callable(found):
        raise InputError(f"--extractor is {name!r}; give i3d, or a function as package.module:function.")
    return found  # type: ignore[no-any-return]


def _probe(function: Reader, settings: ExtractorSettings, stream: str, device: torch.device) -> StreamSettings:
    """How wide the function's answer is, to one window without a picture."""
    shape = (1, CHANNELS[stream], settings.window_frames, settings.crop, settings.crop)
    with torch.inference_mode():
        answer = function(torch.zeros(shape, device=device))
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        has = "x".join(map(str, answer.shape)) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"--extractor {settings.name} made {has} of one window, 1 x C x T x H x W: it must make N x D of N windows."
        )
    return StreamSettings(width=answer.shape[1])
