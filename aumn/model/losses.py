"""The losses (Eq. 9-14) as sums over videos divided by the step's global count of videos.

So a step's loss and gradient do not depend on how its videos were cut into ranks and micro-batches: every part adds its
own share, and the shares are summed. Eq. 12 is a norm of a *global* mean, which no part knows alone. Its gradient is
that of the linear function <direction, p> with direction = mean p / |mean p|, whose shares also sum to the norm itself:
so the ranks exchange K numbers, and no gradient has to flow through a collective. Pseudo-labels, beyond the
paper, are made video by video.

Shapes: B videos, T snippets, F embedding width, K action units, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from aumn.model.products import product
from aumn.records import Batch, Scores


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Eq. 14's alpha, beta and gamma, and how Eq. 13 reduces over time.

    Beyond the paper, the weight of pseudo-labels and from when on it counts, and whether Eq. 9 asks class by class.
    """

    diversity: float
    homogeneity: float
    sparsity: float
    sparsity_reduction: Literal["mean", "sum"]
    pseudo_labels: float = 0.0
    pseudo_labels_from: float = 0.0
    independent_classes: bool = False

    def at(self, share: float) -> LossWeights:
        """The weights after a share of all steps: pseudo-labels count from `pseudo_labels_from` on."""
        return self if share >= self.pseudo_labels_from else replace(self, pseudo_labels=0.0)


def classification(logits_BC: Tensor, labels_BC: Tensor, *, independent_classes: bool) -> Tensor:
    """Eq. 9, summed over the videos: cross-entropy with the L1-normalised multi-hot label.

    With independent classes: binary cross-entropy, summed over the classes.
    """
    if independent_classes:
        return functional.binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="sum")
    targets_BC = labels_BC / labels_BC.sum(1, keepdim=True)
    return -(targets_BC * functional.log_softmax(logits_BC, 1)).sum()


def sparsity(attention_BT: Tensor, mask_BT: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Eq. 13, summed over the videos: the attention's L1 norm, over the video's length where `reduction` is "mean"."""
    total_B = attention_BT.sum(1)
    return (total_B / mask_BT.sum(1) if reduction == "mean" else total_B).sum()


def teach(cas_BTC: Mapping[str, Tensor], labels_BC: Tensor, mask_BT: Tensor) -> Tensor:
    """Which snippets the streams together take for an action, bool B x T: what every stream's attention is taught.

    Those whose class activation (Eq. 15), the highest among the video's own classes and the mean of the streams, stands
    above its mean over the video. No gradient.
    """
    absent_B1C = (labels_BC == 0)[:, None]
    evidence_BT = torch.stack([cas.detach().masked_fill(absent_B1C, 0).amax(2) for cas in cas_BTC.values()]).mean(0)
    mean_B1 = (evidence_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True)
    return (evidence_BT > mean_B1) & mask_BT


def pseudo_labels(attention_BT: Tensor, action_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Binary cross-entropy of the attention with what `teach` says, over a video's snippets, summed over the videos."""
    wrong_BT = functional.binary_cross_entropy(attention_BT, action_BT.to(attention_BT.dtype), reduction="none")
    return ((wrong_BT * mask_BT).sum(1) / mask_BT.sum(1)).sum()


def unit_shares(unit_sums_BK: Tensor) -> Tensor:
    """Eq. 11: how a video's reading is shared among the units, B x K."""
    return unit_sums_BK.softmax(1)


def homogeneity_direction(share_sum_K: Tensor) -> Tensor:
    """Eq. 12's gradient with respect to the mean share, a unit vector; `share_sum_K` is summed over every rank."""
    return functional.normalize(share_sum_K.detach(), dim=0)


def diversity(units_KF: Tensor) -> Tensor:
    """Eq. 10, |M Mᵀ - I|, without a K x K tensor when K > F.

    M Mᵀ and Mᵀ M share their non-zero eigenvalues, so |M Mᵀ - I_K|² = |Mᵀ M - I_F|² + (K - F): a sum of two terms that
    are not negative, where the textbook expansion |MᵀM|² - 2|M|² + K cancels.
    """
    num_units, width = units_KF.shape
    small = product(units_KF, units_KF.T) if num_units <= width else product(units_KF.T, units_KF)
    norm: Tensor = torch.linalg.matrix_norm(small - torch.eye(len(small), dtype=small.dtype, device=small.device))
    return norm if num_units <= width else torch.sqrt(norm.square() + (num_units - width))


def batch_losses(
    scores: Scores, batch: Batch, direction_K: Tensor, global_videos: int, weights: LossWeights
) -> dict[str, Tensor]:
    """One stream's share of Eq. 9, 12 and 13 for one micro-batch, unweighted; sums over micro-batches and ranks."""
    terms = {
        "classification": classification(
            scores.logits_BC, batch.labels_BC, independent_classes=weights.independent_classes
        ),
        "homogeneity": (unit_shares(scores.unit_sums_BK) @ direction_K).sum(),
        "sparsity": sparsity(scores.attention_BT, batch.mask_BT, weights.sparsity_reduction),
    }
    return {name: term / global_videos for name, term in terms.items()}


def total(terms: dict[str, Tensor], weights: LossWeights, num_units: int) -> Tensor:
    """Eq. 14 of the given terms. A single unit has neither diversity nor homogeneity, as in the paper's Figure 4."""
    several = float(num_units > 1)
    factors = {
        "classification": 1.0,
        "diversity": several * weights.diversity,
        "homogeneity": several * weights.homogeneity,
        "sparsity": weights.sparsity,
        "pseudo_labels": weights.pseudo_labels,
    }
    return torch.stack([factors[name] * term for name, term in terms.items()]).sum()
