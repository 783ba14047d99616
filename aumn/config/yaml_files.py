"""YAML as users write it: read with a sentence for whatever is wrong, and without YAML's silent surprises."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from aumn.records import InputError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """A YAML file's content; `what` says which file was meant, such as "a job, such as one of jobs/*.yaml"."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give {what}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a YAML file.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None


def parse_value(override: str) -> tuple[list[str], Any]:
    """`a.b=value` as the names before `=` and the value, which is YAML."""
    name, _, value = override.partition("=")
    try:
        return name.split("."), yaml.load(value, _Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: its value is not YAML; quote it for the shell.") from None
