"""Alerts: a user's command, or a webhook, once each time that something worth looking at begins.

A thread of the first rank judges what is logged and tells it; no step waits for either. It ends with its process: that
a run has died is for its launcher, `aumn jobs` and MLflow to tell.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from aumn.addresses import hide
from aumn.records import InputError
from aumn.runfolder.metrics import read_curves
from aumn.runfolder.saving import RunWriter
from aumn.runtime import preemption
from aumn.training.finite import NotFiniteError
from aumn.training.settings import AlertRule, AlertSettings

if TYPE_CHECKING:
    from aumn.training.loop import Run

TICK_S = 1.0
COMMAND_S = 30.0
URL_S = 10.0
END_S, ASKED_S = 10.0, 1.0
"""How long a run's end waits for what is still to be told: its own last alert may be why it ends. Where the run was
asked to stop, somebody may kill it soon."""


@contextmanager
def watching(run: Run, writer: RunWriter) -> Iterator[None]:
    """A block in which what the writer logs is judged, and whether steps go on."""
    settings, folder = run.config.alerts, run.config.run.folder
    if not settings.rules:
        yield
        return
    alerts, advance = Alerts(settings, folder, run.say), run.advance

    def advance_too(done: int, steps: int) -> None:
        alerts.beat(done, is_last=done == steps)
        advance(done, steps)

    writer.logged, run.advance = alerts.add, advance_too
    try:
        yield
    except NotFiniteError as error:  # it ends the run before anything is logged
        alerts.add(error.step, dict.fromkeys(("loss", *error.terms), math.nan))
        raise
    finally:
        alerts.close()


class Alerts:
    """Rules that are looked at, and what of them holds."""

    def __init__(self, settings: AlertSettings, folder: Path, say: Callable[[str], None]) -> None:
        self._settings, self._folder, self._say = settings, folder, say
        self._logged: queue.SimpleQueue[tuple[int, Mapping[str, float]] | None] = queue.SimpleQueue()
        self._held: set[tuple[AlertRule, str]] = set()
        self._best: dict[str, float] = {}
        self._matched: set[AlertRule] = set()
        self._has_refused = False
        self._step, self._beat_s = 0, time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="aumn-alerts", daemon=True)
        self._thread.start()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers were logged; returns at once."""
        self._logged.put((step, dict(metrics)))

    def beat(self, step: int, *, is_last: bool = False) -> None:
        """A step was taken."""
        self._step, self._beat_s = step, math.inf if is_last else time.monotonic()

    def close(self) -> None:
        """Tell the rest, and which rules had nothing to look at."""
        self._logged.put(None)
        self._thread.join(ASKED_S if preemption.asked() else END_S)
        for rule in self._settings.rules:
            if rule.metric and rule not in self._matched and self._step:
                self._say(f"alerts: this run logged no metric {rule.metric}, so {rule.rule} had nothing to look at.")

    def _watch(self) -> None:
        if any(rule.rule == "fell_to" for rule in self._settings.rules):  # of a run that goes on
            with suppress(InputError, OSError):
                for name, curve in read_curves(self._folder).items():
                    self._best[name] = max(
                        (value for value in curve.values() if math.isfinite(value)), default=-math.inf
                    )
        while True:
            with suppress(queue.Empty):
                if (logged := self._logged.get(timeout=TICK_S)) is None:
                    return
                self._judge(*logged)
            self._look_for_silence()

    def _judge(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._best[name] = max(self._best.get(name, -math.inf), value)
            for rule in self._settings.rules:
                if rule.metric and fnmatchcase(name, rule.metric):
                    self._matched.add(rule)
                    self._note(rule, name, _holds(rule, value, self._best.get(name, value)), value, step)

    def _look_for_silence(self) -> None:
        silent_s = time.monotonic() - self._beat_s
        for rule in self._settings.rules:
            if rule.rule == "silent_min" and rule.value:
                text = f"no step for {silent_s / 60:.3g} min" if silent_s >= 60 * rule.value else ""
                self._note(rule, "", text, silent_s / 60, self._step)

    def _note(self, rule: AlertRule, name: str, text: str, value: float, step: int) -> None:
        """Tell what begins to hold."""
        if not text:
            self._held.discard((rule, name))
        elif (rule, name) not in self._held:
            self._held.add((rule, name))
            sentence = f"{self._folder}, step {step}: {f'{name} ' if name else ''}{text}"
            self._say(f"Alert: {sentence}.")
            facts = {"rule": rule.rule, "metric": name, "value": f"{value:g}", "step": str(step)}
            self._tell(sentence, {**facts, "run": str(self._folder)})

    def _tell(self, sentence: str, facts: Mapping[str, str]) -> None:
        command, url = self._settings.command, self._settings.url or ""
        try:
            if command:
                variables = {f"AUMN_ALERT_{name.upper()}": text for name, text in facts.items()}
                with os.fdopen(
                    os.memfd_create("stderr"), "w+b"
                ) as errors:  # no pipe, which what the command leaves behind would hold open
                    done = subprocess.run(
                        command,
                        env=os.environ | variables | {"AUMN_ALERT": sentence},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        timeout=COMMAND_S,
                        start_new_session=True,  # Ctrl-C is for the run
                        check=False,
                    )
                    errors.seek(0)
                    done.stderr = errors.read(1000)
                    done.check_returncode()
            if url:
                body = json.dumps({"text": sentence, **facts}).encode()
                request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  as checked
                urlopen(request, timeout=URL_S).close()  # noqa: S310
        except (OSError, subprocess.SubprocessError, HTTPException, ValueError) as error:
            if not self._has_refused:
                said = getattr(error, "stderr", None) or b""
                why = " ".join(f"{hide(str(error), url)} {said.decode(errors='replace')}".split())
                self._say(f"alerts: it was not delivered ({why}), which is not said again.")
            self._has_refused = True


def _holds(rule: AlertRule, value: float, best: float) -> str:
    """What a rule has to say of a value; nothing where it does not hold."""
    if rule.rule == "not_finite":
        return "" if math.isfinite(value) else "is not finite"
    limit = rule.value or 0.0
    if rule.rule == "below" and value < limit:
        return f"is {value:.4g}, below {limit:g}"
    if rule.rule == "above" and value > limit:
        return f"is {value:.4g}, above {limit:g}"
    if rule.rule == "fell_to" and best > 0 and value <= limit * best:
        return f"fell to {value:.4g}, {value / best:.0%} of its best, {best:.4g}"
    return ""
