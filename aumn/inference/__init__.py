"""From scores to detections: proposals, localization of a subset or of one video, and the files of both.

Comes in: a model and a shard set or arrays. Goes out: Detections, Parquet parts, scores to be looked at. Ground truth
may not enter.
"""
