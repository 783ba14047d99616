"""From video files to snippet features: decoded, resampled, cut into windows, and read by a network that is trained.

In: videos, and the weights of I3D or any callable of the user's. Out: a folder of T x D arrays with the facts that
packing needs. Nothing of AUMN's own network, of shards or of ground truth may enter; nothing is fetched from anywhere.
"""
