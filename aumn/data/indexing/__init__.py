"""Tars that somebody else packed, made a shard set where they lie: found, looked through, described.

Comes in: WebDataset tars, their labels or ground truth. Goes out: a description and tables beside them; no tar is
written or changed.
"""
