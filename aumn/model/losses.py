"""The losses (Eq. 9-14) as sums over videos divided by the step's global count of videos.

So a step's loss and gradient do not depend on how its videos were cut into ranks and micro-batches: every part adds its
own share, and the shares are summed. Eq. 12 is a norm of a *global* mean, which no part knows alone. Its gradient is
that of the linear function <direction, p> with direction = mean p / |mean p|, whose shares also sum to the norm itself:
so the ranks exchange K numbers, and no gradient has to flow through a collective. Pseudo-labels, beyond the
paper, are made video by video.

With a bank over ranks (`bank`, None: there is none) a rank has its own units' part of Eq. 11 and 12, for all of its
group's videos: those sums are over its units too.

Shapes: B videos, T snippets, F embedding width, K action units, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from aumn.model.bank import Bank
from aumn.model.products import product
from aumn.model.settings import LossSettings
from aumn.records import Batch, Scores, Step

PROTOTYPE_SHARE = 0.05  # of a video's snippets, for each class and for background


@dataclass(frozen=True, slots=True)
class Objective:
    """Eq. 14 of a run: its weights, its number of steps, and whether Eq. 9 asks class by class."""

    settings: LossSettings
    steps: int
    independent_classes: bool = False

    def pseudo_labels(self, step: int) -> float:
        """Their weight: none before their share of the steps."""
        return self.settings.pseudo_labels if step / self.steps >= self.settings.pseudo_labels_from else 0.0

    def factors(self, stream: str, step: int, num_units: int) -> dict[str, float]:
        """What each term counts. A single unit has neither diversity nor homogeneity, as in the paper's Figure 4."""
        settings, several = self.settings, float(num_units > 1)
        return {
            "classification": 1.0,
            "diversity": several * settings.diversity,
            "homogeneity": several * settings.homogeneity,
            "sparsity": settings.gamma(stream),
            "pseudo_labels": self.pseudo_labels(step),
            "prototypes": settings.prototypes,
        }


