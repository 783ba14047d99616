"""A run's settings: YAML and `section.field=value` overrides in, one frozen RunConfig out.

The sections stand beside the code that they set, in the `settings.py` of each room. Unknown or wrong fields are all
reported at once; nothing is ever merged silently and nothing changes after the run has started.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo

from aumn.config.section import Section, refusal
from aumn.config.yaml_files import parse_value, read_yaml
from aumn.data.settings import BatchSettings, DataSettings
from aumn.inference.settings import LocalizeSettings
from aumn.model.settings import LossSettings, ModelSettings
from aumn.records import InputError
from aumn.runtime.settings import EngineSettings, OptimizerSettings
from aumn.tracking.settings import TrackingSettings
from aumn.training.settings import AlertSettings, EvaluationSettings, RunSettings

REMOVED = {
    "run.hang_timeout_s": "run.step_timeout_s is how long ranks wait for each other in a step (learnt where you leave "
    "it out), run.start_timeout_s outside of steps.",
    "engine.shared_memory": "the ranks of one machine sum gradients as all others do: leave it out.",
}
"""Settings that are gone, by name, and why: a file that sets one gets this sentence; a run that has them goes on."""


class RunConfig(Section):
    """All of a training run."""

    data: DataSettings
    run: RunSettings
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    batch: BatchSettings = BatchSettings()
    engine: EngineSettings = EngineSettings()
    localize: LocalizeSettings = LocalizeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    alerts: AlertSettings = AlertSettings()

    @property
    def store_away_s(self) -> float:
        """How long a rank may have to wait for its data; 0 where all of them are files."""
        return self.data.store_away_s if any(isinstance(place, str) for place in self.data.places) else 0.0

    def check_streams(self, widths: Mapping[str, int]) -> None:
        """InputError where what is set for each network does not fit a shard set's streams."""
        networks = self.model.networks(widths)
        self.loss.check(networks)
        self.localize.shares(networks)

    def refused_on_resume(self, begun: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """A line for each setting that a run which began with `begun` may not have now.

        `begun` is `model_dump(mode="json")` of then. `run.steps` may change where nothing is a share of the steps.
        """
        before, now = settings_of(begun), settings_of(self.model_dump(mode="json"))
        changed = [name for name, value in now.items() if before.get(name) != value]
        lines = {name: f"{name}: the run has {before.get(name)!r}, now {now[name]!r}" for name in changed}
        refused = [lines[name] for name in changed if not says(name, "may_change")]
        shares = [] if self.optimizer.schedule == "constant" else [f"optimizer.schedule={self.optimizer.schedule}"]
        if self.loss.pseudo_labels > 0 and self.loss.pseudo_labels_from > 0:
            shares.append("loss.pseudo_labels_from")
        if shares and "run.steps" in changed:
            refused.append(f"{lines['run.steps']}, and {' and '.join(shares)} would move with it")
        return refused

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        problems = list(_without_effect(self.model_dump(mode="json")))
        if self.optimizer.warmup_steps > self.run.steps:
            problems.append(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is more than run.steps={self.run.steps}, so "
                "that the learning rate would never be reached: shorten the one, or lengthen the other"
            )
        away_s = self.store_away_s
        for name in ("step_timeout_s", "start_timeout_s") if away_s else ():
            timeout_s = getattr(self.run, name)
            if timeout_s is not None and away_s >= timeout_s:
                problems.append(
                    f"data.store_away_s={away_s:g} is not less than run.{name}={timeout_s}, so that ranks which wait "
                    "for one without data would take it for hung: lower the one, or raise the other"
                )
        if problems:
            raise refusal("\n".join(problems))
        return self


SECTIONS: dict[str, Any] = {name: section.annotation for name, section in RunConfig.model_fields.items()}
FIELDS: dict[str, FieldInfo] = {
    f"{section}.{name}": field for section, of in SECTIONS.items() for name, field in of.model_fields.items()
}


def settings_of(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every setting that a saved configuration had in force, by `section.field`.

    `saved` is `model_dump(mode="json")` of then; a setting that it is too old to know had what is its default now.
    """
    modern = {name: SECTIONS[name].modern(dict(of)) if name in SECTIONS else of for name, of in saved.items()}
    values = {name: default(name) for name in FIELDS} | _flatten(modern)
    return {
        name: value for name, value in values.items() if name not in REMOVED and _is_met(says(name, "needs"), values)
    }


def says(name: str, fact: str) -> Any:
    """What a field says of itself (see `section.setting`); None of a name that is no setting now."""
    field = FIELDS.get(name)
    return field and dict(field.json_schema_extra or {})[fact]  # type: ignore[arg-type]


def default(name: str) -> Any:
    """What a setting is where nobody sets it, as `model_dump(mode="json")` has it; None where it must be set."""
    field = FIELDS.get(name)
    return None if field is None or field.is_required() else field.default


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `section.field=value` overrides (values are YAML); InputError lists every problem."""
    settings = read_yaml(path, "a run configuration, such as one of configs/*.yaml")
    if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
        raise InputError(f"{path} must hold sections ({', '.join(SECTIONS)}), each with `field: value` lines.")
    return changed_config(settings, overrides, str(path))


def changed_config(settings: Mapping[str, Any], overrides: Sequence[str], name: str) -> RunConfig:
    """Settings as YAML has them, with overrides; InputError lists every problem of what is called `name`."""
    changed = deepcopy(dict(settings))
    _apply(changed, overrides)
    try:
        return RunConfig.model_validate(changed)
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in _describe(problem)]
        raise InputError(f"{name} is not a run configuration ({len(problems)} to mend):", *problems) from None


def names_of(overrides: Iterable[str]) -> set[str]:
    """What overrides set, by today's section.field."""
    found = set()
    for override in overrides:
        (section, *fields), value = parse_value(override)
        of = SECTIONS.get(section, Section).modern({fields[0]: value}) if fields else {}
        found |= {f"{section}.{name}" for name in of}
    return found


def change_rules(rules: LocalizeSettings, overrides: Sequence[str]) -> LocalizeSettings:
    """A model's rules of localization with `localize.field=value` overrides; InputError lists every problem."""
    settings: dict[str, Any] = {"localize": rules.model_dump(mode="json")}
    _apply(settings, overrides)
    try:
        return _Rules.model_validate(settings).localize
    except ValidationError as error:
        raise InputError(
            "The model's rules cannot be changed so:", *(line for one in error.errors() for line in _describe(one))
        ) from None


class _Rules(BaseModel):
    localize: LocalizeSettings

    @model_validator(mode="after")
    def _check(self) -> _Rules:
        if problems := list(_without_effect(self.model_dump(mode="json"))):
            raise refusal("\n".join(problems))
        return self


def _apply(settings: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        if not re.match(r"[^.=]+\.[^=]+=", override):
            raise InputError(
                f"override {override!r} must read section.field=value, e.g. optimizer.learning_rate=0.001."
            )
        (*parents, field), value = parse_value(override)
        within = settings
        for parent in parents:
            within = within.setdefault(parent, {})
            if not isinstance(within, dict):
                raise InputError(f"override {override!r}: {parent} is a single value, which has no {field}.")
        within[field] = value


def _flatten(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in settings.items() for name, value in fields.items()}


def _without_effect(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each setting that needs another one which is not there."""
    values = _flatten(settings)
    for name, value in values.items():
        needs = says(name, "needs")
        if value != default(name) and not _is_met(needs, values):
            missing = needs.partition("=")[0]
            yield (
                f"{name}={_text(value)} has no effect with {missing}={_text(values[missing])}: set {needs}, or "
                f"leave {name} at {_text(default(name))}"
            )


def _is_met(needs: str | None, values: Mapping[str, Any]) -> bool:
    """Whether what a setting needs is there; see `section.setting`."""
    name, _, wanted = (needs or "").partition("=")
    return not name or (_text(values[name]) == wanted if wanted else bool(values[name]))


def _text(value: Any) -> str:
    """As YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _fields_of(parents: Sequence[str]) -> list[str]:
    """The names within a section, or within a field that has some itself."""
    within: Any = RunConfig
    for parent in parents:
        within = get_args(within)[0] if parent.isdigit() else within.model_fields[parent].annotation
    return list(within.model_fields)


def _describe(problem: Any) -> list[str]:
    """A line a problem: the field, its value, the rule, and for a typo the nearest name."""
    if problem["type"] == "settings":  # ours, about fields together
        return [f"{line}." for line in problem["msg"].split("\n")]
    *parents, name = (str(part) for part in problem["loc"])
    where = ".".join((*parents, name))
    if problem["type"] == "missing":
        return [f"{where} is missing; it has no default."]
    if where in REMOVED:
        return [f"{where} is no setting any more: {REMOVED[where]}"]
    if problem["type"] == "extra_forbidden":
        fields = _fields_of(parents)
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(fields)}."
        return [f"{where} is not a setting: {hint}"]
    if problem["type"] == "model_type":
        return [f"{where}={problem['input']!r} must be a mapping of {', '.join(_fields_of((*parents, name)))}."]
    return [f"{where}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."]
