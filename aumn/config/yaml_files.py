"""YAML 1.2 as users write it: read with a sentence for whatever is wrong, and without YAML 1.1's silent surprises."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from aumn.records import InputError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and takes for numbers what YAML 1.2's core schema does.

    By YAML 1.1, `1:05` would be 65, `010` be 8 and `yes` be true; the date `2024-01-01` is text here, too.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (as the base class has it)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        digits = str(self.construct_scalar(node))
        return int(digits, 0 if digits[:2] in {"0o", "0x"} else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
for _kind, _pattern in {
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), None)


def read_yaml(path: Path, what: str) -> Any:
    """A YAML file's content; `what` says which file was meant, such as "a job, such as one of jobs/*.yaml"."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give {what}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a YAML file.") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a number of thousands of digits
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise InputError(f"{path} is not YAML that a person wrote: it is nested too deeply.") from None


def parse_value(override: str) -> tuple[list[str], Any]:
    """`a.b=value` as the names before `=` and the value, which is YAML."""
    name, _, value = override.partition("=")
    try:
        return name.split("."), yaml.load(value, _Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"override {override[:200]!r}: its value is not YAML; quote it for the shell.") from None


def as_override(name: str, value: Any) -> str:
    """What `parse_value` reads as this name and value, which JSON can hold."""
    return f"{name}={json.dumps(value)}"
