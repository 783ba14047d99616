"""A run in MLflow, through its client alone: no active run, no global state, several at once do not meet.

Training never waits for the store: letters go into a spool file in the run's folder, a thread delivers them.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aumn.runfolder.checkpoint import read_card
from aumn.tracking.courier import Courier
from aumn.tracking.delivery import empty
from aumn.tracking.recipient import Recipient
from aumn.tracking.registry import check_names
from aumn.tracking.spool import Spool
from aumn.tracking.store import StoreError, artifact_location, explain, find_address, open_store, without_password
from aumn.tracking.tracker import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient

END_GRACE_S = 10.0
"""How long the end waits for a store that refuses; for one that works it waits as long as that takes."""
HASTY_END_S = 5.0
"""How long a run that failed or was interrupted waits in all: a scheduler may be about to kill it."""

logger = logging.getLogger(__name__)
_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """A Tracker that writes to an MLflow store; see `store.open_store` for `uri`.

    Given a `run_id`, that run goes on, whether the store answers or not, and `experiment` and `run_name` are not looked
    at. A new run needs the store. `spool` is the file that keeps what is not delivered; `say` takes lines for people.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        spool: Path,
        experiment: str = "aumn",
        run_name: str | None = None,
        run_id: str | None = None,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.uri = find_address(uri)
        client = None if run_id else open_store(self.uri)
        self._say, self._spool = say, Spool(spool)
        self._config: dict[str, Any] | None = None
        try:
            if len(self._spool) and self._spool.run != run_id:
                empty(self._spool)  # an earlier run left it here
            self.run_id: str = run_id or _start(client, experiment, run_name)
            self._recipient = Recipient(self.uri, self.run_id, spool.parent)
            if run_id:
                with suppress(StoreError):  # it will be back, or not: training goes on
                    self._recipient.connect()
        except BaseException:
            self._spool.close()
            raise
        self._spool.address(self.run_id, without_password(self.uri))
        self._courier = Courier(self._spool, self._recipient, say)
        if run_id:
            self._courier.post({"status": "RUNNING"})

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker. MLflow's parameters never change: a continued run's new values become tags, `resumed.x.y`."""
        self._config = dict(config)
        self._courier.post({"config": config})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        values = {name: float(value) for name, value in metrics.items()}
        self._courier.post({"metrics": values, "step": step, "at_ms": _now_ms()})

    def flush(self) -> None:
        """See Tracker."""
        self._courier.secure()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See Tracker."""
        self._courier.post({"tags": tags})

    def register_model(self, folder: Path, name: str, alias: str | None) -> int | None:
        """See Tracker."""
        check_names(name, alias)
        read_card(folder)
        place = os.path.relpath(folder, self._spool.path.parent)
        self._courier.post({"model": {"folder": place, "name": name, "alias": alias, "config": self._config}})
        self._courier.settle(grace_s=END_GRACE_S)
        return self._recipient.versions.get(name)

    def finish(self, outcome: Outcome) -> None:
        """See Tracker."""
        self._courier.post({"status": _STATUS[outcome], "at_ms": _now_ms()})
        try:
            self._courier.secure()
            fate = f"It lies in {self._spool.path}; deliver it later with: aumn deliver {self._spool.path.parent}"
        except OSError as error:
            fate = f"It is lost, for {self._spool.path} cannot be written ({error.strerror})."
        self._courier.settle(grace_s=END_GRACE_S, most_s=math.inf if outcome == "finished" else HASTY_END_S)
        if waiting := self._courier.stop():
            self._say(f"Not delivered to the tracking store {without_password(self.uri)}: {waiting}. {fate}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _start(client: MlflowClient, experiment: str, run_name: str | None) -> str:
    with explain(client.tracking_uri):
        run = client.create_run(_experiment_id(client, experiment), run_name=run_name)
    return str(run.info.run_id)


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location(client.tracking_uri)))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another run created it in the meantime
            return str(found.experiment_id)
        raise
