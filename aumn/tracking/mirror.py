"""MLflow as a mirror of a run's folder: kept up by a thread in training, and by `aumn deliver` afterwards.

The folder is written first, and alone counts. Training never waits for the store: it wakes a thread, which sends what
the folder holds and the store lacks (`mirrored_run`), as often as it takes. `mirror.json` says how far it is (`sent`).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from pathlib import Path

from aumn.addresses import public
from aumn.records import InputError
from aumn.runfolder.folder import RunFolder
from aumn.tracking.mirrored_run import MirroredRun, Say
from aumn.tracking.registry import check_names
from aumn.tracking.sent import NAME, Sent, Waiting, run_before
from aumn.tracking.settings import TrackingSettings
from aumn.tracking.store import find_address, missing

GATHER_S = 2.0
RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
END_GRACE_S = 10.0
"""How long the end waits for a store that refuses; for one that works it waits as long as that takes."""
HASTY_END_S = 5.0
"""How long a run that failed or was stopped waits in all: a scheduler may be about to kill it."""

logger = logging.getLogger(__name__)


class Mirror:
    """The mirror of a run that is training; for the process that holds the folder's lock."""

    def __init__(
        self, folder: Path, tracking: TrackingSettings, *, resumed: bool = True, say: Say = logger.warning
    ) -> None:
        """Begin a new MLflow run, or go on with the folder's own, for which the store need not answer.

        With `resumed` False a new run begins in any case, and what an earlier run left in the folder is delivered
        first: open the mirror before anything of the folder is replaced. `say` takes lines for people; a thread calls
        it. StoreError where a new run cannot begin.
        """
        check_names(tracking.model_name, tracking.alias)
        address = find_address(tracking.uri)
        if not resumed:
            _deliver_earlier(RunFolder(folder), address, say)
        run = MirroredRun(RunFolder(folder), tracking, address, say, resumed=resumed)
        if not run.sent.run or run.sent.store != public(address):
            run.connect()
        self._run, self._folder, self._say = run, folder, say
        self._changed = threading.Condition()  # its lock guards all that follows
        self._woken = self._pushed = 0  # calls of `wake`, and how many of them the last push came after
        self._hurried = self._stopped = False
        self._outage: tuple[float, Sent] | None = None  # since when, and what the store had then
        self._settling_since_s: float | None = None
        self._retry_s = RETRY_S
        self._tried_s = -math.inf
        threading.Thread(target=self._follow, name="aumn-mirror", daemon=True).start()

    def wake(self) -> None:
        """Have what is new in the folder sent, soon; returns at once."""
        with self._changed:
            self._woken += 1
            self._changed.notify_all()

    def publish(self) -> str | None:
        """Send all, the finished model of `status.json` among it: models:/name/version, or None if it must wait."""
        self.wake()
        self._settle()
        name = self._run.tracking.model_name
        return name and registered(self._folder, name)

    def close(self, *, hasty: bool) -> None:
        """Send the rest, how the run ended among it, and say what could not be sent and how to send it later.

        `hasty`: the run failed or was stopped, and something may be about to kill the process.
        """
        self.wake()
        self._settle(HASTY_END_S if hasty else math.inf)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._run.close()
        if waiting := self._run.waiting():
            self._say(
                f"Not delivered to the tracking store {public(self._run.address)}: {waiting}. They stay in "
                f"{self._folder}; deliver them later with: aumn deliver {self._folder}"
            )

    def _settle(self, most_s: float = math.inf) -> None:
        """Wait until all is sent: no longer than END_GRACE_S for a store that refuses, over all calls together."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            start_s = time.monotonic()
            self._settling_since_s = self._settling_since_s or start_s
            while self._pushed < self._woken:
                end_s = start_s + most_s
                if self._outage:
                    end_s = min(end_s, max(self._outage[0], self._settling_since_s) + END_GRACE_S)
                if time.monotonic() >= end_s:
                    break
                self._changed.wait(min(1.0, end_s - time.monotonic()))
            self._hurried = False

    def _follow(self) -> None:
        while (woken := self._next()) is not None:
            try:
                before = self._run.sent
                self._run.push()
            except Exception as error:  # whatever it is: a dead thread would send nothing more
                self._refused(error, before)
            else:
                self._accepted(woken)

    def _next(self) -> int | None:
        """Wait until it is time to push, and return what `_pushed` is after it; None when it is time to stop."""
        with self._changed:
            while not self._stopped and (self._pushed == self._woken or time.monotonic() < self._due_s()):
                self._changed.wait(self._due_s() - time.monotonic() if self._pushed < self._woken else None)
            self._tried_s = time.monotonic()
            return None if self._stopped else self._woken

    def _due_s(self) -> float:
        working_s, refused_s = (0, RETRY_S) if self._hurried else (GATHER_S, self._retry_s)
        return self._tried_s + (refused_s if self._outage else working_s)

    def _refused(self, error: Exception, before: Sent) -> None:
        with self._changed:
            is_news = self._outage is None and not self._stopped
            self._outage = self._outage or (time.monotonic(), before)
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            self._changed.notify_all()
        if is_news:
            self._say(f"{error} Training goes on; {self._folder} keeps its metrics until the store answers again.")

    def _accepted(self, woken: int) -> None:
        with self._changed:
            self._pushed = woken
            ended = None if self._stopped else self._outage
            self._outage, self._retry_s = None, RETRY_S
            self._changed.notify_all()
        if ended:
            since_s, before = ended
            delivered, lasted_s = self._run.waiting(before), time.monotonic() - since_s
            self._say(f"The tracking store is back after {lasted_s:.0f} s: {delivered} have been delivered.")


def registered(folder: Path, name: str) -> str | None:
    """What the finished model in a run's folder is in the registry, such as models:/aumn/3; None: it is not there yet.

    Reads the folder alone.
    """
    sent = Sent.read(folder)
    found = sent and sent.models.get(name)
    step = RunFolder(folder).status().published_step
    return f"models:/{name}/{found.version}" if found and found.step == step else None


def push(folder: Path, uri: str | None = None, *, say: Say = logger.warning) -> Waiting | None:
    """Send what a run's folder holds and its store lacks; what was sent; None: nothing waits.

    `uri` None: the store that the run wrote to. Another store gets a new MLflow run with all of the folder. Interrupted
    or repeated, this sends nothing twice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the run.folder of a training run.")
    run_before(folder)
    if not any((folder / name).exists() for name in (NAME, "status.json", "metrics.jsonl")):
        return None
    with RunFolder(folder).writing():
        return _push(RunFolder(folder), uri, say)


