"""Pipelines and sweeps: YAML into steps, steps into sbatch lines or local runs, and what SLURM says of them.

A cluster is asked through its own commands; no engine and no network may enter.
"""
