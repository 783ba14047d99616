"""Dropout whose draws are keyed by video, so that ranks, micro-batches, padding and restarts change nothing.

Shapes: B videos, T snippets, F embedding width, W what is drawn a video. On CUDA a draw is another one than on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS, MIXING = 1 << 40, 1 << 41  # salts of a video's seed


def dropout_factors(like_BTF: Tensor, rate: float, lengths: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Inverted dropout's factors (0 or 1 / (1 - rate)), each video's drawn from its own seed, zero on padding.

    A video's draw depends on its seed and length alone: not on the batch around it or on what was drawn before.
    """
    factors_BTF = torch.zeros_like(like_BTF, memory_format=torch.contiguous_format)
    generator = torch.Generator(like_BTF.device)
    for row, length, seed in zip(factors_BTF, lengths, seeds, strict=True):
        row[:length].bernoulli_(1 - rate, generator=generator.manual_seed(seed))
    return factors_BTF.div_(1 - rate)


def video_factors(like: Tensor, width: int, rate: float, seeds: Sequence[int], salt: int) -> Tensor:
    """The same, B x 1 x width: one draw a video for all of its snippets; salts keep draws of one seed apart."""
    one_snippet_B1W = like.new_empty(len(seeds), 1, width)
    return dropout_factors(one_snippet_B1W, rate, [1] * len(seeds), [seed ^ salt for seed in seeds])
