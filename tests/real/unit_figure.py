"""The paper's Figure 4 from rows `units_K` of `tests.real.tables` (and `all_losses`, which has 7): mAP by K, two rules.

python -m tests.real.unit_figure OUT/results.jsonl docs/figures/k_sweep_spliced.svg [spliced_i3d | shrec21]

Rows `units_K_slower` are drawn beside them as hollow squares: the same K at a lower learning rate.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

SLOWER = "_slower"


class Figure(NamedTuple):
    """What a set's figure says: its title, what each rule of localization is called, and where the axis ends."""

    title: str
    rules: dict[str, str]
    most: float


FIGURES = {
    "spliced_i3d": Figure(
        "Real I3D features, made-up timelines; mean ± std over seeds",
        {"paper": "the paper's localization", "all (spliced_i3d_plus)": "spliced_i3d_plus.yaml's"},
        100,
    ),
    "shrec21": Figure(
        "SHREC'21, real recordings of gestures; mean ± std over seeds",
        {
            "the configuration's": "shrec21.yaml's localization",
            "class activation (shrec21_plus)": "shrec21_plus.yaml's",
        },
        40,
    ),
}
Values = dict[int, list[float]]  # averages over tIoU in percent, one a seed, by K


def read(results: Path, rule: str) -> tuple[Values, Values]:
    """One rule's values, at the configuration's learning rate and at a lower one."""
    found: tuple[Values, Values] = defaultdict(list), defaultdict(list)
    for result in map(json.loads, results.read_text().splitlines()):
        row = "units_7" if result["row"] == "all_losses" else result["row"]
        if row.startswith("units_"):
            units = int(row.removeprefix("units_").removesuffix(SLOWER))
            found[row.endswith(SLOWER)][units].append(100 * result["rules"][rule][-1])
    return found


def draw(results: Path, path: Path, figure: Figure) -> None:
    """Means, with a standard deviation to either side."""
    mpl.use("agg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "aumn"
    from matplotlib import pyplot as plt

    canvas, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for color, (rule, label) in zip(("C0", "C1"), figure.rules.items(), strict=True):
        usual, slower = read(results, rule)
        looks = {"color": color, "markersize": 4, "capsize": 3}
        axes.errorbar(*_columns(usual), marker="o", label=label, **looks)
        if slower:
            looks |= {"linestyle": "none", "markerfacecolor": "white", "label": f"{label}, lower learning rate"}
            axes.errorbar(*_columns(slower), marker="s", **looks)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(usual), [f"{k:,}" for k in sorted(usual)])
    axes.minorticks_off()
    axes.set(xlabel="action units K", ylabel="mAP, mean of tIoU 0.1:0.7, %", ylim=(0, figure.most))
    axes.set_title(figure.title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)


def _columns(values: Values) -> tuple[list[int], list[float], list[float]]:
    """K, mean and standard deviation, K ascending."""
    units = sorted(values)
    spreads = [statistics.stdev(values[k]) if len(values[k]) > 1 else 0.0 for k in units]
    return units, [statistics.fmean(values[k]) for k in units], spreads


def main() -> None:
    results, path, *name = sys.argv[1:]
    draw(Path(results), Path(path), FIGURES[name[0] if name else "spliced_i3d"])


if __name__ == "__main__":
    main()
