"""Who may import whom: the table is made of the folders themselves, in the order of the page; every file has a rule."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aumn"
PAGE = (
    "records", "ends", "files", "addresses", "config", "model", "data", "runtime", "runfolder", "inference",
    "one_video", "evaluation", "tracking", "training", "jobs", "tuning", "report",
    "inspect", "doctor", "synth", "video", "cli",
)  # fmt: skip
"""The rooms as data flow through them: a room imports itself, and rooms above it that its rule does not close."""
CLOSED = {
    "model": {"files", "config.run_config"},
    "data": {"model", "config.run_config"},
    "runtime": {"model", "data", "config.run_config"},
    "runfolder": {"model", "data", "runtime"},
    "inference": {"config.run_config", "data.truth", "data.sources", "data.packing", "data.indexing"},
    "one_video": {room for room in PAGE if room != "inference"},
    "evaluation": {"model", "data", "runfolder", "config"},
    "tracking": {"model", "data", "runtime"},
    "training": {"data.sources", "data.packing", "data.indexing"},
    "jobs": {
        *("model", "runtime", "inference", "training"),
        *("data.sources", "data.truth", "data.packing", "data.indexing"),
    },
    "tuning": {"model", *("data.sources", "data.truth", "data.packing", "data.indexing")},
    "report": {"model", "training", "jobs", "tuning", "data.sources", "data.packing", "data.indexing"},
    "inspect": {"model", "runtime", "runfolder", "inference", "tracking", "training", "jobs", "tuning", "report"},
    "doctor": {
        "model",
        "data",
        "runfolder",
        "inference",
        "evaluation",
        "training",
        "jobs",
        "tuning",
        "report",
        "inspect",
    },
    "synth": {room for room in PAGE if room not in {"records", "files"}},
    "video": {
        *(room for room in PAGE if room not in {"records", "files", "config", "data", "runtime"}),
        "config.run_config",
        "data.truth",
        "data.packing",
        "data.indexing",
        "data.loader",
        "data.shards",
    },
    "data.sources": {"data.truth", "data.packing", "data.indexing", "data.loader", "data.shards"},
    "data.shards": {
        *(f"data.sources.{name}" for name in ("extraction", "features", "forms", "releases", "streams")),
        *("data.truth", "data.packing", "data.indexing", "data.loader", "data.order"),
    },  # containers decode the members of tars that others packed
    "data.order": {"data"},
    "data.blocks": {"data"},
    "data.truth": {"data.packing", "data.indexing", "data.loader"},
    "data.packing": {"data.indexing", "data.loader"},
    "data.indexing": {"data.loader"},
    "data.loader": {"data.truth", "data.sources", "data.packing", "data.indexing"},
}
"""Beyond the order of the page: rooms, folders and files that stay shut."""
ONE_IMPORTER = {
    "webdataset": {"data.indexing.members"},  # the standard library writes the same tars, and ours are read by offset
    "torch.distributed": {"runtime.ranks"},
    "deepspeed": {"runtime.deepspeed_engine"},
    "h5py": {"data.sources.containers"},
    "av": {"video.frames"},
    "cv2": {"video.flow"},
    "matplotlib": {"inspect.picture", "jobs.scaling"},
    "aumn.runtime.engines.build_engine": {"training.run"},
    "aumn.one_video": set(),  # registered models of commit 0e01a02 import it
    "aumn.data.truth.annotation_csv": {"data.truth.annotations"},
    "aumn.data.truth.wtalc": {"data.truth.annotations"},
}
ROOMS_OF = {
    "mlflow": "tracking",
    "rich": "cli",
    "typer": "cli",
}
TEMPORAL_TRUTH = {
    "data.packing", "data.indexing", "training.validation", "cli.evaluation", "report.reporting", "inspect.inspection",
}  # fmt: skip
"""All who may open `data.truth`."""


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


@cache
def modules() -> dict[str, set[str]]:
    files = (path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem.strip("_") == path.stem)
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path) for path in files}


def is_in(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"{place}.")


def test_every_file_is_in_a_room_of_the_page():
    assert {module.partition(".")[0] for module in modules()} == set(PAGE)
    known = {module.removesuffix(".__init__") for module in modules()}
    assert {name for name in CLOSED if name not in PAGE} <= known


@pytest.mark.parametrize("room", PAGE)
def test_a_room_imports_only_what_stands_above_it(room):
    below = PAGE[PAGE.index(room) + 1 :]
    for module, names in modules().items():
        if not is_in(module, room):
            continue
        closed = set().union(*(places for where, places in CLOSED.items() if is_in(module, where)))
        for name in (name.removeprefix("aumn.") for name in names if name.startswith("aumn.")):
            target = name.split(".")
            if target[1:2] == ["settings"]:
                continue  # leaves, which every room may import
            assert target[0] not in below, f"aumn.{module} imports {name}, which stands below it"
            shut = [place for place in closed if is_in(name, place) and not is_in(module, place)]
            assert not shut, f"aumn.{module} imports {name}; {shut[0]} is closed to it"


def test_settings_import_nothing_of_ours_but_what_settings_are_made_of():
    found = {module: names for module, names in modules().items() if module.endswith(".settings")}
    assert len(found) > 5
    for module, names in found.items():
        libraries = {name.partition(".")[0] for name in names} - {"aumn"}
        assert libraries <= {
            "__future__",
            "collections",
            "csv",
            "hashlib",
            "functools",
            "math",
            "pathlib",
            "pydantic",
            "re",
            "typing",
        }, module
        ours = ("aumn.config.section", "aumn.records", "aumn.addresses")
        assert all(any(is_in(name, place) for place in ours) for name in names if is_in(name, "aumn")), module


@pytest.mark.parametrize(("library", "importers"), ONE_IMPORTER.items())
def test_heavy_libraries_have_few_importers(library, importers):
    assert {module for module, names in modules().items() if any(is_in(name, library) for name in names)} == importers


@pytest.mark.parametrize(("library", "room"), ROOMS_OF.items())
def test_a_library_stays_in_its_room(library, room):
    found = {module for module, names in modules().items() if any(is_in(name, library) for name in names)}
    assert found
    assert all(is_in(module, room) for module in found), found


def test_few_open_temporal_ground_truth():
    found = {module for module, names in modules().items() if any(is_in(name, "aumn.data.truth") for name in names)}
    assert all(is_in(module, "data.truth") or any(is_in(module, who) for who in TEMPORAL_TRUTH) for module in found)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("aumn.cli", {"torch", "mlflow", "numpy", "pyarrow", "pydantic", "yaml", "webdataset"}),
        ("aumn.evaluation.evaluate", {"torch", "mlflow"}),
        ("aumn.data.packing.packing", {"torch", "mlflow", "h5py"}),
        ("aumn.config.run_config", {"torch", "mlflow", "numpy"}),
        ("aumn.tracking.mirror", {"mlflow", "torch"}),
        ("aumn.training.loop", {"mlflow", "aumn.data.truth.annotations"}),
        ("aumn.data.loader", {"aumn.data.truth.annotations"}),
    ],
)
def test_importing_a_module_loads_nothing_it_does_not_need(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not absent & set(loaded.split())
