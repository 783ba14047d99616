"""Hundreds of rounds: `python -m tests.faults --rounds 200`, or `make torture ROUNDS=200`.

Ends with counts, build/torture.json and exit code 1 if anything was lost. `--seed S --round N` plays one of them again.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .playing import Outcome, Undisturbed, play
from .processes import INTERRUPTED
from .report import summary, table
from .rounds import Round, draw
from .stages import STAGES
from .undisturbed import run_undisturbed

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way every round cleans up behind itself
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # the code beside this file, whatever else is installed
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {options.seed}; undisturbed, in {folder / 'undisturbed'}:", flush=True)
    undisturbed = run_undisturbed(folder / "undisturbed", tuple(options.stages))
    print("  ".join(f"{stage} {took_s:.1f} s" for stage, took_s in undisturbed.elapsed_s.items()), flush=True)
    numbers = range(options.rounds) if options.round is None else [options.round]
    rounds = [draw(options.seed, number, tuple(options.stages)) for number in numbers]
    outcomes = _play_all(rounds, undisturbed, folder, options.jobs)
    return _report(outcomes, options, undisturbed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--round", type=int, help="play only this one of the seed's rounds")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="draw from these alone; changes every round"
    )
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "torture", help="is made anew")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "torture.json")
    return parser.parse_args()


def _play_all(rounds: list[Round], undisturbed: Undisturbed, folder: Path, jobs: int) -> list[Outcome]:
    """In the order they end; interrupted, those that had ended. The folder of a round that lost something is kept."""
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(play, round_, undisturbed, folder / round_.name) for round_ in rounds]
        try:
            for future in as_completed(futures):
                outcomes.append(future.result())
                _tell(outcomes[-1], folder)
        except KeyboardInterrupt:
            INTERRUPTED.set()
            pool.shutdown(cancel_futures=True)
    return outcomes


def _tell(outcome: Outcome, folder: Path) -> None:
    struck = ", ".join(f"{struck.kind} at {struck.after_s:.1f} s" for struck in outcome.struck) or "nothing struck"
    print(f"{outcome.round.name}  {outcome.round.stage}: {struck}; exit codes {outcome.exit_codes}", flush=True)
    if outcome.survived:
        shutil.rmtree(folder / outcome.round.name)
        return
    for problem in filter(None, (outcome.failure, *outcome.differences)):
        print(f"    LOST: {problem}", flush=True)
    print(f"    see {folder / outcome.round.name / 'log.txt'}", flush=True)


def _report(outcomes: list[Outcome], options: argparse.Namespace, undisturbed: Undisturbed) -> int:
    found = summary(outcomes)
    facts: dict[str, Any] = {"commit": _commit(), "seed": options.seed, "undisturbed_s": undisturbed.elapsed_s}
    facts |= {
        "interrupted": INTERRUPTED.is_set(),
        "load": os.getloadavg()[0],
        "jobs": options.jobs,
    }
    each = [outcome.to_json() for outcome in outcomes]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts | found | {"outcomes": each}, indent=1, default=str) + "\n")
    print(f"\n{table(found)}\n")
    print("; ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.items() if isinstance(count, int)))
    print(f"seed {options.seed}, commit {facts['commit']}; {options.json}")
    return 130 if INTERRUPTED.is_set() else int(found["survived"] < found["rounds"])


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
