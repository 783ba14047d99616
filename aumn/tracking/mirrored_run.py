"""A run in an MLflow store: what its folder holds and the store lacks is sent there, each thing once.

The store is asked what it has whenever it is connected to: parameters, and the last step of each metric. What it has is
not sent again, so a run that was killed, or goes back to a checkpoint, leaves neither gaps nor doubles.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aumn.addresses import hide, public
from aumn.runfolder.folder import RunFolder, State, Status
from aumn.runfolder.metrics import NO_METRICS
from aumn.tracking.registration import register
from aumn.tracking.sent import Sent, Version, Waiting, find_waiting, line_key, run_before
from aumn.tracking.settings import TrackingSettings
from aumn.tracking.store import RefusedForGoodError, StoreError, explain, find_experiment, open_store, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

# What MLflow takes in one request.
MOST_METRICS = 1000
_MOST_OTHERS = 100
_MOST_PARAM_CHARACTERS = 6000

Say = Callable[[str], None]
"""Takes a line for people."""

_STATUS: dict[State, str] = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MirroredRun:
    """Not safe for several threads, but for `close` and for reading `sent`."""

    def __init__(
        self, folder: RunFolder, tracking: TrackingSettings, address: str, say: Say, *, resumed: bool = True
    ) -> None:
        """Of a folder's run in the store at `address`; with `resumed` False, nothing of it is anywhere yet."""
        self.folder, self.tracking, self.address, self._say = folder, tracking, address, say
        before = run_before(folder.path)
        self.sent = Sent.read(folder.path) or Sent(run=before if resumed else "", store=public(address))
        self._client: MlflowClient | None = None
        self._writing = threading.Lock()
        self._closed = False

    def waiting(self, since: Sent | None = None) -> Waiting:
        """What is still to be sent, or was when no more than `since` had been."""
        return find_waiting(self.folder, since or self.sent, self.tracking)

    def connect(self, started_ms: int = 0) -> MlflowClient:
        """Find out what the store has of the run. A store that does not know it gets a new one, and all of the folder.

        To be called again after a refusal, which may have come after the taking. StoreError where nobody answers.
        `started_ms` is for a new one; 0: it starts now.
        """
        client = open_store(self.address)
        with explain(self.address):
            run = _find_run(client, self.sent.run) if self.sent.run else None
            if run is None:
                run = self._begin(client, started_ms)
        self._params = dict(run.data.params)
        self._last_steps = {metric.key: int(metric.step) for metric in run.to_proto().data.metrics}
        self._note(store=public(self.address))
        self._save()
        self._client = client
        return client

    def push(self) -> None:
        """Send what waits; what the store refuses for good is told and set aside.

        StoreError where the store does not answer or cannot take it now; `sent` says how far this came.
        """
        waiting = self.waiting()
        if not waiting:
            return
        try:
            client = self._client or self.connect(self.folder.status().started_ms)
            self._send_facts(client, waiting)
            self._send_metrics(client, waiting)
            if waiting.ending:
                self._send_state(client, waiting.ending)
            if waiting.model:
                self._send_model(client, waiting.model)
        except BaseException:
            self._client = None
            raise
        finally:
            self._save()

    def close(self) -> None:
        """Write nothing into the folder from now on, whatever another thread is still sending."""
        with self._writing:
            self._closed = True

    def _begin(self, client: MlflowClient, started_ms: int) -> Run:
        if self.sent.run:
            self._say(
                f"The tracking store {public(self.address)} has no run {self.sent.run}: a new one gets all that "
                f"{self.folder.path} holds."
            )
        name = self.tracking.run_name or self.folder.path.absolute().name
        experiment_id = find_experiment(client, self.tracking.experiment)
        run = client.create_run(experiment_id, started_ms or None, run_name=name)
        self.sent = Sent(run=run.info.run_id, store=public(self.address))
        return run

    def _send_facts(self, client: MlflowClient, waiting: Waiting) -> None:
        """MLflow's parameters never change: a continued run's new values become tags, `resumed.x.y`."""
        from mlflow.entities import Param, RunTag

        tags = dict(waiting.facts)
        if waiting.config:
            settings = dict(_flatten(self.folder.config()))
            self._log(client, "param", [Param(*item) for item in settings.items() if item[0] not in self._params])
            self._params = settings | self._params
            tags |= {f"resumed.{name}": value for name, value in settings.items() if self._params[name] != value}
        self._log(client, "tag", [RunTag(*item) for item in tags.items()])
        self._note(config=waiting.config or self.sent.config, facts=self.sent.facts | waiting.facts)

    def _send_metrics(self, client: MlflowClient, waiting: Waiting) -> None:
        """In requests of whole lines; a line that alone is more than MLflow takes at once goes in several."""
        batch: list[Metric] = []
        for count, line in enumerate(waiting.lines, waiting.first):
            metrics = list(self._fresh(line))
            if batch and len(batch) + len(metrics) > MOST_METRICS:
                self._log(client, "metric", batch)
                self._note(lines=count, last=line_key(waiting.lines[count - waiting.first - 1]))
                batch = []
            batch += metrics
        self._log(client, "metric", batch)
        if waiting.lines:
            self._note(lines=waiting.first + len(waiting.lines), last=line_key(waiting.lines[-1]))

    def _fresh(self, line: Mapping[str, Any]) -> Iterator[Metric]:
        """A line's metrics that the store has not got."""
        from mlflow.entities import Metric

        for name in line.keys() - NO_METRICS:
            if line["step"] > self._last_steps.get(name, -1):
                self._last_steps[name] = line["step"]
                yield Metric(name, math.nan if line[name] is None else line[name], line_key(line)[1], line["step"])

    def _send_state(self, client: MlflowClient, status: Status) -> None:
        with explain(self.address):
            if status.state == "running":
                client.update_run(self.sent.run, _STATUS["running"])
            else:
                client.set_terminated(self.sent.run, _STATUS[status.state], status.ended_ms)
        self._note(state=status.state, ended_ms=status.ended_ms)

    def _send_model(self, client: MlflowClient, name: str) -> None:
        model, step, alias = self.folder.path / "model", self.folder.status().published_step, self.tracking.alias
        try:
            version = register(model, name, run_id=self.sent.run, config=self.folder.config(), uri=self.address)
        except RefusedForGoodError as error:
            self._set_aside(client, f"model {name}", error)
            return
        if alias:
            try:
                with explain(self.address):
                    client.set_registered_model_alias(name, alias, str(version))
            except RefusedForGoodError as error:
                self._set_aside(client, f"alias {alias}", error)
        self._note(models={**self.sent.models, name: Version(version=version, step=step, alias=alias)})

    def _log(self, client: MlflowClient, kind: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """Send metrics, parameters or tags but for those of names that were refused for good."""
        items = [item for item in items if f"{kind} {item.key}" not in self.sent.refused]
        most = MOST_METRICS if kind == "metric" else _MOST_OTHERS
        for first in range(0, len(items), most):
            self._log_batch(client, kind, items[first : first + most])

    def _log_batch(self, client: MlflowClient, kind: str, items: Sequence[Metric | Param | RunTag]) -> None:
        """One refused name refuses all of a request: halve it until the name is found."""
        try:
            with explain(self.address):
                client.log_batch(self.sent.run, **{f"{kind}s": items})
        except RefusedForGoodError as error:
            names = sorted({item.key for item in items})
            if len(names) == 1:
                self._set_aside(client, f"{kind} {names[0]}", error)
                return
            half = set(names[: len(names) // 2])
            self._log_batch(client, kind, [item for item in items if item.key in half])
            self._log_batch(client, kind, [item for item in items if item.key not in half])

    def _set_aside(self, client: MlflowClient, what: str, error: StoreError) -> None:
        with explain(self.address):
            _find_run(client, self.sent.run)  # of a run that was deleted, everything is refused: StoreError
        why = reason(error.__cause__, self.address)
        self._say(f"The {what} will be missing in the tracking store {public(self.address)}, which refuses it: {why}.")
        self._note(refused={**self.sent.refused, what: why})

    def _note(self, **facts: Any) -> None:
        self.sent = self.sent.model_copy(update=facts)

    def _save(self) -> None:
        """A disk that refuses costs nothing but time: what was sent is found out from the store again."""
        with self._writing, suppress(OSError):
            if not self._closed:
                self.sent.write(self.folder.path)


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None
    if run.info.lifecycle_stage == "deleted":
        raise StoreError(
            f"The tracking store {public(client.tracking_uri)} has deleted the run {run_id}: restore it with "
            f"`mlflow runs restore --run-id {run_id}`, or remove mirror.json from the run's folder for a new one."
        )
    return run


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as MLflow's parameters: `section.field`, and text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", hide(text[:_MOST_PARAM_CHARACTERS])
