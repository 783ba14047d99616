"""What a run continues from and what others use: checkpoints and model artifacts.

A model artifact is a folder that loads without anything of training:

    model.safetensors     the weights
    model.json            the ModelCard: settings, classes, streams, training data, metrics
    SHA256SUMS            a checksum a file

A checkpoint, `<run>/checkpoints/step_00000400`, is the same with what training needs to go on:

    trainer.safetensors   the optimizer's tensors
    trainer.json          step, tracking run, config, best metric: whatever the trainer says

`<run>/best` is a symbolic link to one of them. Both are on the disk whole or not at all, other files may lie in them,
and nothing is ever unpickled. One process writes a run's checkpoints (the first rank); any number may read them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from aumn import __version__
from aumn.files import (
    DamagedError,
    check_file,
    check_folder,
    read_checked,
    remove_folder,
    remove_leftovers,
    standing,
    whole_folder,
)
from aumn.inference.settings import LocalizeSettings
from aumn.model.settings import ModelSettings
from aumn.records import Clock, InputError, Rows, is_bank

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 3
"""Of every JSON here. It goes up when a field, a setting of the card among them, is removed or means something else;
what an older aumn wrote is then read by code of its own, or refused in one sentence. 1: up to commit 497c31b, with
settings that `Section.modern` knows by today's names. 2: up to commit b3b6a4d, without `model.unit_rates`,
which were off."""

Read = TypeVar("Read")

logger = logging.getLogger(__name__)


class ChosenRules(BaseModel):
    """Where a model's rules of localization come from that were chosen after its training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str
    """The model that has the same weights, as it was called."""
    subset: str
    """That of the videos: held_out, or a name."""
    measure: str
    """What was compared."""
    videos: tuple[str, ...]

    def __str__(self) -> str:
        which = "held out of training" if self.subset == "held_out" else f"of {self.subset}"
        return f"chosen by {self.measure} on {len(self.videos):,} videos {which}, for the weights of {self.of}"


class ModelCard(BaseModel):
    """What a model is beside its weights: enough to build it, run it and say where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings
    """The network's."""
    localize: LocalizeSettings
    """Those that the metrics were measured with."""
    classes: tuple[str, ...]
    """In the order of the network's outputs."""
    streams: dict[str, int]
    """Feature width of each stream."""
    stride_frames: int
    """Frames from one snippet's start to the next one's."""
    window_frames: int | None = None
    """Frames that a snippet was read from; None: the stride."""
    extractor: dict[str, Any] | None = None
    """What made the features, where `aumn extract` did: the object `extractor` of extraction.json."""
    dataset: str
    """Name of the training data."""
    dataset_identity: str
    """Checksum of the training data: equal for the same videos, features and labels."""
    dataset_parts: tuple[str, ...] | None = None
    """Of several shard sets that were trained on together, each one's; None: it was one."""
    chosen_rules: ChosenRules | None = None
    """None: `localize` is the training run's."""
    metrics: dict[str, float]
    """Fractions, such as {"held_out/mAP/0.5": 0.31, "held_out/mAP/average": 0.36}; empty where nothing was measured."""
    aumn_version: str
    commit: str | None
    """As source_commit() said in training."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Their names: the streams', `joint`, or both."""
        return tuple(self.model.networks(self.streams))

    @property
    def clock(self) -> Clock:
        """When its snippets are."""
        return Clock(self.stride_frames, self.window_frames or self.stride_frames)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run continues from, in memory. As read, its tensors are on the host; to be saved, on any device.

    Those of a bank over ranks are `Rows` when saved, and this rank's rows when read.

    `trainer_facts` is whatever JSON can say.
    """

    step: int
    weights: Mapping[str, Any]
    card: ModelCard
    trainer_tensors: Mapping[str, Any]
    trainer_facts: Mapping[str, Any]


def save_model(path: Path, weights: Mapping[str, Tensor | Rows], card: ModelCard) -> Path:
    """Write a model artifact, in place of one that may be there. OSError where the disk refuses."""
    if path.exists() and not (path / "model.json").exists():
        raise InputError(f"{path} exists and is no model artifact, so it is not replaced: name another folder.")
    with whole_folder(path) as folder:
        _write_model(folder, weights, card)
    return path


def save_with_rules(path: Path, source: Path, card: ModelCard) -> Path:
    """Write the weights of another artifact, byte for byte, and a card of other rules. OSError: the disk refuses."""
    if path.exists():
        raise InputError(f"{path} already exists: name a new folder for the model.")
    weights = read_checked(source, "model.safetensors", remedy=_remedy(source))
    with whole_folder(path) as folder:
        (folder / "model.safetensors").write_bytes(weights)
        _write_card(folder, card)
    return path


def read_model(path: Path, rows: slice | None = None) -> tuple[dict[str, Tensor], ModelCard]:
    """The weights and the card of a model artifact or a checkpoint; of the memories these rows, None: all."""
    card, weights = read_card(path), _read_tensors(path, "model.safetensors", rows)
    if bad := [name for name, weight in weights.items() if not bool(weight.isfinite().all())]:
        raise DamagedError(f"{path} has weights that are NaN or infinite ({', '.join(bad[:3])}).", _remedy(path))
    return weights, card


def read_card(path: Path) -> ModelCard:
    """The card alone; imports no torch."""
    facts = _read_facts(path, "model.json", kind="model artifact or checkpoint")
    try:
        return ModelCard.model_validate(facts)
    except ValidationError as error:
        problems = error.errors()
        names = [".".join(map(str, problem["loc"])) for problem in problems]
        if all(problem["type"] == "extra_forbidden" for problem in problems):
            raise InputError(
                f"{path / 'model.json'} has {', '.join(names)}, which aumn {__version__} does not know: use the aumn "
                f"that wrote it, {facts.get('aumn_version')} (commit {facts.get('commit')}), or train the model again."
            ) from None
        details = [f"{name}: {problem['msg']}" for name, problem in zip(names, problems, strict=True)]
        raise InputError(f"{path / 'model.json'} is no model card: save it with save_model.", *details) from None


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint, *, keep_last: int, best: bool = False) -> Path:
    """Write a checkpoint, let `<run>/best` point to it if it is, then drop all but the best and the last few.

    The last `keep_last` count back from this step; later ones belong to training that was given up and stay until they
    are written anew. OSError where the disk refuses; then nothing is dropped. One that cannot be dropped, such as
    another user's, is named in a warning.
    """
    assert keep_last >= 1, keep_last
    path = run_dir / "checkpoints" / f"step_{checkpoint.step:08d}"
    remove_leftovers(path.parent)
    with whole_folder(path) as folder:
        _write_model(folder, checkpoint.weights, checkpoint.card)
        _write_tensors(folder / "trainer.safetensors", checkpoint.trainer_tensors)
        _write_facts(folder / "trainer.json", {"step": checkpoint.step, **checkpoint.trainer_facts})
    if best:
        mark_best(run_dir, path)
    _drop_old(run_dir, checkpoint.step, keep_last)
    return path


def read_checkpoint(path: Path, rows: slice | None = None) -> Checkpoint:
    """A checkpoint as it was saved, but for tuples among the trainer's facts, which are lists now; see `read_model`."""
    facts = read_trainer_facts(path)
    weights, card = read_model(path, rows)
    return Checkpoint(facts.pop("step"), weights, card, _read_tensors(path, "trainer.safetensors", rows), facts)


