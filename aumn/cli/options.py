"""Options that several commands share."""

from typing import Annotated

import typer

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
]
