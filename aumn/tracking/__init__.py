"""MLflow as a mirror of the run folder, and its registry of models: package, register, compare, promote.

The only importer of mlflow. Comes in: what a run's folder holds. Goes out: runs and model versions in a store. Nothing
that trains may wait for it.
"""
