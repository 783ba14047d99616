"""What happens when a step's gradients are not finite: every rank stops and says which videos it was, or goes on.

The step itself is skipped where it happens, on the device (see `Engine.update`). Here the host finds out, without
keeping the device waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aumn.records import InputError, Step
from aumn.runtime.engines import Engine
from aumn.runtime.precision import overflow_is_expected


@dataclass(frozen=True, slots=True)
class _Seen:
    """A step that is done, as far as the host has launched it."""

    step: Step
    report: Mapping[str, Tensor]
    norms: HostCopy


class FiniteWatch:
    """Looks at every step's gradient norms, and at all so far when asked to `settle`.

    With `lag`, as on CUDA, it looks at a step when the next one has been launched, so the device always has work. A
    step after a bad one may then have been taken, on weights that nobody will see: settle before anything is kept.
    """

    def __init__(self, engine: Engine, *, lag: bool | None = None) -> None:
        self.engine = engine
        self.lag = engine.device.type == "cuda" if lag is None else lag
        self._unseen: _Seen | None = None

    def add(self, step: Step, report: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        """A step has been taken; InputError on every rank if it, or with `lag` the one before, stops the run."""
        earlier, self._unseen = self._unseen, _Seen(step, report, HostCopy(norms))
        if earlier is not None:
            self._look(earlier)
        if not self.lag:
            self.settle()

    def settle(self) -> None:
        """Return once every step so far is known to be good."""
        if self._unseen is not None:
            seen, self._unseen = self._unseen, None
            self._look(seen)

    def _look(self, seen: _Seen) -> None:
        bad_streams = [stream for stream, norm in seen.norms.read().items() if not math.isfinite(norm)]
        if bad_streams:
            _stop_or_go_on(self.engine, seen.step, seen.report, bad_streams)


class HostCopy:
    """Numbers on their way from the device; reading them waits for them, and for nothing launched since."""

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self._names = list(numbers)
        values = torch.stack([number.detach().float() for number in numbers.values()])
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            self._event = torch.cuda.current_stream(values.device).record_event()

    def read(self) -> dict[str, float]:
        """By name, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


def _stop_or_go_on(engine: Engine, step: Step, report: Mapping[str, Tensor], bad_streams: Sequence[str]) -> None:
    """After a gradient that was not finite: go on if it only overflowed float16, else stop every rank.

    A loss that is not finite makes every rank's gradients so (see `precision.poisoned`), so all ranks come here
    together. A step is a function of its videos, so it is run forward once more to find those that it failed on.
    """
    bad_terms = [name for name, term in report.items() if not (name.endswith("/total") or bool(term.isfinite()))]
    terms = sorted({name for names in engine.ranks.gather(bad_terms) for name in names})
    if overflow_is_expected(engine.scales[stream] for stream in bad_streams) and not terms:
        return
    videos = sorted({video for names in engine.ranks.gather(_videos_not_finite(engine, step)) for video in names})
    what = f"{' and '.join(terms)} {'is' if len(terms) == 1 else 'are'}" if terms else "a gradient is"
    whose = f" for {len(videos)} of its {step.global_videos} videos ({', '.join(videos[:10])})" if videos else ""
    raise InputError(
        f"Step {step.index + 1}: {what} not finite{whose}, so every rank stopped before the update. Look at those "
        "videos' features, or lower optimizer.learning_rate, or set engine.precision=fp32 where it is not."
    )


@torch.no_grad()
def _videos_not_finite(engine: Engine, step: Step) -> list[str]:
    """This rank's videos whose scores are not finite."""
    found = []
    for batch in step.micro_batches:
        for score in engine.forward(batch.to(engine.device)).values():
            sums_B = score.logits_BC.sum(1) + score.attention_BT.sum(1) + score.unit_sums_BK.sum(1)
            found += [
                video.id for video, sum_ in zip(batch.videos, sums_B.tolist(), strict=True) if not math.isfinite(sum_)
            ]
    return found
