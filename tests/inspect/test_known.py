"""What `aumn inspect` says of public sets that it knows by their names."""

import json
from pathlib import Path

import pytest

from aumn.inspect.known import recognize
from aumn.records import Clock, Video

VALIDATION = [f"video_validation_{number:07d}" for number in range(51, 251)]
ODD = {"270", "1292", "1496"}


def thumos14(odd: set[str], ordinary: int, *, per_s: float = 25 / 16, fps: float = 25) -> list[Video]:
    test = [f"video_test_{int(number):07d}" for number in [*odd, *range(2001, 2001 + ordinary)]]
    snippets = round(169.794 * per_s)  # of video_validation_0000051; nobody asks how many the others have
    return [Video(name, name.split("_")[1], snippets, (), 1.0, fps) for name in VALIDATION + test]


@pytest.mark.parametrize(
    ("odd", "ordinary", "said"),
    [
        (set(), 210, "210 test videos, without video_test number 270 and 1292 and 1496, as BaS-Net, STPN, DGAM and"),
        ({"270", "1496"}, 210, "212 test videos, without video_test number 1292, as W-TALC, CO2-Net, P-MIL and"),
        ({"1496"}, 210, "211 test videos, without video_test number 270 and 1292, as OpenTAD measured."),
        (ODD, 210, "213 test videos, of which video_test_0001292 holds nothing but Ambiguous instances."),
        ({"270", "1496"}, 200, "202 test videos, without video_test number 1292, which is no usual population"),
    ],
)
def test_the_population_of_thumos14(odd: set[str], ordinary: int, said: str) -> None:
    sentence, _ = recognize(thumos14(odd, ordinary), range(20), Clock(16, 16))
    assert sentence.startswith(f"THUMOS14: 200 of 200 validation videos, {said}")


@pytest.mark.shared
@pytest.mark.parametrize(("file", "said"), [("gt_basnet.json", "as BaS-Net"), ("gt_ftcl.json", "as W-TALC")])
def test_the_real_names_of_thumos14(shared_data: Path, file: str, said: str) -> None:
    names = json.loads((shared_data / "thumos14" / file).read_text())["database"]
    (sentence, _) = recognize([Video(name, "", 265, (), 1.0, 25.0) for name in names], range(20), Clock(16, 16))
    assert said in sentence


@pytest.mark.parametrize(
    ("per_s", "fps", "clock", "said"),
    [
        (25 / 16, 25, Clock(16, 16), "1.56 snippets a second (by video_validation_0000051), as in the I3D of W-TALC,"),
        (25 / 16, 25, Clock(16, 16), "BaS-Net and ACM-Net: --stride-frames 16 --fps 25."),
        (25 / 16, 30, Clock(16, 16), "BaS-Net and ACM-Net. CHECK: pack with --stride-frames 16 --fps 25."),
        (30 / 4, 30, Clock(4, 16), "as in the I3D of CMCS, which ActionFormer took, and OpenTAD's VideoMAE: --stride-"),
        (30 / 4, 25, Clock(16, 16), "CHECK: pack with --stride-frames 4 --window-frames 16 with annotations that tell"),
        (30 / 4, 30, Clock(4, 4), "CHECK: pack with --stride-frames 4 --window-frames 16 with annotations that tell"),
        (30 / 8, 30, Clock(8, 64), "as in PGCN's I3D: --stride-frames 8 --window-frames 64 with annotations"),
        (10 / 4, 10, Clock(4, 4), "as in W-TALC's UntrimmedNet: --stride-frames 4 --fps 10."),
        (5, 30, Clock(6, 6), "5.00 snippets a second (by video_validation_0000051), as in no release that is known"),
    ],
)
def test_whose_features_of_thumos14(per_s: float, fps: float, clock: Clock, said: str) -> None:
    _, sentence = recognize(thumos14(set(), 210, per_s=per_s, fps=fps), range(20), clock)
    assert said in sentence


@pytest.mark.parametrize(
    ("classes", "training", "validation", "said"),
    [
        (200, 9032, 4427, "ActivityNet1.3: 9,032 of 10,024 training videos and 4,427 of 4,926 validation videos. Meas"),
        (100, 4819, 2383, "ActivityNet1.2: 4,819 of 4,819 training videos and 2,383 of 2,383 validation videos, the "),
    ],
)
def test_the_population_of_activitynet(classes: int, training: int, validation: int, said: str) -> None:
    subsets = ["training"] * training + ["validation"] * validation
    videos = [Video(f"v_{number:011d}", subset, 9, (), 9.0, 25.0) for number, subset in enumerate(subsets)]
    (sentence,) = recognize(videos, range(classes), Clock(16, 16))
    assert sentence.startswith(said)


def test_nothing_is_said_of_other_sets() -> None:
    videos = [Video(f"synth_{number:06d}", "training", 9, (), 9.0, 25.0) for number in range(9)]
    assert recognize(videos, range(20), Clock(16, 16)) == []
    assert recognize(videos, range(200), Clock(16, 16)) == []
