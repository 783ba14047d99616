"""JSON that aumn wrote itself, read back: each field must be there and of its type, whoever edited it since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from aumn.records import InputError

Model = TypeVar("Model", bound=BaseModel)


def typed(kind: type[Model], found: bytes | Mapping[str, Any], file: Path, remedy: str) -> Model:
    """What a file holds, as JSON or as read already; InputError with the first field that is not as it was written."""
    try:
        return kind.model_validate_json(found) if isinstance(found, bytes) else kind.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "its JSON"
        raise InputError(f"{file} is damaged or of another aumn ({where}: {problem['msg']}): {remedy}.") from None
