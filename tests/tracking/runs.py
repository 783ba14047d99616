"""A run's folder and its mirror, written as training writes them, and what the store has of it, asked of MLflow."""

import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from aumn.runfolder.folder import RunFolder, Status
from aumn.runfolder.metrics import MetricsWriter
from aumn.tracking.mirror import Mirror
from aumn.tracking.sent import Sent
from aumn.tracking.settings import TrackingSettings


class TrackedRun:
    """The first rank's part of training: a folder's lock is held until the run has ended."""

    def __init__(self, path: Path, *, config=None, keep: int = 0, resumed=False, say=print, **tracking) -> None:
        """Begin anew, or go on behind the first `keep` lines of metrics."""
        self.folder, self.path = RunFolder(path), path
        settings = TrackingSettings(**tracking)
        self._lock = self.folder.writing()
        self._lock.__enter__()
        try:
            self.mirror = Mirror(path, settings, resumed=resumed, say=say)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self.metrics = MetricsWriter(path, keep=keep)
        self.folder.write_config({**(config or {}), "tracking": settings.model_dump()})
        self.status = Status()
        self.note(started_ms=_now_ms())

    @property
    def sent(self) -> Sent:
        return Sent.read(self.path)

    def log(self, metrics, step: int) -> None:
        self.metrics.append(step, metrics)
        self.mirror.wake()

    def note(self, **facts) -> None:
        self.status = self.status.model_copy(update=facts)
        self.folder.write_status(self.status)
        self.mirror.wake()

    def publish(self, step: int = 1) -> str | None:
        self.note(published_step=step)
        return self.mirror.publish()

    def end(self, state: str = "finished") -> "TrackedRun":
        self.metrics.sync()
        self.metrics.close()
        self.note(state=state, ended_ms=_now_ms())
        self.mirror.close(hasty=state != "finished")
        self._lock.__exit__(None, None, None)
        return self


def read_run(path: Path, store: str) -> Run:
    return MlflowClient(store).get_run(Sent.read(path).run)


def read_history(path: Path, store: str, name: str) -> list[tuple[int, float]]:
    """As MLflow returns it: a value twice, or out of order, shows."""
    history = MlflowClient(store).get_metric_history(Sent.read(path).run, name)
    return [(metric.step, metric.value) for metric in history]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
