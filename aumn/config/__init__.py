"""All of a run's settings: YAML and `section.field=value` overrides in, one frozen RunConfig out.

Each section is declared beside the code it sets (`ROOM/settings.py`) and only put together here. Nothing heavy may be
imported: no torch, no numpy, no mlflow.
"""
