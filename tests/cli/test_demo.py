"""What `make demo` shows a newcomer: units that differ, and attention that tells actions from background."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from aumn.inference.localize import localize_subset
from aumn.inference.snippet_scores import STEPS, SnippetScores, read_scores
from aumn.runtime.ranks import Ranks
from tests.launching import aumn, succeed

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile's first steps, as they are written there, and the testing videos localized."""
    place, makefile = tmp_path_factory.mktemp("demo"), (REPOSITORY / "Makefile").read_text()
    (place / "configs").symlink_to(REPOSITORY / "configs")
    for command in ("synth", "pack", "train"):
        (line,) = re.findall(rf"aumn ({command} .*)", makefile.replace("$(DEMO)", "build/demo"))
        succeed(aumn(*shlex.split(line), *["tracking.enabled=false"] * (command == "train"), cwd=place, timeout_s=400))
    built = place / "build" / "demo"
    options = {"model": "demo", "subset": "testing", "device": "cpu", "advance": lambda *_: None}
    localize_subset(built / "run/model", built / "shards", built / "found", Ranks(), **options, with_scores=True)
    return built


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_units_differ_and_attention_separates(demo: Path) -> None:
    truth = json.loads((demo / "features" / "gt.json").read_text())["database"]
    rows = list(read_scores(demo / "found" / "scores")[1])
    for stream in ("rgb", "flow"):
        own = [row for row in rows if row.stream == stream]
        label_T = np.concatenate([labels_of(row, truth[row.video]["annotations"]) for row in own])
        attention_T = np.concatenate([row.attention_T for row in own]) / STEPS
        similarity_TK = np.concatenate([row.similarity_kT.T for row in own]) / STEPS
        is_action_T = label_T != ""
        assert attention_T[is_action_T].mean() - attention_T[~is_action_T].mean() > 0.3
        correlation_KK = np.corrcoef(similarity_TK[is_action_T].T)
        assert correlation_KK[~np.eye(len(correlation_KK), dtype=bool)].mean() < 0.7
        mean_CK = np.stack([similarity_TK[label_T == label].mean(0) for label in sorted({*label_T} - {""})])
        assert (mean_CK.max(1) - mean_CK.min(1)).mean() > 0.2  # what a row of the report's picture shows
        assert len({*mean_CK.argmax(1)}) > 2  # no unit or two that serve all classes


def labels_of(row: SnippetScores, annotations: list[dict]) -> np.ndarray:
    """The class of each snippet whose middle lies in an instance, else nothing."""
    middle_s_T = (np.arange(len(row.attention_T)) + 0.5) * row.snippet_s
    label_T = np.full(len(middle_s_T), "", dtype=object)
    for annotation in annotations:
        start_s, end_s = annotation["segment"]
        label_T[(middle_s_T >= start_s) & (middle_s_T < end_s)] = annotation["label"]
    return label_T
