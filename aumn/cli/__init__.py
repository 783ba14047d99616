"""The command line: parse, then one call. Everything heavy is imported by the command that needs it.

A file a family of commands; this one assembles them, and turns errors into a sentence and an exit code.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import typer

from aumn.cli import data, doctor, evaluation, jobs, models, training, tuning, video
from aumn.records import InputError, Stopped
from aumn.runtime import preemption
from aumn.runtime.ending import as_told
from aumn.runtime.ranks import read_environment

FIRST_TELLS_S = 5

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AUMN at scale: weakly-supervised temporal action localization, from features to a registered model and an "
    "exact mAP. Add --debug to any command for a traceback.",
)
for command in (
    data.synth, video.extract, video.weights, data.pack, data.index, data.inspect, training.train, tuning.tune,
    training.localize, evaluation.evaluate, evaluation.report, jobs.init, jobs.submit, jobs.jobs, jobs.scaling,
    models.deliver, doctor.doctor,
):  # fmt: skip
    app.command()(command)
app.add_typer(models.app, name="models")


def main() -> None:
    """Run a command; what the user can mend is one sentence on stderr and exit code 2 (docs/interruptions.md)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (until the process ends)
    preemption.listen()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started_s = time.time()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    code = _run(arguments)
    if "AUMN_PARENT_RUN" in os.environ and _rank() == 0 and code not in preemption.CODES.values():
        from aumn.jobs.job_record import record_step

        record_step(arguments, code, int(1000 * started_s))
    preemption.leave(code)


def _run(arguments: list[str]) -> int:
    try:
        try:
            app(args=arguments, prog_name="aumn")
        finally:
            sys.stdout.flush()
    except SystemExit as done:  # how typer ends, well or not
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except BrokenPipeError:  # who reads our output, such as `head`, has enough; typer ends so, too
        return 1
    except BaseException as caught:
        error = as_told(caught)
        if error is None or ("--debug" in sys.argv and not isinstance(error, Stopped)):
            raise
        is_settled = isinstance(error, Stopped) or error.teller is not None
        rank = _rank() if error.teller is None else read_environment(os.environ).rank
        if rank > 0 and not is_settled and "TORCHELASTIC_RUN_ID" in os.environ:  # the ranks were not connected yet
            preemption.wait_to_be_ended(FIRST_TELLS_S)  # as torchrun does when the first rank has told it and left
            rank = 0  # it did not find it, so this rank tells it
        preemption.request_exit()
        code, message = explain(error, rank)
        if message is not None:
            print(f"aumn: {message}", file=sys.stderr)
        return code
    return 0


def explain(error: InputError | Stopped, rank: int) -> tuple[int, str | None]:
    """The exit code, and what this rank says; None: another rank says it.

    Before the ranks are connected all of them find the same, and the first one says it.
    """
    return error.code, str(error) if (error.teller or 0) == rank else None


def _rank() -> int:
    """This process's rank; 0 where neither torchrun nor srun has started it, whatever their variables say."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"} & os.environ.keys():
        return 0
    try:
        return read_environment(os.environ).rank
    except InputError:
        return 0
