"""The paper's Figure 4 from rows `units_K` of `tests.real.tables` (and `all_losses`, which has 7): mAP by K, two rules.

python -m tests.real.unit_figure OUT/results.jsonl docs/figures/k_sweep_spliced.svg
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

RULES = {"paper": "the paper's localization", "all (spliced_i3d_plus)": "spliced_i3d_plus.yaml's"}


def read(results: Path) -> dict[str, dict[int, list[float]]]:
    """Each rule's averages over tIoU in percent, a value a seed, by K."""
    found: dict[str, dict[int, list[float]]] = {rule: defaultdict(list) for rule in RULES}
    for result in map(json.loads, results.read_text().splitlines()):
        row = "units_7" if result["row"] == "all_losses" else result["row"]
        if row.startswith("units_"):
            for rule in RULES:
                found[rule][int(row.removeprefix("units_"))].append(100 * result["rules"][rule][-1])
    return found


def draw(found: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Means, with a standard deviation to either side."""
    mpl.use("agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "aumn"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for rule, by_units in found.items():
        units = sorted(by_units)
        means = [statistics.fmean(by_units[k]) for k in units]
        spreads = [statistics.stdev(by_units[k]) if len(by_units[k]) > 1 else 0 for k in units]
        axes.errorbar(units, means, spreads, marker="o", markersize=4, capsize=3, label=RULES[rule])
    axes.set_xscale("log", base=2)
    axes.set_xticks(units, [f"{k:,}" for k in units])
    axes.minorticks_off()
    axes.set(xlabel="action units K", ylabel="mAP, mean of tIoU 0.1:0.7, %", ylim=(0, 100))
    axes.set_title("Real I3D features, made-up timelines; mean ± std over seeds", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    results, path = map(Path, sys.argv[1:])
    draw(read(results), path)


if __name__ == "__main__":
    main()
