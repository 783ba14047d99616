"""Short runs of both benchmarks through the whole pipeline, two ranks and registry included.

A model that learned anything passes the floor; one that cannot, since the training labels were dealt anew, stays below.
"""

import pytest

from . import benchmark

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = {
    "spliced_i3d": (
        ("--training", "72", "--testing", "36"),
        ("run.steps=50", "model.embedding_width=128", "data.snippets=64"),
        0.15,
    ),
    "shrec21": ((), ("run.steps=50", "model.embedding_width=64", "data.snippets=200"), 0.1),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_passes_a_floor_that_shuffled_labels_cannot_reach(name, shared_tools, tmp_path):
    options, overrides, floor = SHORT[name]
    learned, broken = (
        benchmark.run(
            name,
            benchmark.make_shards(name, shared_tools, tmp_path, *options, shuffle_labels=shuffled),
            tmp_path / f"shuffled_{shuffled}",
            *overrides,
            config=benchmark.REPOSITORY / "configs" / f"{name}_plus.yaml",
        )
        for shuffled in (False, True)
    )
    assert learned["population"] == broken["population"]
    assert broken["average"] < floor < learned["average"]
