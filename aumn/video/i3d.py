"""Inception-I3D (Carreira and Zisserman, 2017), to be read from, not trained: windows in, 1024 values and logits out.

N windows, C channels (RGB 3, flow 2), T frames, H x W pixels. Batch norm is folded into the convolutions, which
changes the last bits of a value and saves a pass over each activation. Padding is TensorFlow's SAME, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 1024
CLASSES = 400  # of Kinetics
EPSILON = 1e-3  # of the batch norm
INCEPTION = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Channels in, and out of each branch's convolutions: b0, b1a, b1b, b2a, b2b, b3b."""
POOLED = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}
"""Kernel and stride of the pooling before some of them."""


class Reading(NamedTuple):
    """What I3D says of each window."""

    features_ND: Tensor
    logits_NK: Tensor  # of Kinetics' classes, before their softmax


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Padded with zeros as TensorFlow's SAME does: the odd one goes behind."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        pad = max((-(-size // s) - 1) * s + k - size, 0)
        pads += (pad // 2, pad - pad // 2)
    return functional.pad(x, pads) if any(pads) else x


class Convolution(nn.Module):
    """A convolution with its batch norm folded in, and a ReLU behind."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.outputs, self.kernel, self.stride = outputs, kernel, stride
        centred = kernel // 2 if stride == 1 else 0  # SAME is symmetric there, and needs no copy
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, centred)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x T x H x W to the same with other channels."""
        if self.stride > 1:
            x = same(x, (self.kernel,) * 3, (self.stride,) * 3)
        return functional.relu_(self.conv3d(x))


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Convolution(inputs, outputs[0], 1)
        self.b1a = Convolution(inputs, outputs[1], 1)
        self.b1b = Convolution(outputs[1], outputs[2], 3)
        self.b2a = Convolution(inputs, outputs[3], 1)
        self.b2b = Convolution(outputs[3], outputs[4], 3)
        self.b3b = Convolution(inputs, outputs[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        """The branches' channels, one behind the other."""
        pooled = functional.max_pool3d(x, 3, 1, 1)
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), 1)


class I3D(nn.Module):
    """The whole network, for one stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Convolution(channels, 64, 7, 2)
        self.Conv3d_2b_1x1 = Convolution(64, 64, 1)
        self.Conv3d_2c_3x3 = Convolution(64, 192, 3)
        for name, (inputs, outputs) in INCEPTION.items():
            setattr(self, name, Inception(inputs, outputs))
        self.logits = nn.Linear(WIDTH, CLASSES)
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> I3D:
        """The network with `weights` as `video.weights` reads them."""
        with torch.device("meta"):
            network = cls(weights["Conv3d_1a_7x7.conv3d.weight"].shape[1])
        network.load_state_dict(_folded(weights), assign=True)
        return network

    def forward(self, windows_NCTHW: Tensor) -> Reading:
        """RGB in [-1, 1], flow likewise; T of 8 frames or more at 224 x 224 pixels is what the network was made for.

        The values are the last layer's, averaged over pairs of its times and all its places, and then over the pairs.
        """
        x = windows_NCTHW.contiguous(memory_format=torch.channels_last_3d)
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in INCEPTION:
            if name in POOLED:
                x = _pool(x, *POOLED[name])
            x = getattr(self, name)(x)
        means_NDT = x.mean((3, 4))
        pairs_NDP = functional.avg_pool1d(means_NDT, min(2, means_NDT.shape[2]), 1)
        features_ND = pairs_NDP.mean(2)
        return Reading(features_ND, self.logits(features_ND))


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max pooling; behind a ReLU, a zero from the padding is never above what is there."""
    return functional.max_pool3d(same(x, kernel, stride), kernel, stride)


def _folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions' own weights and biases, with what the batch norm makes of their outputs."""
    folded = {"logits.weight": weights["logits.conv3d.weight"].flatten(1), "logits.bias": weights["logits.conv3d.bias"]}
    for name, kernel in weights.items():
        part, _, kind = name.rpartition(".conv3d.")
        if kind == "weight" and part != "logits":
            scale, shift, mean, variance = (
                weights[f"{part}.bn.{value}"].double() for value in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / (variance + EPSILON).sqrt()
            scaled = (kernel.double() * scale.view(-1, 1, 1, 1, 1)).float()
            folded[f"{part}.conv3d.weight"] = scaled.contiguous(memory_format=torch.channels_last_3d)  # a third faster
            folded[f"{part}.conv3d.bias"] = (shift - mean * scale).float()
    return folded


def shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each array of a set of weights, as the PyTorch checkpoints that labs share call them."""
    with torch.device("meta"):
        network = I3D(channels)
    found: dict[str, tuple[int, ...]] = {
        "logits.conv3d.weight": (CLASSES, WIDTH, 1, 1, 1),
        "logits.conv3d.bias": (CLASSES,),
    }
    for part, module in network.named_modules():
        if isinstance(module, Convolution):
            found[f"{part}.conv3d.weight"] = tuple(module.conv3d.weight.shape)
            values = ("weight", "bias", "running_mean", "running_var")
            found |= {f"{part}.bn.{value}": (module.outputs,) for value in values}
    return found
