"""Where `inference/one_video` lay up to commit 0e01a02, for the models that such an aumn has registered.

Each ships its own loader, which imports this name of an installed aumn where there is one. Nothing of ours imports it.
"""

from aumn.inference.one_video import load_network, localize_video

__all__ = ["load_network", "localize_video"]
