"""The timeline as text: what stands where, and that it is legible in any terminal or log."""

import numpy as np
import pytest

from aumn.cli.one_video import clock_time, draw_timeline
from aumn.records import Detections

LABELS = ("Jump", "LongThrow", "Run")


def draw(rows, duration_s=100.0, **options):
    label, score, start, end = (np.array(column) for column in zip(*rows, strict=True))
    found = Detections(("v",), LABELS, np.zeros(len(rows), int), label, score, start, end)
    return draw_timeline(found, duration_s, **options)


def test_a_row_a_class_best_first_with_shades_where_it_happens():
    rows = [(2, 0.4, 0.0, 25.0), (1, 0.8, 50.0, 75.0), (2, 0.1, 50.0, 100.0)]
    assert draw(rows, columns=32) == [
        "LongThrow |          █████     |",
        "Run       |▒▒▒▒▒     ░░░░░░░░░░|",
        "           '           '",
        "           0:00        1:00",
    ]
    assert draw(rows, columns=32, ascii_only=True)[:2] == [
        "LongThrow |          #####     |",
        "Run       |:::::     ..........|",
    ]


def test_the_higher_score_shows_where_detections_overlap():
    assert draw([(0, 0.25, 0, 100), (0, 1.0, 40, 60)], columns=27)[0] == "Jump |░░░░░░░░████░░░░░░░░|"


@pytest.mark.parametrize("score", [-0.5, 0.0])
def test_contrast_may_leave_a_score_of_nothing_which_is_not_drawn(score):
    assert draw([(0, score, 0, 50)], columns=27)[0] == f"Jump |{' ' * 20}|"


def test_the_shortest_detection_fills_a_cell_and_none_lies_outside():
    lines = draw([(0, 1.0, 100.0, 100.0), (2, 0.5, 0.0, 0.0), (1, 0.7, 99.0, 250.0)], columns=32)
    assert lines[0].endswith("|                   █|")
    assert lines[1].endswith("|                   ▓|")
    assert lines[2].endswith("|▒                   |")


@pytest.mark.parametrize("duration_s", [0.7, 3.0, 59.0, 600.0, 5400.0, 90_000.0])
@pytest.mark.parametrize("columns", [10, 80, 200])
def test_the_clock_has_round_times_in_order_and_fits(duration_s, columns):
    *rows, ruler, times = draw([(0, 1.0, 0.0, duration_s)], duration_s, columns=columns)
    assert len(times.split()) == ruler.count("'") >= 1
    assert len(ruler) <= len(rows[0]) == max(columns, 27)
    assert times.split()[0] == "0:00"


def test_times_read_like_a_clock():
    assert [clock_time(t) for t in (0, 2.5, 59, 61, 3723)] == ["0:00", "2.5", "0:59", "1:01", "1:02:03"]
