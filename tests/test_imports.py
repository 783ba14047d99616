"""docs/design.md's table of who may import whom, held against the code's real imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aumn"
STAGES = {"train", "localize", "one_video", "scoring", "evaluate", "validation", "report", "reporting", "cli"}
STAGES |= {"run", "recorder", "resume"}
FORBIDDEN = {
    "records": {""},
    "model": {"", *STAGES, "data", "cluster", "tracking", "config", "checkpoint", "localization"},
    "localization": {"", *STAGES, "data", "cluster", "tracking", "config", "checkpoint", "model"},
    "data": {*STAGES, "model", "cluster", "tracking", "checkpoint", "localization", "config"},
    "checkpoint": {*STAGES, "model", "cluster", "tracking", "data", "localization"},
    "durable": {*STAGES, "model", "cluster", "tracking", "data", "localization"},
    "saving": {*STAGES, "model", "cluster", "tracking", "data", "localization"},
    "run_record": {*STAGES, "model", "cluster", "tracking", "data", "localization"},
    "optimizer_state": {*STAGES, "model", "cluster", "tracking", "data", "localization"},
    "cluster": {*STAGES, "model", "data", "tracking", "localization"},
    "tracking": {*STAGES, "model", "data", "cluster", "localization"},
    "evaluate": {*STAGES - {"evaluate"}, "model", "data", "tracking"},
    "finite": {*STAGES, "data", "tracking", "checkpoint", "localization"},
    "train": {*STAGES - {"train"}, "data", "tracking", "checkpoint", "localization"},
    "localize": {*STAGES - {"localize", "one_video", "scoring"}, "tracking"},
    "one_video": {*STAGES - {"one_video"}, "data", "cluster", "tracking", "config"},
    "scoring": {*STAGES - {"scoring"}, "tracking", "data"},
    "report": {*STAGES - {"report", "evaluate"}, "model", "data", "tracking"},
}
ONE_IMPORTER = {
    "webdataset": set(),  # the standard library writes the same tars; tests stream them with webdataset
    "torch.distributed": {"cluster.ranks"},
    "deepspeed": {"cluster.deepspeed_engine"},
    "mlflow": {
        f"tracking.{name}"
        for name in ("mlflow_tracker", "packaging", "promotion", "recipient", "registration", "registry", "store")
    },
    "aumn.data.truth.annotations": {"data.packing", "data.planning", "validation", "cli.evaluation", "reporting"},
    "aumn.data.truth.activitynet_json": {"data.annotations"},
    "aumn.data.truth.annotation_csv": {"data.annotations"},
    "aumn.data.truth.wtalc": {"data.annotations"},
    "h5py": {"data.containers"},
    "matplotlib": {"inspection_picture", "scaling"},
    "aumn.runtime.engines.build_engine": {"run"},
    "aumn.tracking.mlflow_tracker": {"run"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth; `from a import b` is a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path) for path in PACKAGE.rglob("*.py")}


def test_nobody_imports_against_the_flow():
    for module, names in modules().items():
        part = module.split(".")[0]
        for name in names:
            if name.startswith("aumn.") and part in FORBIDDEN:
                target = name.split(".")[1]
                assert target == part or target not in FORBIDDEN[part], f"aumn.{module} imports {name}"
                assert part != "records", f"records imports {name}"


@pytest.mark.parametrize(("library", "importers"), ONE_IMPORTER.items())
def test_heavy_libraries_and_ground_truth_have_few_importers(library, importers):
    found = {
        module for module, names in modules().items() if any(f"{name}.".startswith(f"{library}.") for name in names)
    }
    assert found == importers


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("aumn.cli", {"torch", "mlflow", "numpy", "pyarrow", "pydantic", "yaml", "webdataset"}),
        ("aumn.evaluation.evaluate", {"torch", "mlflow"}),
        ("aumn.data.packing.packing", {"torch", "mlflow", "h5py"}),
        ("aumn.config.run_config", {"torch", "mlflow", "numpy"}),
        ("aumn.tracking.mlflow_tracker", {"mlflow"}),
        ("aumn.training.loop", {"mlflow", "aumn.data.truth.annotations"}),
        ("aumn.data.loader", {"aumn.data.truth.annotations"}),
    ],
)
def test_importing_a_module_loads_nothing_it_does_not_need(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not absent & set(loaded.split())
