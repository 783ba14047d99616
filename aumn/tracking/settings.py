"""Where metrics and models go."""

from __future__ import annotations

from pydantic import model_validator

from aumn.addresses import has_password
from aumn.config.section import Section, refusal, setting


class TrackingSettings(Section):
    """Where metrics and models go. They make no other model, and a resumed run may change all of them."""

    enabled: bool = setting(True, "Off: the other settings here wait.", same_model=True)
    uri: str | None = setting(
        None, "MLflow store; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.", same_model=True
    )
    experiment: str = setting("aumn", "MLflow's experiment.", same_model=True)
    run_name: str | None = setting(None, "null: the name of run.folder.", same_model=True)
    model_name: str | None = setting(
        None, "Registered under this name at the end; null: not registered.", same_model=True
    )
    alias: str | None = setting(
        None, "Given to the registered version, e.g. `challenger`.", same_model=True, needs="tracking.model_name"
    )

    @model_validator(mode="after")
    def _check(self) -> TrackingSettings:
        if has_password(self.uri or ""):
            raise refusal(
                "tracking.uri must hold no password, since settings are kept with checkpoints and models: set "
                "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
            )
        return self
