"""A torch optimizer's state as named tensors, and back, to the bit.

Tensors are named after the parameter, not after its place in some optimizer, so that another engine can find them:
`optimizer/rgb.memory.units_KF/exp_avg`. Rates and decays are the config's, not the state's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aumn.records import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

PREFIX = "optimizer/"

Slots = Mapping[str, Mapping[str, "Tensor"]]
"""By parameter and slot, such as `exp_avg`."""


def named_state(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """An optimizer's state by `optimizer/<parameter>/<slot>`; its own tensors, not copies."""
    return {
        f"{PREFIX}{names[parameter]}/{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def read_slots(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], names: Sequence[str]) -> Slots:
    """A checkpoint's optimizer state; tensors of other prefixes are left alone.

    InputError where the checkpoint's parameters are not `names`, in this order.
    """
    saved = [name for group in facts["groups"] for name in group["params"]]
    if saved != list(names):
        differing = sorted(set(saved) ^ set(names)) or ["their order"]
        raise InputError(
            f"The checkpoint's optimizer and the model disagree on their parameters ({', '.join(differing[:10])}): "
            "resume with the config that the run started with."
        )
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(PREFIX):
            parameter, slot = name.removeprefix(PREFIX).rsplit("/", 1)
            found.setdefault(parameter, {})[slot] = value
    return found


def load_slots(optimizer: Optimizer, names: Mapping[Tensor, str], slots: Slots) -> None:
    """Let an optimizer go on from the slots of its parameters; those without any start anew."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: slots[names[parameter]] for index, parameter in enumerate(parameters) if names[parameter] in slots}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
