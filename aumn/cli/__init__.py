"""The command line: parse, then one call. Everything heavy is imported by the command that needs it.

A file a family of commands; this one assembles them, and turns errors into a sentence and an exit code.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import typer

from aumn.cli import data, doctor, evaluation, inspection, jobs, models, report, training
from aumn.records import InputError, Stopped
from aumn.runtime import preemption

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="AUMN at scale: weakly-supervised temporal action localization, from features to a registered model and an "
    "exact mAP. Add --debug to any command for a traceback.",
)
for command in (
    data.synth,
    data.pack,
    inspection.inspect,
    training.train,
    training.localize,
    evaluation.evaluate,
    report.report,
    jobs.init,
    jobs.submit,
    jobs.jobs,
    jobs.scaling,
    models.deliver,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(models.app, name="models")


def main() -> None:
    """Run a command; what the user can mend is one sentence on stderr and exit code 2 (docs/interruptions.md)."""
    preemption.listen()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started_s = time.time()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    code = _run(arguments)
    if "AUMN_PARENT_RUN" in os.environ and _is_first_rank() and code not in preemption.CODES.values():
        from aumn.jobs.job_record import record_step

        record_step(arguments, code, int(1000 * started_s))
    preemption.leave(code)


def _run(arguments: list[str]) -> int:
    try:
        app(args=arguments, prog_name="aumn")
    except SystemExit as done:  # how typer ends, well or not
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (InputError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        preemption.leaving()
        if _is_mine_to_tell(error):
            print(f"aumn: {_sentence(error)}", file=sys.stderr)
        elif getattr(error, "told_by_another_rank", None) is None:
            time.sleep(2)  # torchrun ends the others as soon as one has left, and the first one is to be heard
        return 2
    except Stopped as stopped:
        if _is_mine_to_tell(stopped):
            print(f"aumn: {stopped}", file=sys.stderr)
        return stopped.code
    return 0


def _is_mine_to_tell(error: BaseException) -> bool:
    """Whether no other rank tells it. Before the ranks are connected, all find the same, and the first one speaks."""
    if not isinstance(error, InputError | Stopped) or error.told_by_another_rank is not None:
        return not getattr(error, "told_by_another_rank", False)
    return _is_first_rank()


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}. Check the path, its permissions and the free space."
    return str(error)
