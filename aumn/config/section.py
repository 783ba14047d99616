"""What every `settings.py` is made of: sections, and fields that say themselves what a run may do with them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

# Strict: neither a truth value nor text is a number.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Size = Annotated[int, Field(ge=1, le=2**20, strict=True)]  # of what memory is taken for
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Section(BaseModel):
    """A part of the settings: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def setting(
    default: Any, description: str, *, may_change: bool = False, same_model: bool = False, needs: str | None = None
) -> Any:
    """A field of a Section; `...` as its default: it must be given.

    Args:
        default: what the paper says, where it says something.
        description: for people, with its unit.
        may_change: a resumed run may have another value than it began with.
        same_model: another value makes no other model, so comparisons of runs and of models leave it out, and a
            resumed run may have it.
        needs: the setting without which this one has no effect, `section.field` that must not be 0 or null,
            or `section.field=value`. A value other than the default is then an error.
    """
    facts: dict[str, JsonValue] = {"may_change": may_change or same_model, "same_model": same_model, "needs": needs}
    return Field(default, description=description, json_schema_extra=facts)


def refusal(sentence: str) -> PydanticCustomError:
    """What a Section's validator raises for settings that do not go together; the sentence names them."""
    return PydanticCustomError("settings", "{sentence}", {"sentence": sentence})