def read_trainer_facts(path: Path) -> dict[str, Any]:
    """What the trainer said of a checkpoint, its step among it, without any tensors; imports no torch."""
    facts = _read_facts(path, "trainer.json", kind="checkpoint")
    if type(facts.get("step")) is not int:
        raise InputError(f"{path / 'trainer.json'} has no step: it was edited. {_remedy(path)}")
    return facts


def last_checkpoint(run_dir: Path) -> Path | None:
    """The whole checkpoint of the highest step; a damaged one above it is named in a warning. None: there is none.

    Where there are some and all are damaged, it is an error: the user decides whether to start over.
    """
    found = _last_whole(run_dir, lambda path: check_folder(path, remedy=""))
    return found and found[0]


def read_last_checkpoint(run_dir: Path, rows: slice | None = None) -> tuple[Path, Checkpoint] | None:
    """The same, read as it is checked."""
    return _last_whole(run_dir, partial(read_checkpoint, rows=rows))


def last_card(run_dir: Path) -> ModelCard | None:
    """That of the highest step whose card is whole, whatever the rest of the checkpoint is."""
    for _, path in reversed(_steps(run_dir)):
        with suppress(DamagedError):
            return read_card(path)
    return None


def mark_best(run_dir: Path, path: Path) -> None:
    """Let `<run>/best` point to a checkpoint of the run."""
    link = run_dir / ".best.partial"  # a link cannot be redirected in one step, but a new one renamed over it
    link.unlink(missing_ok=True)
    link.symlink_to(path.relative_to(run_dir))
    link.replace(run_dir / "best")


