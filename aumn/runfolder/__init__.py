"""The only truth about a run: its lock, checkpoints, metrics and status, each on the disk whole or not at all.

One process writes a run's folder (the first rank); any number may read it. The network, engines and MLflow may not
enter.
"""
