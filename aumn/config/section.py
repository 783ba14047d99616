"""What every `settings.py` is made of: sections, and fields that say themselves what a run may do with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from aumn.records import InputError

# Strict: neither a truth value nor text is a number.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Size = Annotated[int, Field(ge=1, le=2**20, strict=True)]  # of what memory is taken for
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]

EVERY_STREAM = "default"
"""What a stream has that a mapping of streams does not name."""
StreamWeights = Annotated[
    dict[str, Weight], BeforeValidator(lambda given: given if isinstance(given, dict) else {EVERY_STREAM: given})
]
"""A weight for each stream, {rgb: 0.05, flow: 0.03}, or one number for all of them."""


class Section(BaseModel):
    """A part of the settings: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def modern(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Settings by today's names, where some had others once."""
        return given

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, given: Any) -> Any:
        return cls.modern(given) if isinstance(given, dict) else given


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
    return Field(default, description=description, validate_default=True, json_schema_extra=facts)


def refusal(sentence: str) -> PydanticCustomError:
    """What a Section's validator raises for settings that do not go together; the sentence names them."""
    return PydanticCustomError("settings", "{sentence}", {"sentence": sentence})


def refuse_unknown(name: str, given: Iterable[str], streams: Iterable[str], *, remedy: str) -> None:
    """InputError where a setting, a mapping of networks, names some that there are not."""
    streams = tuple(streams)
    if unknown := [stream for stream in given if stream not in (*streams, EVERY_STREAM)]:
        raise InputError(f"{name} names {', '.join(unknown)}, and the networks are {', '.join(streams)}: {remedy}.")