def batch_losses(
    scores: Mapping[str, Scores],
    batch: Batch,
    share_sums: Mapping[str, Tensor],
    step: Step,
    objective: Objective,
    *,
    diversity_parts: int | None,
    bank: Bank | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Each stream's share of Eq. 9 to 14 for one micro-batch; sums over the step's micro-batches and ranks.

    Args:
        scores: by stream.
        batch: what was scored.
        share_sums: by stream, Eq. 11 summed over every video of the step (K).
        step: which one it is, and how many videos it has over all ranks.
        objective: the run's.
        diversity_parts: Eq. 10 is of the step and not of a video; in how many equal parts it is handed in. None: this
            micro-batch hands in none.
        bank: over which ranks a memory's units are.

    Returns:
        By stream the terms, unweighted, and `total`, their weighted sum.
    """
    action_BT = teach(scores, batch) if objective.pseudo_labels(step.index) else None
    found = {}
    for stream, score in scores.items():
        factors = objective.factors(stream, step.index, bank.units if bank else len(score.units_KF))
        terms = {
            "classification": classification(
                score.logits_BC, batch.labels_BC, independent_classes=objective.independent_classes
            ),
            "homogeneity": homogeneity(score.unit_sums_BK, share_sums[stream], bank),
            "sparsity": sparsity(score.attention_BT, batch.mask_BT, objective.settings.sparsity_reduction),
        }
        if score.likeness_BTP is not None and score.cas_BTC is not None:
            terms["prototypes"] = prototypes(score.likeness_BTP, score.cas_BTC, batch.labels_BC, batch.mask_BT)
        if action_BT is not None:
            terms["pseudo_labels"] = pseudo_labels(score.attention_BT, action_BT, batch.mask_BT)
        terms = {name: term / step.global_videos for name, term in terms.items()}
        if diversity_parts is not None:
            terms["diversity"] = diversity(score.units_KF, bank, scale=score.unit_scale) / diversity_parts
        total = torch.stack([factors[name] * term for name, term in terms.items()]).sum()
        found[stream] = {**terms, "total": total}
    return found


def classification(logits_BC: Tensor, labels_BC: Tensor, *, independent_classes: bool) -> Tensor:
    """Eq. 9, summed over the videos: cross-entropy with the L1-normalised multi-hot label; a video without one has 0.

    With independent classes: binary cross-entropy, summed over the classes, by which such a video has none of them.
    """
    if independent_classes:
        return functional.binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="sum")
    targets_BC = labels_BC / labels_BC.sum(1, keepdim=True).clamp(min=1)
    return -(targets_BC * functional.log_softmax(logits_BC, 1)).sum()


def sparsity(attention_BT: Tensor, mask_BT: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Eq. 13, summed over the videos: the attention's L1 norm, over the video's length where `reduction` is "mean"."""
    total_B = attention_BT.sum(1)
    return (total_B / mask_BT.sum(1) if reduction == "mean" else total_B).sum()


def teach(scores: Mapping[str, Scores], batch: Batch) -> Tensor:
    """Which snippets the streams together take for an action, bool B x T: what every stream's attention is taught.

    Those whose class activation (Eq. 15), the highest among the video's own classes and the mean of the streams, stands
    above its mean over the video. No gradient.
    """
    absent_B1C = (batch.labels_BC == 0)[:, None]
    cas_BTC = [score.cas_BTC for score in scores.values() if score.cas_BTC is not None]
    evidence_BT = torch.stack([cas.masked_fill(absent_B1C, 0).amax(2) for cas in cas_BTC]).mean(0)
    mean_B1 = (evidence_BT * batch.mask_BT).sum(1, keepdim=True) / batch.mask_BT.sum(1, keepdim=True)
    return (evidence_BT > mean_B1) & batch.mask_BT


def pseudo_labels(attention_BT: Tensor, action_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Binary cross-entropy of the attention with what `teach` says, over a video's snippets, summed over the videos."""
    wrong_BT = functional.binary_cross_entropy(attention_BT, action_BT.to(attention_BT.dtype), reduction="none")
    return ((wrong_BT * mask_BT).sum(1) / mask_BT.sum(1)).sum()


def prototypes(likeness_BTP: Tensor, cas_BTC: Tensor, labels_BC: Tensor, mask_BT: Tensor) -> Tensor:
    """Cross-entropy of snippets with what they should be like, a mean over a video's parts, summed over the videos.

    A part is PROTOTYPE_SHARE of the video's snippets, rounded up: of each of its classes those with the highest class
    activation (Eq. 15), which should be like the class's prototype; and those with the lowest, the highest among its
    own classes (all, where it has none), which should be like the background's, the last.
    """
    absent_B1C = (labels_BC == 0)[:, None] & (labels_BC > 0).any(1)[:, None, None]
    evidence_BTP = torch.cat([cas_BTC, -cas_BTC.masked_fill(absent_B1C, 0).amax(2, keepdim=True)], 2)
    evidence_BTP = evidence_BTP.masked_fill(~mask_BT[..., None], -torch.inf)
    order_BTP = evidence_BTP.sort(dim=1, descending=True, stable=True).indices  # whatever padding there is
    wrong_BTP = -functional.log_softmax(likeness_BTP, 2).gather(1, order_BTP)
    count_B1 = (mask_BT.sum(1, keepdim=True) * PROTOTYPE_SHARE).ceil()
    counted_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) < count_B1
    wrong_BP = torch.where(counted_BT[..., None], wrong_BTP, 0).sum(1) / count_B1
    parts_BP = functional.pad((labels_BC > 0).to(wrong_BP.dtype), (0, 1), value=1.0)
    return ((wrong_BP * parts_BP).sum(1) / parts_BP.sum(1)).sum()


def unit_shares(unit_sums_BK: Tensor, bank: Bank | None = None) -> Tensor:
    """Eq. 11: how a video's reading is shared among the units, B x K."""
    return bank.softmax(unit_sums_BK) if bank else unit_sums_BK.softmax(1)


def homogeneity(unit_sums_BK: Tensor, share_sum_K: Tensor, bank: Bank | None = None) -> Tensor:
    """Eq. 12, summed over the videos: <direction, p>; `share_sum_K` is Eq. 11 summed over every video of the step."""
    share_sum_K = share_sum_K.detach()
    direction_K = share_sum_K / bank.norm(share_sum_K) if bank else functional.normalize(share_sum_K, dim=0)
    return (unit_shares(unit_sums_BK, bank) @ direction_K).sum()


def diversity(units_KF: Tensor, bank: Bank | None = None, *, scale: float = 1.0) -> Tensor:
    """Eq. 10, |M Mᵀ - I|, of `scale` times the units, without a K x K tensor when K > F.

    M Mᵀ and Mᵀ M share their non-zero eigenvalues, so |M Mᵀ - I_K|² = |Mᵀ M - I_F|² + (K - F): a sum of two terms that
    are not negative, where the textbook expansion |MᵀM|² - 2|M|² + K cancels. Over ranks, Mᵀ M is the sum of their
    parts; where K <= F, K - F would be negative and cancel too, and the rows are few enough to have them all.
    """
    num_units, width = bank.units if bank else len(units_KF), units_KF.shape[1]
    if num_units <= width:
        units_KF = bank.rows_alike(units_KF) if bank else units_KF
        small = product(units_KF, units_KF.T)
    else:
        small = bank.gram_alike(units_KF) if bank else product(units_KF.T, units_KF)
    if scale != 1:
        small = small * scale**2
    norm: Tensor = torch.linalg.matrix_norm(small - torch.eye(len(small), dtype=small.dtype, device=small.device))
    return norm if num_units <= width else torch.sqrt(norm.square() + (num_units - width))
