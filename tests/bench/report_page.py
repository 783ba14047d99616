"""The report of ActivityNet1.3's 4,926 validation videos: its size, how long it is made and how soon it is there.

Ground truth is real where `../shared` is, else drawn; detections and scores are drawn. Making it is the whole command
`aumn report`, against commit 0e01a02's; the view is in a headless Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from harness import BUILD, REPOSITORY, Row, at_commit, cost, main

from aumn.data.truth.annotations import AnnotatedVideo, Instance, read_annotations
from aumn.inference.parts import part_of, write_part
from aumn.inference.snippet_scores import KEPT_CLASSES, ScoredModel, compact, write_scores
from aumn.records import Clock, Detections, GroundTruth, Video, VideoScores

VIDEOS, CLASSES, UNITS, STRIDE_FRAMES, FPS = 4926, 200, 7, 16, 25.0
GROUND_TRUTH = "data/activitynet/gt_activitynet13.json"


def validation_videos() -> list[AnnotatedVideo]:
    """The validation subset, or as many drawn videos of about its lengths."""
    shared = Path(os.environ.get("AUMN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if (shared / GROUND_TRUTH).exists():
        annotations = read_annotations(shared / GROUND_TRUTH)
        return [video for video in annotations.videos.values() if video.subset == "validation"]
    random = np.random.default_rng(0)
    return [
        AnnotatedVideo(
            f"v_{number:05d}", "validation", duration_s, None, (Instance(f"class {label:03d}", 5.0, duration_s / 2),)
        )
        for number, (duration_s, label) in enumerate(
            zip(random.uniform(20, 230, VIDEOS), random.integers(0, CLASSES, VIDEOS), strict=True)
        )
    ]


def smooth(random: np.random.Generator, snippets: int, columns: int) -> np.ndarray:
    """Fractions that wander as a trained network's do: long flat stretches near 0 and 1, and noise on top."""
    walk = np.cumsum(random.normal(0, 0.9, (snippets, columns)), axis=0) + random.normal(0, 2, columns)
    return 1 / (1 + np.exp(-(walk + random.normal(0, 0.3, walk.shape))))


def draw(videos: list[AnnotatedVideo], folder: Path) -> tuple[Detections, GroundTruth]:
    """Scores for every video into `folder`, and a dozen detections a video, half of them near an instance."""
    random = np.random.default_rng(1)
    classes = sorted({instance.label for video in videos for instance in video.annotations})
    label_of = {name: label for label, name in enumerate(classes)}
    rows, found, truth = [], [], []
    for index, video in enumerate(videos):
        duration_s = video.duration_s or 100.0
        snippets = max(1, int(duration_s * FPS / STRIDE_FRAMES))
        held = {label_of[instance.label] for instance in video.annotations}
        kept = sorted(held | set(random.choice(len(classes), KEPT_CLASSES - len(held), replace=False).tolist()))
        facts = Video(video.id, "validation", snippets, tuple(held), duration_s, FPS)
        for stream in ("rgb", "flow"):
            similarity_TK = smooth(random, snippets, UNITS)
            cas_TC = np.zeros((snippets, len(classes)))
            cas_TC[:, kept] = smooth(random, snippets, len(kept)) ** 3
            scores = VideoScores(cas_TC.mean(0), similarity_TK.max(1), cas_TC)
            options = {"clock": Clock(STRIDE_FRAMES, STRIDE_FRAMES), "classes": kept, "units": range(UNITS)}
            rows.append(compact(facts, stream, scores, similarity_TK, **options))
        for instance in video.annotations:
            truth.append((index, label_of[instance.label], instance.start_s, instance.end_s))
            jitter = random.normal(0, 0.15, (6, 2)) * (instance.end_s - instance.start_s)
            for start_s, end_s in np.sort(jitter + np.array([instance.start_s, instance.end_s]), axis=1).tolist():
                found.append((index, label_of[instance.label], random.random(), start_s, end_s))
        for start_s, end_s in np.sort(random.uniform(0, duration_s, (6, 2)), axis=1).tolist():
            found.append((index, kept[0], random.random() / 2, start_s, end_s))
    folder.mkdir(parents=True)
    write_scores(folder, 0, rows, ScoredModel("drawn", tuple(classes), UNITS, {"rgb": 0.3, "flow": 0.7}))
    table = pq.read_table(part_of(folder, 0))  # as 0e01a02 wrote it, which both can read
    facts = json.loads(table.schema.metadata[b"aumn.scores"]) | {"theta": 0.3}
    del facts["weights"]
    table = table.drop_columns(["first_s"]).replace_schema_metadata({"aumn.scores": json.dumps(facts)})
    pq.write_table(table, part_of(folder, 0), compression="zstd")
    names = [video.id for video in videos]
    columns = [np.array(column) for column in zip(*found, strict=True)]
    true_columns = [np.array(column) for column in zip(*truth, strict=True)]
    indices, true_indices = ([column.astype(np.int32) for column in part[:2]] for part in (columns, true_columns))
    return Detections(names, classes, *indices, *columns[2:]), GroundTruth(
        names, classes, *true_indices, *true_columns[2:], {video.id: video.duration_s or 100 for video in videos}
    )


SEEN = """
new MutationObserver((_, observer) => {
  if (!document.getElementById('map')) return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.seen = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
"""


def first_views(page: Path, count: int) -> list[float]:
    """Seconds from the start of navigation until the table of mAP has been drawn; then a video must open, too."""
    from tests.report.browser import open_browser

    seconds = []
    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SEEN})
        for _ in range(count):
            browser.open(page)
            seconds.append(browser.wait(lambda: browser.run("return window.seen")) / 1000)
        browser.tab("videos")
        browser.wait(lambda: browser.texts(".detail h2"))
        browser.press("j")
        assert browser.complaints() == []
    return seconds


def measure() -> list[Row]:
    videos = validation_videos()
    folder = BUILD / "report"
    shutil.rmtree(folder, ignore_errors=True)
    detections, ground_truth = draw(videos, folder / "found" / "scores")
    write_part(detections, folder / "found" / "part-00000.parquet", {"subset": "validation"})
    rows = {video.id: {"subset": "validation", "duration": video.duration_s or 100.0} for video in videos}
    instances = {
        video.id: [{"label": label, "segment": times} for label, *times in video.annotations] for video in videos
    }
    database = {name: facts | {"annotations": instances[name]} for name, facts in rows.items()}
    (folder / "gt.json").write_text(json.dumps({"database": database}))
    sides = {code: [] for code in (REPOSITORY, at_commit("0e01a02"))}
    for _ in range(3):
        for code, costs in sides.items():
            out = folder / ("ours.html" if code == REPOSITORY else "theirs.html")
            arguments = ("report", folder / "found", "--annotations", folder / "gt.json", "--protocol", "activitynet")
            costs.append(cost([sys.executable, "-m", "aumn", *map(str, (*arguments, "--out", out))], code))
    size = {out.stem: f"{out.stat().st_size / 1e6:.1f} MB" for out in folder.glob("*.html")}
    print(f"{len(videos):,} videos, {len(ground_truth):,} instances, {len(detections):,} detections; {size}")
    cpu_s = [[cost["cpu_s"] for cost in costs] for costs in sides.values()]
    seen_s = first_views(folder / "ours.html", 5)
    rows = [Row.of_runs("report of 4,926 videos against 0e01a02, processor", ">= 3", *cpu_s, "s")]
    view = Row.of_runs("  to its first view in a browser, against a second", "<= 1", seen_s, [1.0] * 5, "s")
    return [*rows, view]


if __name__ == "__main__":
    main(measure)
