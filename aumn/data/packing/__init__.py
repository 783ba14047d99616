"""Sources into shards: planned from headers, written in parallel, gone on with after a kill.

Comes in: features and ground truth. Goes out: a shard set, there whole or not at all. Torch may not enter.
"""
