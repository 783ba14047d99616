"""What `--help` promises: an example of every command that works as written, and completion in a real bash."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from aumn.cli import app
from tests.launching import QUIET, aumn, succeed
from tests.video.clips import random_weights, write_video

REPOSITORY = Path(__file__).parents[2]
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True}
IN_ORDER = (
    "synth", "extract", "weights", "pack", "index", "inspect", "train", "tune", "localize", "evaluate", "report",
    "models list", "models show", "models compare", "models promote", "deliver", "init", "submit", "jobs", "scaling",
    "doctor",
)  # fmt: skip


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def example(name: str) -> list[str]:
    _, found, text = (COMMANDS[name].help or "").partition("Example: ")
    assert found, f"aumn {name} --help shows no example"
    return shlex.split(text)


def environment() -> dict[str, str]:
    return os.environ | QUIET | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every example, run where a checkout's configs and jobs are, each after those that it builds on."""
    place = tmp_path_factory.mktemp("checkout")
    for folder in ("configs", "jobs", "slurm"):
        (place / folder).symlink_to(REPOSITORY / folder)
    (place / "videos").mkdir()
    write_video(place / "videos" / "clip.mp4", [frame / 25 for frame in range(16)], rate=25)
    torch.save(random_weights(2), place / "flow_imagenet.pt")
    found = {}
    for name in IN_ORDER:
        if name == "jobs":
            _measure_scaling(place)
        program, *arguments = example(name)
        if program == "aumn":
            found[name] = aumn(*arguments, cwd=place, timeout_s=200)
        else:
            words = [program, *arguments]
            found[name] = subprocess.run(words, cwd=place, env=environment(), check=False, timeout=200, **CAPTURED)
    return found


def _measure_scaling(place: Path) -> None:
    """A job like jobs/scaling.yaml, small: its training runs are what `aumn jobs` and `aumn scaling` look at."""
    points = {f"strong_{ranks}": {"resources.ranks_per_node": ranks} for ranks in (1, 2)}
    train = (
        "train configs/synthetic_demo.yaml data.snippets=16 run.folder={folder}/{point} run.steps=8 run.log_every=2 "
        "optimizer.warmup_steps=2 "
        "evaluation.videos=null tracking.uri=sqlite:///mlflow.db tracking.experiment=scaling tracking.model_name=null "
        "tracking.alias=null"
    )
    job = {"name": "scaling", "tracking": {"experiment": "scaling", "uri": "sqlite:///mlflow.db"},
           "steps": {"train": {"run": train, "sweep": {"axes": {"ranks": points}}}}}  # fmt: skip
    (place / "scaling.yaml").write_text(yaml.safe_dump(job))
    succeed(aumn("submit", "scaling.yaml", "--local", cwd=place, timeout_s=200))


def test_every_command_is_tried() -> None:
    assert sorted(IN_ORDER) == sorted(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", IN_ORDER)
def test_the_example_of_a_command_works_as_written(
    outcomes: dict[str, subprocess.CompletedProcess[str]], name: str
) -> None:
    done = outcomes[name]
    assert name.split(maxsplit=1)[0] in done.args
    assert done.returncode == 0, f"{shlex.join(done.args)}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or name == "train"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_example_whole(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"]).output
    assert " ".join(example(name)) in " ".join(" ".join(shown.replace("│", " ").split()).split())


COMPLETE = """
source ~/.bashrc
registered=$(complete -p aumn)
function_name=$(sed -E 's/.*-F ([^ ]+).*/\\1/' <<< "$registered")
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
"$function_name" aumn "${!#}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    def bash(script: str, *words: str) -> set[str]:
        variables = environment() | {"HOME": str(tmp_path)}
        command = ["bash", "-c", script, "bash", *words]
        done = subprocess.run(command, env=variables, check=False, timeout=60, **CAPTURED)
        return set(succeed(done).stdout.split())

    bash("aumn --install-completion; exit $?")
    assert {"pack", "promote"} & bash(COMPLETE, "aumn", "p") == {"pack"}
    assert bash(COMPLETE, "aumn", "models", "") == {"list", "show", "compare", "promote"}
    assert {"--trim-streams", "--layout"} <= bash(COMPLETE, "aumn", "pack", "--")
