"""Settings chosen by the program: what a shard set looks like, what to try on it, what held-out training videos say.

Comes in: a shard set and a run configuration to start from. Goes out: a configuration with its reasons, and the run
folders that they come from. Temporal ground truth is opened by `training.validation` alone, for held-out training
videos alone.
"""
