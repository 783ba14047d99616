"""Where instances come from: readers of annotation layouts, one file a layout.

Comes in: a JSON, a CSV, a folder, or a shard set's own table. Goes out: annotated videos, GroundTruth. Training may not
open this room; only validation does, where a run is told to follow its mAP.
"""
