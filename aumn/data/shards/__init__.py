"""The format: tar members, the manifest, the description, and ShardSet, which reads all three.

Comes in: a folder that `packing` wrote. Goes out: Videos and their arrays. Temporal ground truth may not enter.
"""
