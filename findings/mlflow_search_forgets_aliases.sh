#!/usr/bin/env bash
# MLflow 3.17.2 on sqlite. Tried 2026-11-30, Debian, CPython 3.11.
# A version has the alias `champion`. `get_model_version` says so. The same version from `search_model_versions` has no alias, and so have
# the `latest_versions` of a registered model, whose own `aliases` are right. Who lists versions with their aliases by searching shows none.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2
venv/bin/python - 2> log <<'END'
from mlflow import MlflowClient

client = MlflowClient("sqlite:///mlflow.db", "sqlite:///mlflow.db")
client.create_registered_model("m")
client.create_model_version("m", "file:///nowhere")
client.set_registered_model_alias("m", "champion", "1")
found = {
    "get_model_version": client.get_model_version("m", "1").aliases,
    "search_model_versions": [version.aliases for version in client.search_model_versions("name='m'")],
    "get_registered_model": client.get_registered_model("m").aliases,
    "its latest_versions": [version.aliases for version in client.get_registered_model("m").latest_versions],
}
for name, aliases in found.items():
    print(f"{name}: {aliases}")
assert [*found.values()] == [["champion"], [[]], {"champion": 1}, [[]]], "what is found has changed"
print("as found: what a search finds has no aliases")
END