def push_rest(folder: RunFolder, say: Say) -> None:
    """Send what a kill at a finished run's end left unsent; a store that is away is told, and is no error."""
    try:
        _push(folder, None, say)
    except InputError as error:
        say(f"{error} The run itself is complete: aumn deliver {folder.path} sends the rest.")


def _push(folder: RunFolder, uri: str | None, say: Say) -> Waiting | None:
    settings = folder.config()
    tracking, sent = TrackingSettings(**settings.get("tracking", {})), Sent.read(folder.path)
    if sent is None and uri is None and not (settings and tracking.enabled):
        return None  # the user wants no mirror of this run
    store = public(find_address(tracking.uri))
    if sent and not (missing(sent.store) and not missing(store)):  # else the run and its store were moved
        store = sent.store
    address = find_address(uri) if uri else _find_named(folder.path, store)
    run = MirroredRun(folder, tracking, address, say)
    if run.sent.store != public(address):
        run.connect(folder.status().started_ms)
    waiting = run.waiting()
    run.push()
    return waiting or None


def _deliver_earlier(folder: RunFolder, address: str, say: Say) -> None:
    """Send what an earlier run left in a folder that a new run begins in."""
    if (sent := Sent.read(folder.path)) is None:
        return
    try:
        _push(folder, address if public(address) == sent.store else None, say)
    except InputError as error:
        raise InputError(
            f"{folder.path} holds what an earlier run could not deliver. {error} Or name another run.folder, or remove "
            f"{folder.path / NAME} to go on without what the earlier run left."
        ) from None
    (folder.path / NAME).unlink()


def _find_named(folder: Path, store: str) -> str:
    """The address of a store that only a folder names: MLflow would send it the environment's credentials.

    They are for the store that MLFLOW_TRACKING_URI names, which it is given whole if it is this one.
    """
    if missing(store) == "folder":
        raise InputError(
            f"{folder} names the tracking store {store}, whose folder is gone: name it with --tracking-uri or "
            "MLFLOW_TRACKING_URI."
        )
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named and public(find_address(named)) == store:
        return find_address(named)
    credentials = [name for name in ("USERNAME", "PASSWORD", "TOKEN") if os.environ.get(f"MLFLOW_TRACKING_{name}")]
    if "***" in store or (credentials and store.startswith("http")):
        raise InputError(
            f"{folder} names the tracking store {store} and keeps no password of it, and the environment's goes to no "
            "store that you have not named: name it with --tracking-uri or MLFLOW_TRACKING_URI."
        )
    return store
