"""One video's arrays through a model: no shard set, no ranks, nothing of training.

A registered model ships this file and the rooms that it imports (`SHIPPED` of `tracking.registration`), and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from aumn.inference.proposals import VideoDetections, detect
from aumn.model.aumn import StreamNetworks
from aumn.model.bank import Bank, Group
from aumn.records import Batch, InputError, Video
from aumn.runfolder.checkpoint import ModelCard, read_card, read_model


def load_network(folder: Path, group: Group | None = None) -> tuple[StreamNetworks, ModelCard]:
    """The network of a model artifact or checkpoint, ready to localize, with its card; its memories over a group."""
    bank = Bank.over(group, read_card(folder).model.units) if group else None
    weights, card = read_model(folder, bank.rows if bank else None)
    network = StreamNetworks.build(card.streams, len(card.classes), card.model, bank=bank)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise InputError(
            f"{folder}: the weights in model.safetensors are not those that model.json describes; "
            "take both files from one run.",
            *problems[:5],
        ) from None
    return network.eval(), card


def localize_video(
    network: StreamNetworks,
    card: ModelCard,
    features: Mapping[str, np.ndarray],
    *,
    fps: float | None = None,
    duration_s: float | None = None,
) -> VideoDetections:
    """A video's detections, as `aumn localize` finds them in a shard set; `features` are T x D for each stream.

    Seconds follow from the frame rate; where it is not told, from the duration, which the snippets then fill.
    """
    snippets = _check(features, card)
    for name, value in (("fps", fps), ("duration_s", duration_s)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}={value} must be above 0.")
    if not fps and not duration_s:
        raise InputError("Neither fps nor duration_s is given, and seconds need one: give the video's frames a second.")
    fps = fps or card.clock.lasts_s(snippets, 1) / (duration_s or 1)
    video = Video("video", "", snippets, (), duration_s or card.clock.lasts_s(snippets, fps), fps)
    batch = Batch(
        videos=(video,),
        lengths=(snippets,),
        seeds=(0,),  # nothing is random here
        features={stream: torch.from_numpy(features[stream].astype(np.float32))[None] for stream in card.streams},
        mask_BT=torch.ones(1, snippets, dtype=torch.bool),
        labels_BC=torch.zeros(1, len(card.classes)),
    )
    return detect(network.localize(batch), video, card.clock, card.localize)


def _check(features: Mapping[str, np.ndarray], card: ModelCard) -> int:
    """How many snippets the streams have; InputError unless the model can take them."""
    if features.keys() != card.streams.keys():
        given, taken = (", ".join(streams) or "none" for streams in (features, card.streams))
        raise InputError(f"The streams given are {given}, and the model takes {taken}.")
    for stream, width in card.streams.items():
        shape = features[stream].shape
        if len(shape) != 2 or shape[1] != width or not shape[0]:
            raise InputError(f"{stream} is {shape}, and the model takes snippets x {width}: give the same features.")
        if (bad_T := ~np.isfinite(features[stream]).all(1)).any():
            raise InputError(f"{stream} holds NaN or infinity, first in snippet {bad_T.argmax()}: extract it again.")
    lengths = {stream: len(features[stream]) for stream in card.streams}
    snippets, *others = set(lengths.values())
    if others:
        raise InputError(f"The streams differ in snippets ({lengths}): cut the longer one to the shorter.")
    return snippets