def source_commit() -> str | None:
    """The git commit of this code, ending in `-dirty` where it was edited since; None where git does not track it."""
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    try:
        # Installed code may lie inside a checkout of something else, whose commit would say nothing.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _last_whole(run_dir: Path, read: Callable[[Path], Read]) -> tuple[Path, Read] | None:
    damage: list[str] = []
    for _, path in reversed(_steps(run_dir)):
        try:
            checkpoint = read(path)
        except DamagedError as error:
            damage.append(error.problem)
            continue
        for problem in damage:
            logger.warning("%s Continuing from %s, the checkpoint before it.", problem, path.name)
        return path, checkpoint
    if damage:
        headline = f"No checkpoint in {run_dir / 'checkpoints'} is whole: remove that folder to train from the start."
        raise InputError(headline, *damage)
    return None


def _write_model(folder: Path, weights: Mapping[str, Tensor | Rows], card: ModelCard) -> None:
    _write_tensors(folder / "model.safetensors", weights)
    _write_card(folder, card)


def _write_card(folder: Path, card: ModelCard) -> None:
    optional = ("window_frames", "extractor", "dataset_parts", "chosen_rules")
    unsaid = {name for name in optional if getattr(card, name) is None}  # as in older cards
    _write_facts(folder / "model.json", card.model_dump(exclude=unsaid))


def _write_tensors(file: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Rows)}
    if len(whole) < len(tensors):
        _write_blocks(file, tensors)
        return
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}, file)
        file.chmod(mode)  # by the umask, as every other file's; safetensors lets nobody else read what it writes
    except SafetensorError as error:  # its only errors here are the disk's
        raise OSError(f"{file} cannot be written: {error}") from None


def _write_blocks(file: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    """What `save_file` would write, byte for byte, of tensors in float32 that need not all be here."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * math.prod(tensor.shape)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(tensors.items()):
            for block in chain([tensor.own], tensor.rest()) if isinstance(tensor, Rows) else [tensor]:
                stream.write(block.detach().cpu().contiguous().numpy().astype("<f4", casting="equiv", copy=False).data)


def _write_facts(file: Path, facts: Mapping[str, Any]) -> None:
    versioned = {"format_version": FORMAT_VERSION, **facts}
    file.write_text(json.dumps(versioned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_tensors(folder: Path, name: str, rows: slice | None) -> dict[str, Tensor]:
    """Read into memory, not mapped: the folder may be dropped while its tensors are in use."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load

    try:
        if rows is not None:
            with safe_open(check_file(folder, name, remedy=_remedy(folder)), "pt") as file:
                return {
                    key: (file.get_slice(key)[rows] if is_bank(key) else file.get_tensor(key)).clone()
                    for key in file.keys()  # noqa: SIM118
                }
        tensors: dict[str, Tensor] = load(read_checked(folder, name, remedy=_remedy(folder)))
    except SafetensorError as error:
        raise DamagedError(f"{folder / name} holds no tensors ({error}).", _remedy(folder)) from None
    return tensors


def _read_facts(folder: Path, name: str, *, kind: str) -> dict[str, Any]:
    if not (standing(folder) / name).exists():
        raise DamagedError(f"{folder} is no {kind}: it has no {name}.", _remedy(folder))
    data = read_checked(folder, name, remedy=_remedy(folder))
    try:
        facts = json.loads(data)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "format_version" not in facts:
        raise InputError(f"{folder / name} is not the JSON of a {kind}. {_remedy(folder)}")
    version = facts.pop("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise InputError(
            f"{folder / name} has format version {version}, and this aumn reads up to {FORMAT_VERSION}: use the "
            "aumn that wrote it, or a newer one."
        )
    for settings in (facts, facts.get("config")):
        if version < 3 and isinstance(settings, dict) and isinstance(settings.get("model"), dict):
            ModelSettings.know_rates(settings["model"])
    return facts


def _remedy(folder: Path) -> str:
    """What to use instead of a folder that will not do, by what is beside it and in it."""
    if inside := _steps(folder):
        return f"Name one of its checkpoints, such as {inside[-1][1]}."
    folder = folder.resolve()  # it may be `best`
    before = [path for _, path in _steps(folder.parent.parent) if path.name < folder.name]
    if folder.parent.name == "checkpoints" and before:
        return f"Use the checkpoint before it, {before[-1]}."
    return "Name a folder that training wrote, or copy this one again from where it is whole."


def _steps(run_dir: Path) -> list[tuple[int, Path]]:
    """The run's checkpoints, whole or damaged, by step."""
    named = ((re.fullmatch(r"step_(\d{8,})", path.name), path) for path in run_dir.glob("checkpoints/*"))
    return sorted((int(match[1]), path) for match, path in named if match)


def _drop_old(run_dir: Path, step: int, keep_last: int) -> None:
    best = (run_dir / "best").resolve()
    for _, path in [found for found in _steps(run_dir) if found[0] <= step][:-keep_last]:
        if path.resolve() == best:
            continue
        try:
            remove_folder(path)
        except OSError as error:
            logger.warning("The old checkpoint %s cannot be removed: %s.", path, error)
