"""A run in MLflow, through its client alone: no active run, no global state, several at once do not meet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aumn.records import InputError
from aumn.tracking.registry import register
from aumn.tracking.store import artifact_location, explain, open_store
from aumn.tracking.tracker import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

FLUSH_METRICS = 500
FLUSH_INTERVAL_S = 5.0
# What MLflow takes in one request.
_MOST_METRICS = 1000
_MOST_PARAMS = 100
_MOST_PARAM_CHARACTERS = 6000

_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """A Tracker that writes to an MLflow store; see `store.open_store` for `uri`.

    Given a `run_id`, that run goes on, and `experiment` and `run_name` are not looked at.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "aumn",
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._client = open_store(uri)
        with explain(self.uri):
            run = _continue(self._client, run_id) if run_id else _start(self._client, experiment, run_name)
        self.run_id: str = run.info.run_id
        self._params: dict[str, str] = dict(run.data.params)
        self._last_steps = {metric.key: int(metric.step) for metric in run.to_proto().data.metrics}
        self._pending: list[Metric] = []
        self._flushed_s = time.monotonic()
        self.set_tags(tags or {})

    @property
    def uri(self) -> str:
        """The store's address, a sqlite file's absolute."""
        return str(self._client.tracking_uri)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker. MLflow's parameters never change: a continued run's new values become tags, `resumed.x.y`."""
        from mlflow.entities import Param

        settings = dict(_flatten(config))
        new = [Param(name, value) for name, value in settings.items() if name not in self._params]
        with explain(self.uri):
            for first in range(0, len(new), _MOST_PARAMS):
                self._client.log_batch(self.run_id, params=new[first : first + _MOST_PARAMS])
        changed = {name: value for name, value in settings.items() if self._params.get(name, value) != value}
        self.set_tags({f"resumed.{name}": value for name, value in changed.items()})
        self._params.update(settings)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        fresh = [name for name in metrics if step > self._last_steps.get(name, -1)]
        self._pending += [Metric(name, float(metrics[name]), now_ms, step) for name in fresh]
        self._last_steps.update(dict.fromkeys(fresh, step))
        if len(self._pending) >= FLUSH_METRICS or time.monotonic() - self._flushed_s > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """See Tracker. What the store refuses stays pending; a metric that it gets twice it keeps once."""
        with explain(self.uri):
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_MOST_METRICS])
                del self._pending[:_MOST_METRICS]
        self._flushed_s = time.monotonic()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See Tracker."""
        from mlflow.entities import RunTag

        with explain(self.uri):
            self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_artifacts(self, path: Path, name: str) -> None:
        """See Tracker."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with explain(self.uri):
            log(self.run_id, str(path), name)

    def register_model(self, folder: Path, name: str, alias: str | None) -> int:
        """See Tracker."""
        return register(folder, name, alias, run_id=self.run_id, uri=self.uri).version

    def finish(self, outcome: Outcome) -> None:
        """See Tracker."""
        self.flush()
        with explain(self.uri):
            self._client.set_terminated(self.run_id, _STATUS[outcome])


def _start(client: MlflowClient, experiment: str, run_name: str | None) -> Run:
    return client.create_run(_experiment_id(client, experiment), run_name=run_name)


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


def _continue(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise InputError(
            f"The tracking store {client.tracking_uri} has no run {run_id} to continue: set tracking.uri to the store "
            "that the run started in, or start a new run."
        ) from None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as MLflow's parameters: `section.field`, and text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", text[:_MOST_PARAM_CHARACTERS]
