"""What a disturbed command left against what the undisturbed one left: files byte for byte, metrics row by row."""

import json
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .places import Place
from .stages import Stage

CHECKSUMS = "SHA256SUMS"
OF_THE_CLOCK = ("_s", "_share", "slowest_rank")
"""Endings of metrics that no two runs have alike: only their steps are compared."""


@dataclass(frozen=True)
class Difference:
    """How many bytes of a file, or rows of a history, are not as in the undisturbed run."""

    what: str
    bytes: int = 0
    rows: int = 0


def differences(stage: Stage, undisturbed: Place, disturbed: Place, said: str = "") -> list[Difference]:
    """`said` is all that the commands printed: a checkpoint that training's last start told it could not write, and not
    that it could again, is not missed; nor is the best one where it told that of that one.
    """
    last_start = said[said.rfind(" held out; steps ") :]
    given_up = last_start.rfind("cannot be written, and") > last_start.rfind("Checkpoints can be written again")
    best_is_lost = lost_for_good(undisturbed.work / "run" / "best", said)
    found = []
    for output in stage.outputs:
        if (given_up and output.startswith(("run/checkpoints", "run/best"))) or (best_is_lost and output == "run/best"):
            found += _damage(disturbed.work / output, output) if (disturbed.work / output).is_dir() else []
        elif best_is_lost and output.startswith("run/checkpoints"):  # what was the best is a fact of the trainer
            files = _of_files(undisturbed.work / output, disturbed.work / output, output)
            found += [difference for difference in files if not difference.what.endswith("/trainer.json")]
        else:
            found += _of_files(undisturbed.work / output, disturbed.work / output, output)
    found += [
        Difference(f"{path.name} was left behind", bytes=1) for path in disturbed.work.glob(".*") if path.is_file()
    ]
    if stage.name.startswith("train"):
        found += _of_history("metrics.jsonl", logged(undisturbed), logged(disturbed))
        found += _of_history("metrics", history(undisturbed), history(disturbed))
        found += _of_status(_status(undisturbed), _status(disturbed), best_is_lost)
        found += _of_registry(_registered(undisturbed), _registered(disturbed))
    return found


def lost_for_good(best: Path, said: str) -> bool:
    """Whether training told that it could not save what `best` links to, and did not come by that step again."""
    refused = list(re.finditer(r"Step (\d+) has the best mAP so far, .*?could not be saved", said))
    starts = list(re.finditer(r" held out; steps (\d+) to ", said))
    steps = {
        int(match[1])
        for match in refused
        if not any(start.start() > match.start() and int(start[1]) < int(match[1]) for start in starts)
    }
    return any(best.resolve().name == f"step_{step:08d}" for step in steps)


def _of_files(expected: Path, found: Path, name: str) -> Iterator[Difference]:
    if expected.is_file():
        content = found.read_bytes() if found.is_file() else b""
        if (count := _differing(_neutral(expected, expected.read_bytes()), _neutral(found, content))) > 0:
            yield Difference(name, bytes=count)
        return
    for entry in sorted({path.name for folder in (expected, found) if folder.is_dir() for path in folder.iterdir()}):
        if entry != CHECKSUMS:
            yield from _either(expected / entry, found / entry, f"{name}/{entry}")
    if (expected / CHECKSUMS).exists() and found.is_dir():
        yield from _damage(found, name)


def _either(expected: Path, found: Path, name: str) -> Iterator[Difference]:
    if expected.exists():
        yield from _of_files(expected, found, name)
    else:
        yield Difference(f"{name}, which should not be there", bytes=max(1, found.stat().st_size))


def _damage(folder: Path, name: str) -> Iterator[Difference]:
    command = ["sha256sum", "--check", "--quiet", "--strict", CHECKSUMS]
    check = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    if check.returncode:
        yield Difference(f"{name}: {check.stdout}{check.stderr}", bytes=1)


def _neutral(path: Path, content: bytes) -> bytes:
    """Without the commit, which an edit meanwhile changes, where the features came from, and how long ranks wait."""
    if path.name == "model.json" and content:
        return content.replace(json.dumps(json.loads(content)["commit"]).encode(), b"")
    if path.name == "trainer.json" and content:
        facts = json.loads(content)
        for name in ("shards", "read", "cache", "store_away_s"):
            del facts["config"]["data"][name]
        for name in [name for name in facts["config"]["run"] if name.endswith("_timeout_s")]:
            del facts["config"]["run"][name]
        return json.dumps(facts).encode()
    return content


def _differing(expected: bytes, found: bytes) -> int:
    shorter = min(len(expected), len(found))
    first, second = (np.frombuffer(content[:shorter], np.uint8) for content in (expected, found))
    return int((first != second).sum()) + max(len(expected), len(found)) - shorter


History = Counter[tuple[str, int, float | None]]


def history(place: Place) -> History:
    """Each metric's steps and values in the run that the registered model names; values of the clock are None."""
    rows = _ask(place.database, "select key, step, value from metrics where run_uuid = ?", _tracked(place))
    return Counter((key, step, None if key.endswith(OF_THE_CLOCK) else value) for key, step, value in rows)


def logged(place: Place) -> History:
    """The same of the run's own file, in which a line that is there twice counts twice."""
    lines = map(json.loads, (place.work / "run" / "metrics.jsonl").read_text().splitlines())
    return Counter(
        (key, line["step"], None if key.endswith(OF_THE_CLOCK) else value)
        for line in lines
        for key, value in line.items()
        if key not in {"step", "at_ms"}
    )


def _status(place: Place) -> dict[str, object]:
    """How the run ended, without what differs from launch to launch."""
    status: dict[str, object] = json.loads((place.work / "run" / "status.json").read_text())
    return {name: status[name] for name in ("state", "why", "step", "steps", "best", "best_step", "published_step")}


def _of_status(expected: dict[str, object], found: dict[str, object], best_is_lost: bool) -> Iterator[Difference]:
    forgiven = {"best", "best_step"} if best_is_lost else set()
    if differing := [name for name in expected if expected[name] != found[name] and name not in forgiven]:
        yield Difference(f"status.json: {', '.join(f'{name} is {found[name]}' for name in differing)}", rows=1)


def _tracked(place: Place) -> str:
    runs = _ask(place.database, "select run_id from model_versions")
    return str(runs[0][0]) if runs else ""


def _of_history(where: str, expected: History, found: History) -> Iterator[Difference]:
    for problem, rows in (("missing", expected - found), ("too many", found - expected)):
        if rows:
            key, step, _ = min(rows, key=lambda row: (row[1], row[0]))
            yield Difference(f"{where} {problem}, first {key} of step {step}", rows=rows.total())


def _registered(place: Place) -> list[tuple[object, ...]]:
    """The model's versions and where the alias is, and how the tracked run ended."""
    versions = _ask(place.database, "select name, version from model_versions")
    aliases = _ask(place.database, "select name, version, alias from registered_model_aliases")
    return [*versions, *aliases, *_ask(place.database, "select status from runs where run_uuid = ?", _tracked(place))]


def _of_registry(expected: list[tuple[object, ...]], found: list[tuple[object, ...]]) -> Iterator[Difference]:
    if sorted(map(str, expected)) != sorted(map(str, found)):
        yield Difference(f"the registry and the run's end are {found}, not {expected}", rows=1)


def _ask(database: Path, query: str, *values: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()
