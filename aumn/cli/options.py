"""Options that several commands share, and commands whose options are declared elsewhere."""

from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from typing import Annotated, Any, get_args

import typer

TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow store; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
]


def signature_of(options: type, arguments: Collection[str]) -> Signature:
    """A command's parameters, from a dataclass whose fields are annotated with their help."""

    def parameter(field: Field[Any]) -> Parameter:
        kind, text = get_args(field.type)
        shown = typer.Argument(help=text) if field.name in arguments else typer.Option(help=text)
        default = Parameter.empty if field.default is MISSING else field.default
        return Parameter(
            field.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, shown]
        )

    return Signature([parameter(field) for field in fields(options)])
