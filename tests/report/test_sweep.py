"""Several runs on one page: grouped over seeds, over K, by what was left out."""

import statistics
from pathlib import Path

import pytest

from aumn.records import InputError
from aumn.report.reporting import compare_runs
from tests.report.cases import contents_of, make_run


def compared(runs: list[Path], page: Path) -> dict:
    """What the page of these runs says."""
    compare_runs(runs, page, say=print)
    return contents_of(page)["sweep"]


def sweep(root: Path) -> list[Path]:
    """K = 1, 3, 64 with two seeds each, and one run that came to no mAP."""
    folders = [
        make_run(
            root / f"k{units}-s{seed}",
            {"model.units": units, "run.seed": seed},
            (units / 100 + seed / 50, 0.0, units / 200 + seed / 100),
        )
        for units in (1, 3, 64)
        for seed in (0, 1)
    ]
    return [*folders, make_run(root / "k3-s2", {"model.units": 3, "run.seed": 2}, None)]


def test_runs_that_differ_in_the_seed_alone_are_one_line_with_mean_and_deviation(tmp_path):
    comparison = compared(sweep(tmp_path / "runs"), tmp_path / "sweep.html")
    assert comparison["differing"] == ["model.units"]
    assert (comparison["measured"], comparison["tious"]) == ("test", ["0.1", "0.2"])
    assert [group["settings"] for group in comparison["groups"]] == [{"model.units": units} for units in (1, 3, 64)]
    of_three = comparison["groups"][1]
    assert [run["map"] for run in of_three["runs"]] == [[0.03, 0.0, 0.015], [0.05, 0.0, pytest.approx(0.025)], None]
    assert of_three["mean"] == pytest.approx([0.04, 0.0, 0.02])
    assert of_three["deviation"] == pytest.approx([statistics.stdev([0.03, 0.05]), 0, statistics.stdev([0.015, 0.025])])


def test_what_makes_no_other_model_is_no_difference(tmp_path):
    changes = {"run.log_every": 3, "tracking.experiment": "other", "data.shards": "elsewhere"}
    folders = [
        make_run(tmp_path / "a", {}, (0.1, 0.1, 0.1)),
        make_run(tmp_path / "b", changes, (0.2, 0.2, 0.2)),
    ]
    comparison = compared(folders, tmp_path / "sweep.html")
    assert comparison["differing"] == []
    assert len(comparison["groups"]) == 1


def test_runs_that_do_not_compare_are_refused(tmp_path):
    runs = [make_run(tmp_path / "a", {}, (0.1, 0.1, 0.1)), make_run(tmp_path / "b", {}, (0.1, 0.1, 0.1), "held_out")]
    message = r"on different videos or at different tIoUs do not compare: .*a has test/mAP/0.1, .*b has held_out/mAP"
    with pytest.raises(InputError, match=message):
        compared(runs, tmp_path / "sweep.html")
    runs = [make_run(tmp_path / name, {}, None) for name in "cd"]
    with pytest.raises(InputError, match=r"None of the 2 runs has an mAP, such as .*c: train with evaluation.videos="):
        compared(runs, tmp_path / "sweep.html")


@pytest.mark.browser
def test_the_page_draws_map_over_k_and_tables(browser, tmp_path):
    compared(sweep(tmp_path / "runs"), tmp_path / "sweep.html")
    browser.open(tmp_path / "sweep.html")
    (figure,) = browser.all("svg[aria-label='Average mAP over the number of action units']")
    titles = browser.run(
        "return [...arguments[0].querySelectorAll('circle title')].map((one) => one.textContent)", figure
    )
    assert [title.split(", ")[-1] for title in titles] == ["1.0 ± 0.7", "2.0 ± 0.7", "32.5 ± 0.7"]
    assert "not measured" in browser.texts("#panel-sweep td")
    assert browser.complaints() == []


@pytest.mark.browser
def test_the_page_has_the_ablation_table_from_little_to_all(browser, tmp_path):
    bare = {"model.self_attention": False, "loss.diversity": 0, "loss.homogeneity": 0}
    rows = [{}, bare, bare | {"loss.sparsity": 0}, {"model.self_attention": False}]
    runs = [make_run(tmp_path / str(n), row, (0.4 - n / 10,) * 3) for n, row in enumerate(rows)]
    compared(runs, tmp_path / "ablation.html")
    browser.open(tmp_path / "ablation.html")
    table = [browser.texts(f"#ablation tbody tr:nth-child({n}) > *")[:5] for n in range(1, 5)]
    assert table == [
        ["○", "○", "○", "○", "20.0"],
        ["●", "○", "○", "○", "30.0"],
        ["●", "●", "●", "○", "10.0"],
        ["●", "●", "●", "●", "40.0"],
    ]
    assert browser.complaints() == []
