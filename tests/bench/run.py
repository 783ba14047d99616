"""Run the benchmarks of docs/performance.md, one after another, each in a process of its own.

python tests/bench/run.py                prints the table and writes build/bench.json
python tests/bench/run.py step reading   some of them; the others keep their rows of the last time
python tests/bench/run.py --check        only the checks against the references, at tiny sizes, in seconds
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from harness import BUILD, HEADER, REPOSITORY, Row

SCRIPTS = (
    "cold_start",
    "step",
    "naming",
    "floor",
    "large_memory",
    "bank",
    "localization",
    "evaluation",
    "report_page",
    "packing",
    "reading",
    "remote",
    "registering",
)
CHECKED = ("step", "floor", "large_memory", "localization", "evaluation", "reading")
OUT = REPOSITORY / "build" / "bench.json"


def main(names: list[str]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores; targets are for an idle machine")
    for name in names or SCRIPTS:
        start_s = time.perf_counter()
        print(f"\n{name}:", flush=True)
        script, out = Path(__file__).with_name(f"{name}.py"), BUILD / f"{name}.json"
        subprocess.run([sys.executable, str(script), "--json", str(out)], check=True)
        print(f"{time.perf_counter() - start_s:.0f} s")
    files = [BUILD / f"{name}.json" for name in SCRIPTS]
    table = [row for file in files if file.exists() for row in json.loads(file.read_text())]
    OUT.write_text(json.dumps(table, indent=1) + "\n")
    rows = [Row(**{key: value for key, value in row.items() if key != "verdict"}) for row in table]
    print("\n" + "\n".join((HEADER, *map(str, rows))))
    count = Counter(row.verdict for row in rows)
    print(
        f"{count['met']} of {len(rows)} targets met, {count['noise']} within this machine's noise, "
        f"{count['MISSED']} missed; {OUT.relative_to(REPOSITORY)}"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        for checked in CHECKED:
            importlib.import_module(checked).check()
            print(f"{checked}: agrees")
    else:
        main(sys.argv[1:])
