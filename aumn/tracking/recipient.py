"""A run in an MLflow store that letters are delivered to, each exactly once however often it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aumn.records import InputError
from aumn.tracking.registration import register
from aumn.tracking.spool import Letter
from aumn.tracking.store import explain, open_store, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

# What MLflow takes in one request.
MOST_METRICS = 1000
_MOST_PARAMS = 100
_MOST_PARAM_CHARACTERS = 6000


class Recipient:
    """The run, as the store has it. What it has already is dropped: steps of a metric up to its last one, parameters,
    model versions. So a run that goes back to a checkpoint leaves neither gaps nor doubles.

    StoreError where the store does not take a letter or does not answer.
    """

    def __init__(self, uri: str | None, run_id: str, folder: Path) -> None:
        """`folder` is where the spool lies."""
        self.run_id = run_id
        self.versions: dict[str, int] = {}  # of the models delivered
        self._uri, self._folder = uri, folder
        self._client: MlflowClient | None = None

    def connect(self) -> None:
        """Find out what the store has. To be called again after a refusal, which may have come after the taking."""
        client = open_store(self._uri)
        with explain(client.tracking_uri):
            run = _find_run(client, self.run_id)
        self._params = dict(run.data.params)
        self._last_steps = {metric.key: int(metric.step) for metric in run.to_proto().data.metrics}
        self._client = client

    def deliver(self, letters: Sequence[Letter]) -> int:
        """Send some of the letters, at least the first; how many are delivered now."""
        if self._client is None:
            self.connect()
        assert self._client is not None
        try:
            with explain(self._client.tracking_uri):
                return self._send(self._client, letters)
        except BaseException:
            self._client = None
            raise

    def _send(self, client: MlflowClient, letters: Sequence[Letter]) -> int:
        match letters[0]:
            case {"metrics": _}:
                return self._send_metrics(client, letters)
            case {"config": config}:
                self._send_config(client, config)
            case {"tags": tags}:
                _send_tags(client, self.run_id, tags)
            case {"status": "RUNNING"}:
                client.update_run(self.run_id, status="RUNNING")
            case {"status": status, "at_ms": end_time}:
                client.set_terminated(self.run_id, status, end_time)
            case {"model": model}:
                self._send_model(client, model)
            case letter:
                raise InputError(f"{letter} in {self._folder} is none of the letters that this aumn knows.")
        return 1

    def _send_metrics(self, client: MlflowClient, letters: Sequence[Letter]) -> int:
        """As many letters of metrics as one request takes; a letter that alone is more goes in several."""
        last_steps, count = dict(self._last_steps), 0
        batch: list[Metric] = []
        for letter in letters:
            metrics = list(_fresh(letter, last_steps)) if "metrics" in letter else None
            if metrics is None or (batch and len(batch) + len(metrics) > MOST_METRICS):
                break
            batch += metrics
            last_steps.update({metric.key: metric.step for metric in metrics})
            count += 1
        for first in range(0, len(batch), MOST_METRICS):
            client.log_batch(self.run_id, metrics=batch[first : first + MOST_METRICS])
        self._last_steps = last_steps
        return count

    def _send_model(self, client: MlflowClient, model: Mapping[str, Any]) -> None:
        version = register(
            self._folder / model["folder"],
            model["name"],
            model["alias"],
            run_id=self.run_id,
            config=model["config"],
            uri=str(client.tracking_uri),
        )
        self.versions[model["name"]] = version.version

    def _send_config(self, client: MlflowClient, config: Mapping[str, Any]) -> None:
        """MLflow's parameters never change: a continued run's new values become tags, `resumed.x.y`."""
        from mlflow.entities import Param

        settings = dict(_flatten(config))
        new = [Param(name, value) for name, value in settings.items() if name not in self._params]
        for first in range(0, len(new), _MOST_PARAMS):
            client.log_batch(self.run_id, params=new[first : first + _MOST_PARAMS])
        changed = {name: value for name, value in settings.items() if self._params.get(name, value) != value}
        _send_tags(client, self.run_id, {f"resumed.{name}": value for name, value in changed.items()})
        self._params = settings | self._params


def _fresh(letter: Letter, last_steps: Mapping[str, int]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for name, value in letter["metrics"].items():
        if letter["step"] > last_steps.get(name, -1):
            yield Metric(name, value, letter["at_ms"], letter["step"])


def _send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _find_run(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise InputError(
            f"The tracking store {without_password(client.tracking_uri)} has no run {run_id} to continue: set "
            "tracking.uri to the store that the run started in, or start a new run."
        ) from None


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as MLflow's parameters: `section.field`, and text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", without_password(text[:_MOST_PARAM_CHARACTERS])
