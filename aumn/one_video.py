"""Where `inference/one_video` lay up to commit 0e01a02. The loader in a model version registered by such an aumn imports
it from here, and uses an installed aumn where there is one. Nothing of ours imports this file.
"""

from aumn.inference.one_video import load_network, localize_video

__all__ = ["load_network", "localize_video"]
