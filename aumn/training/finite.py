"""What happens when a step's gradients are not finite: every rank stops and says which videos it was, or goes on.

The step itself is skipped where it happens, on the device (see `Engine.update`). Here the host finds out, without
keeping the device waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aumn.records import InputError, Step
from aumn.runfolder.saving import HostCopy
from aumn.runtime.engines import Engine


class NotFiniteError(InputError):
    """A step that stops the run; `terms` are those of the loss that were not finite, none where a gradient was."""

    step: int
    terms: tuple[str, ...]


class FiniteWatch:
    """Looks at every step's gradient norms, and at all so far when asked to `settle`.

    With `lag`, as on CUDA, it looks at a step when the next one has been launched, so the device always has work. A
    step after a bad one may then have been taken, on weights that nobody will see: settle before anything is kept.
    """

    def __init__(self, engine: Engine, *, lag: bool | None = None) -> None:
        self.engine = engine
        self.lag = engine.device.type == "cuda" if lag is None else lag
        self._unseen: tuple[Step, Mapping[str, Tensor], HostCopy] | None = None

    def add(self, step: Step, report: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """A step has been taken; InputError on every rank if it, or with `lag` the one before, stops the run."""
        unseen = step, report, HostCopy(norms)
        self.settle()
        self._unseen = unseen
        if not self.lag:
            self.settle()

    def settle(self) -> None:
        """Return once every step so far is known to be good."""
        if self._unseen is None:
            return
        (step, report, norms), self._unseen = self._unseen, None
        if bad_streams := [stream for stream, norm in norms.read().items() if not norm.isfinite()]:
            _stop_or_go_on(self.engine, step, report, bad_streams)


def _stop_or_go_on(engine: Engine, step: Step, report: Mapping[str, Tensor], bad_streams: Sequence[str]) -> None:
    """After a gradient that was not finite: go on if it only overflowed float16, else stop every rank.

    A loss that is not finite makes every rank's gradients so (see `precision.poisoned`), so all ranks come here
    together. A step is a function of its videos, so it is run forward once more to find those that it failed on.
    """
    bad_terms = [name for name, term in report.items() if not (name.endswith("/total") or bool(term.isfinite()))]
    terms = sorted({name for names in engine.ranks.gather(bad_terms) for name in names})
    scales = [engine.scales[stream] for stream in bad_streams]
    if not terms and all(scale.is_dynamic and scale.value.item() >= 1 for scale in scales):
        return  # the scales are lowered by now; what is not finite at any scale is no overflow
    videos = sorted({video for names in engine.ranks.gather(_videos_not_finite(engine, step)) for video in names})
    what = f"{' and '.join(terms)} {'is' if len(terms) == 1 else 'are'}" if terms else "a gradient is"
    whose = f" for {len(videos)} of its {step.global_videos} videos ({', '.join(videos[:10])})" if videos else ""
    error = NotFiniteError(
        f"Step {step.index + 1}: {what} not finite{whose}, so every rank stopped before the update. Look at those "
        "videos' features, or lower optimizer.learning_rate, or set engine.precision=fp32 where it is not."
    )
    error.step, error.terms = step.index + 1, tuple(terms)
    raise error


@torch.no_grad()
def _videos_not_finite(engine: Engine, step: Step) -> list[str]:
    """This rank's videos whose scores are not finite."""
    found = []
    for batch in step.micro_batches:
        for score in engine.forward(batch.to(engine.device)).values():
            sums_B = score.logits_BC.sum(1) + score.attention_BT.sum(1)
            found += [
                video.id for video, sum_ in zip(batch.videos, sums_B.tolist(), strict=True) if not math.isfinite(sum_)
            ]
    return found
