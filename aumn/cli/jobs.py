"""`aumn submit`, `aumn jobs`: pipelines and sweeps, on SLURM or here."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aumn.cli.console import say
from aumn.cli.printing import show, table
from aumn.records import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from aumn.jobs.job_folder import JobFolder, PointStatus

REFRESH_S = 5.0


def init(folder: Annotated[Path, typer.Argument(help="Where configs/, jobs/ and slurm/ are to lie.")]) -> None:
    """Lay out the run configurations, jobs and batch scripts that come with aumn, to be edited and used.

    Example: aumn init my_project
    """
    import shutil

    from aumn.jobs.sbatch import SHARE

    parts = sorted(part.name for part in SHARE.iterdir())
    if there := [str(folder / part) for part in parts if (folder / part).exists()]:
        raise InputError(f"{', '.join(there)} exists already: name another folder, or move it away.")
    for part in parts:
        shutil.copytree(SHARE / part, folder / part)
    print(f"{folder} has {', '.join(f'{part}/' for part in parts)} now. Go on there, for example:")
    print(f"cd {shlex.quote(str(folder))}; aumn submit jobs/thumos14.yaml --dry-run")


def submit(
    job: Annotated[Path, typer.Argument(help="A job, one of jobs/*.yaml.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, e.g. settings.features=/data/i3d.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Of the job's state and logs; default: runs/jobs/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands, as a shell script.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the steps on this machine, one after the other.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Only try a train step: signals, requeue, scancel; takes minutes.")
    ] = False,
    step: Annotated[str | None, typer.Option(help="With --rehearse: which one; default: the first.")] = None,
) -> None:
    """Submit a pipeline or a sweep to SLURM; what is done already is left alone, what failed goes on.

    Example: aumn submit jobs/scaling.yaml --set settings.shards=build/demo/shards --dry-run
    """
    from aumn.jobs.job import load_job

    if (step and not rehearse) or (rehearse and (local or dry_run)):
        raise InputError("--step belongs to --rehearse, and that to neither --local nor --dry-run: leave one out.")
    plan = load_job(job, changes or [], folder=folder)
    if dry_run:
        from aumn.jobs.submit import dry_run as commands

        print("\n".join(commands(plan)))
        return
    from aumn.jobs.job_folder import JobFolder
    from aumn.jobs.queue import require_slurm

    if not local:
        require_slurm()
    if rehearse:
        from aumn.jobs.rehearsal import rehearse as try_out

        try_out(plan, step, print)
        return
    with JobFolder.lock(plan.folder):
        _go_on(JobFolder.of(plan), local=local)


def jobs(
    folder: Annotated[Path, typer.Argument(help="A job's folder, as `aumn submit` said it.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show the table anew until all has ended.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End what is waiting or running.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Submit again what failed.")] = False,
) -> None:
    """Where a job's steps are: state, nodes, restarts, time, last metric and log.

    Example: aumn jobs runs/jobs/scaling --watch
    """
    from aumn.jobs.job_folder import JobFolder

    found = JobFolder.open(folder)
    if cancel:
        from aumn.jobs.submit import cancel_job

        cancel_job(found, print)
    elif retry_failed:
        with JobFolder.lock(folder):
            _go_on(found, local=False)
    elif watch and sys.stdout.isatty():
        _watch(found)
    statuses = found.statuses()
    show(_table(found, statuses))
    from aumn.jobs.job_record import describe_restarts, explain_ends, record_end

    for line in describe_restarts(found, statuses):
        print(line)
    record_end(found, statuses)
    if failed := [status.label for status in statuses if status.state == "failed"]:
        raise InputError(
            f"{', '.join(failed)} failed: read the log, then go on with: aumn jobs {folder} --retry-failed",
            *explain_ends(found, statuses),
        )


def scaling(
    folder: Annotated[Path, typer.Argument(help="Folder of a job like jobs/scaling.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for scaling.md and scaling.png.")],
) -> None:
    """Table and figure of a scaling experiment, from its measured runs: videos a second, efficiency, where time went.

    Example: aumn scaling runs/jobs/scaling --out runs/jobs/scaling/report
    """
    from aumn.jobs.job_folder import JobFolder
    from aumn.jobs.scaling import write_report

    table = write_report(JobFolder.open(folder).job.run_folders, out, f"the job {folder}")
    print(table.read_text())


def _go_on(folder: JobFolder, *, local: bool) -> None:
    from aumn.jobs.job_record import record_end, record_start, record_submission
    from aumn.jobs.submit import run_here, submit

    record_start(folder)
    folder.write()
    bad: list[str] = []
    try:
        if local:
            bad = run_here(folder, say)
        else:
            submit(folder, say)
    finally:
        record_submission(folder)
    if local:
        record_end(folder, folder.statuses())
    if bad:
        raise InputError(f"{', '.join(bad)} failed or could not run: read the log, then give the same command again.")


def _watch(folder: JobFolder) -> None:
    from rich.live import Live

    with Live(refresh_per_second=1) as live:
        while True:
            statuses = folder.statuses()
            live.update(_table(folder, statuses))
            if not any(status.is_active for status in statuses):
                return
            time.sleep(REFRESH_S)


def _table(folder: JobFolder, statuses: list[PointStatus]) -> Table:
    from aumn.jobs.sbatch import log_path

    header = ("step", "state", "job", "nodes", "restarts", "elapsed", "last metric", "log")
    rows = (
        (
            status.label,
            f"{status.state}: {status.reason}" if status.reason else status.state,
            status.task_id,
            status.nodes,
            str(status.restarts or ""),
            time.strftime("%H:%M:%S", time.gmtime(status.elapsed_s)) if status.elapsed_s else "",
            _numbers(folder, status),
            log_path(folder.job, status.step, status.index).name if status.job_id else "",
        )
        for status in statuses
    )
    return table(header, rows, words=len(header), caption=f"logs in {folder.path / 'logs'}")


def _numbers(folder: JobFolder, status: PointStatus) -> str:
    """What the point has measured last."""
    from aumn.jobs.job_record import describe_training, read_evaluation

    if run := folder.job.run_folders.get(status.label):
        return describe_training(run)
    measured = read_evaluation(status.step.points[status.index].arguments, folder.job.directory)
    return f"mAP {measured['mAP/average']:.1%}" if measured else ""
