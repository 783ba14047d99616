"""A torch optimizer's state as named tensors and JSON, and back, to the bit.

Tensors are named after the parameter, not after its place in some optimizer, so that another engine can find them:
`optimizer/rgb.memory/exp_avg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aumn.records import InputError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "optimizer/"


def flatten_optimizer(state: Mapping[str, Any], parameters: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's `state_dict()` as tensors and JSON facts; `parameters` names them in the optimizer's own order.

    The tensors are the optimizer's own, not copies.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            target = tensors if isinstance(value, torch.Tensor) else numbers
            target[f"{PREFIX}{parameters[index]}/{slot}"] = value
    groups = [{**group, "params": [parameters[index] for index in group["params"]]} for group in state["param_groups"]]
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], parameters: Sequence[str]
) -> dict[str, Any]:
    """What `load_state_dict` takes, from what flatten_optimizer gave; tensors of other prefixes are left alone."""
    saved = [name for group in facts["groups"] for name in group["params"]]
    if saved != list(parameters):
        differing = sorted(set(saved) ^ set(parameters)) or ["their order"]
        raise InputError(
            f"The checkpoint's optimizer and the model disagree on their parameters ({', '.join(differing[:10])}): "
            "resume with the config that the run started with."
        )
    places = {name: index for index, name in enumerate(parameters)}
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **facts["numbers"]}.items():
        if name.startswith(PREFIX):
            parameter, slot = name.removeprefix(PREFIX).rsplit("/", 1)
            state.setdefault(places[parameter], {})[slot] = value
    groups = [{**_tuples(group), "params": [places[name] for name in group["params"]]} for group in facts["groups"]]
    return {"state": state, "param_groups": groups}


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """JSON made Adam's betas a list."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
