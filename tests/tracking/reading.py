"""What a store holds of a run, asked of MLflow itself."""

from aumn.tracking.mlflow_tracker import MlflowTracker
from mlflow import MlflowClient
from mlflow.entities import Run


def read_run(tracker: MlflowTracker) -> Run:
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def read_history(tracker: MlflowTracker, name: str) -> list[tuple[int, float]]:
    """As MLflow returns it: a value twice, or out of order, shows."""
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)
    return [(metric.step, metric.value) for metric in history]
