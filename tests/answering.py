"""The command line for tests, run in their own process: quicker than `launching`, and without an exit code."""

import pytest
from typer.testing import CliRunner

from aumn.cli import app
from aumn.records import InputError


def answer(*arguments: object) -> list[str]:
    """What a command that succeeds prints: its lines, with single spaces."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.output.splitlines()]


def refusal(*arguments: object) -> str:
    """What a command that refuses says."""
    with pytest.raises(InputError) as error:
        answer(*arguments)
    return str(error.value)
