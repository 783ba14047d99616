"""The report of ActivityNet1.3's 4,926 validation videos: its size, how long it is made and how soon it is there.

Ground truth is real where `../shared` is, else drawn; detections and scores are drawn. Prints; compares with nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from aumn.data.truth.annotations import AnnotatedVideo, Instance, read_annotations
from aumn.inference.snippet_scores import KEPT_CLASSES, ScoredModel, compact, write_scores
from aumn.records import Clock, Detections, GroundTruth, Video, VideoScores
from aumn.report.reporting import write_report

VIDEOS, CLASSES, UNITS, STRIDE_FRAMES, FPS = 4926, 200, 7, 16, 25.0
TIOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
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
    write_scores(folder, 0, rows, ScoredModel("drawn", tuple(classes), UNITS, {"rgb": 0.3, "flow": 0.7}))
    names = [video.id for video in videos]
    columns = [np.array(column) for column in zip(*found, strict=True)]
    true_columns = [np.array(column) for column in zip(*truth, strict=True)]
    indices, true_indices = ([column.astype(np.int32) for column in part[:2]] for part in (columns, true_columns))
    return Detections(names, classes, *indices, *columns[2:]), GroundTruth(
        names, classes, *true_indices, *true_columns[2:], {video.id: video.duration_s or 100 for video in videos}
    )


def measure_in_browser(page: Path) -> dict[str, float]:
    """Seconds in Chromium: to the first view, to the videos with one of them drawn, to the next one, to a search."""
    from tests.report.browser import open_browser

    with tempfile.TemporaryDirectory() as profile, open_browser(Path(profile)) as browser:

        def timed(action: str, done: str) -> float:
            start_s = time.perf_counter()
            browser.run(action)
            browser.wait(lambda: browser.run(f"return {done}"))
            return time.perf_counter() - start_s

        start_s = time.perf_counter()
        browser.open(page)
        seconds = {"open": time.perf_counter() - start_s}
        name = "document.querySelector('.detail h2')?.textContent"
        press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true}))"
        seconds["videos"] = timed("document.getElementById('tab-videos').click()", f"Boolean({name})")
        before = browser.run(f"return {name}")
        seconds["next video"] = timed(press, f"{name} !== {json.dumps(before)}")
        search = "const s = document.querySelector('.side input'); s.value = 'v_z'; s.dispatchEvent(new Event('input'))"
        seconds["search"] = timed(search, "true")
        assert browser.complaints() == []
    return seconds


def main() -> None:
    """Make the page and print what it took."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/bench/report.html")
    videos = validation_videos()
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores"
        detections, ground_truth = draw(videos, scores)
        start_s = time.perf_counter()
        write_report(
            out, detections, ground_truth, TIOUS, title="ActivityNet1.3, drawn scores", facts={"Detections": "drawn"},
            scores=scores,
        )  # fmt: skip
        made_s = time.perf_counter() - start_s
    print(f"{len(videos):,} videos, {len(ground_truth):,} instances, {len(detections):,} detections")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, made in {made_s:.1f} s")
    for name, elapsed_s in measure_in_browser(out).items():
        print(f"{name}: {elapsed_s:.2f} s")


if __name__ == "__main__":
    main()
