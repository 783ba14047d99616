"""Ground truth as it is released, real files first, then everything that can be wrong with one."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aumn.data import json_files
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotations import read_annotations, read_ground_truth
from aumn.data.truth.columns import VideoColumns
from aumn.records import InputError

POPULATIONS = [  # file, subset, videos, instances, classes that occur: METHOD.md and the data's README
    ("thumos14/gt_ftcl.json", "validation", 200, 3007, 20),
    ("thumos14/gt_ftcl.json", "test", 212, 3358, 20),
    ("thumos14/gt_basnet.json", "train", 200, 3007, 20),
    ("thumos14/gt_basnet.json", "test", 210, 3311, 20),
    ("activitynet/gt_activitynet12.json", "training", 4819, 7151, 100),
    ("activitynet/gt_activitynet12.json", "validation", 2383, 3582, 100),
    ("activitynet/gt_activitynet12.json", "testing", 2480, 0, 0),
    ("activitynet/gt_activitynet13.json", "training", 10024, 15410, 200),
    ("activitynet/gt_activitynet13.json", "validation", 4926, 7654, 200),
    ("activitynet/gt_activitynet13.json", "testing", 5044, 0, 0),
]


@pytest.mark.shared
@pytest.mark.parametrize(("file", "subset", "videos", "instances", "classes"), POPULATIONS)
def test_real_populations(shared_data: Path, file: str, subset: str, videos: int, instances: int, classes: int) -> None:
    truth = read_ground_truth(shared_data / file, subset)
    assert (len(truth.videos), len(truth), len(truth.labels)) == (videos, instances, classes)
    assert len(set(truth.videos)) == videos
    closely = [video for video in read_annotations(shared_data / file).videos.values() if video.subset == subset]
    rows = [(video.id, *instance) for video in closely for instance in video.annotations]
    names = ([truth.videos[n] for n in truth.video_N], [truth.labels[n] for n in truth.label_N])
    assert list(zip(*names, truth.start_s_N, truth.end_s_N, strict=True)) == rows
    assert truth.durations_s == {video.id: video.duration_s for video in closely if video.duration_s}


@pytest.mark.shared
def test_nothing_is_repaired(shared_data: Path) -> None:
    videos = read_annotations(shared_data / "activitynet/gt_activitynet13.json").videos.values()
    pairs = [(video, instance) for video in videos for instance in video.annotations]
    assert sum(instance.start_s == instance.end_s for _, instance in pairs) == 12
    assert sum(instance.end_s > (video.duration_s or 0) for video, instance in pairs) == 1732
    assert max(Counter((video.id, instance) for video, instance in pairs).values()) > 1


@pytest.mark.shared
def test_shrec_through_its_tool_and_raw(shared_data: Path, shrec: Path) -> None:
    training, testing = (read_ground_truth(shrec / "gt.json", subset) for subset in ("training", "testing"))
    assert (len(training.videos), len(testing.videos)) == (108, 72)
    assert len(training) + len(testing) == 676
    assert len(training.labels) == 17
    with pytest.raises(InputError, match=r"'training'. Instances that .* start: 1 \('TAP' at \[22.68, 3.24\] in"):
        read_ground_truth(shared_data / "shrec21/gt.json", "training")


def video(**changes: Any) -> dict[str, Any]:
    return {"subset": "training", "annotations": [{"label": "Run", "segment": [1.0, 2.0]}]} | changes


def write(folder: Path, **videos: Any) -> Path:
    path = folder / "gt.json"
    path.write_text(json.dumps({"database": videos}))
    return path


def test_columns_cover_every_video_of_the_subset(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one=video(annotations=[{"label": "Run", "segment": [3, 3]}, {"label": "Jump", "segment": ["0.5", 9.25]}]),
        none=video(annotations=[]),
        other=video(subset="testing", annotations=[{"label": "Swim", "segment": [0, 1]}]),
        two=video(),
    )
    truth = read_ground_truth(path, "training")
    assert list(truth.videos) == ["one", "none", "two"]
    assert list(truth.labels) == ["Jump", "Run"]
    rows = zip(truth.video_N, truth.label_N, truth.start_s_N, truth.end_s_N, strict=True)
    assert list(rows) == [(0, 1, 3.0, 3.0), (0, 0, 0.5, 9.25), (2, 1, 1.0, 2.0)]


def test_the_only_annotated_subset_is_taken_and_an_unknown_one_refused(tmp_path: Path) -> None:
    path = write(tmp_path, a=video(subset="validation"), b=video(subset="testing", annotations=[]))
    assert read_ground_truth(path).videos == ["a"]
    known = r"validation \(1 videos, 1 instances\), testing \(1 videos, 0 instances\)"
    with pytest.raises(InputError, match=rf"has no subset 'test'; it has {known}\.$"):
        read_ground_truth(path, "test")
    path = write(tmp_path, a=video(subset="validation"), b=video(subset="testing"), c=video())
    with pytest.raises(InputError, match=r"name the subset to take, one of validation \(1 videos, 1 instances\), test"):
        read_ground_truth(path)


WITHOUT_DATABASE = [  # file, videos, the first one; as BBFormer, Charades' I3D, mmaction2 (twice) and RTD-Net have them
    ("bbformer_gt", 3, ("highjump.npy", "Test", 24.0, 30.0), ("HighJump", 8.86, 15.01)),
    ("charades", 9848, ("7UPGT", "training", 23.21, None), ("149", 16.0, 22.2)),
    ("mm_action_test_anno", 2, ("v_test1", "training", 1.0, 30.0), ("Rock climbing", 0.3, 0.6)),
    (
        "mm_gt",
        2,
        ("v_bYUmtLBL7W4", "validation", 224.49, None),
        ("Wakeboarding", 11.553655226209049, 57.06805460218409),
    ),
    ("rtd_thumos14_anno_action", 413, ("video_test_0000004", "test", 33.73, 30), ("CricketBowling", 0.2, 1.1)),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count", "facts", "instance"), WITHOUT_DATABASE)
def test_json_of_the_videos_alone(shared_data: Path, name: str, count: int, facts: Any, instance: Any) -> None:
    videos = read_annotations(shared_data / f"field/json_without_database/{name}.json").videos
    first = next(iter(videos.values()))
    assert (len(videos), first[:4], first.annotations[0]) == (count, facts, instance)


def test_blanks_around_names_make_no_others(published: Any, tmp_path: Path) -> None:
    published.database["a"]["annotations"][0]["label"] = " Run "
    published.database[" b\t"] = published.database.pop("b")
    published.write_annotations()
    published.pack(tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out")
    assert shards.classes == ("Jump", "Run")
    assert sorted(shards.ids(range(len(shards)))) == ["a", "b", "c", "d", "e"]
    published.database["b"] = published.database[" b\t"]
    published.write_annotations()
    with pytest.raises(InputError, match="video 'b' is there twice, but for blanks around its name: keep one"):
        read_annotations(published.annotations)


def test_instances_that_end_before_they_start_cost_their_times_alone(published: Any, tmp_path: Path) -> None:
    for name in ("a", "d"):
        published.database[name]["annotations"] += [{"label": "Swim", "segment": [3.0, 2.0]}]
    published.write_annotations()
    for on_bad, count, said in (
        ("stop", 0, "to measure on their times takes --on-bad skip or swap"),
        ("skip", 2, "they are left out where the set is measured on"),
        ("swap", 3, "their start and end are exchanged where the set is measured on"),
    ):
        out = tmp_path / on_bad
        (note,) = (note for note in published.pack(out, on_bad=on_bad).notes if "before they start" in note)
        assert note.startswith(
            "Instances that end before they start: 2 ('Swim' at [3, 2] in d, 'Swim' at [3, 2] in a). "
        )
        assert said in note
        shards = ShardSet.open(out)
        assert [[shards.classes[n] for n in video.labels] for video in shards.videos if video.id == "a"] == [
            ["Run", "Swim"]
        ]
        if on_bad == "stop":
            with pytest.raises(InputError, match=r"subset 'testing'. Instances that .*: 1 \('Swim.* --on-bad skip"):
                read_ground_truth(out, "testing")
        else:
            truth = read_ground_truth(out, "testing")
            by_hand = read_ground_truth(published.annotations, "testing", on_bad=on_bad)
            for found in (truth, by_hand):
                assert (len(found), found.left_out, found.swapped) == (count, on_bad == "skip", on_bad == "swap")
                assert ((2.0, 3.0) in zip(found.start_s_N, found.end_s_N, strict=True)) == (on_bad == "swap")
    with pytest.raises(InputError, match="on_bad is 'drop': choose stop, skip or swap"):
        read_ground_truth(out, "testing", on_bad="drop")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "has no text 'subset'; name the subset it belongs to"),
        ({"annotations": []}, "has no text 'subset'"),
        ({"subset": "training"}, "has no list 'annotations'; give one, empty where nothing is annotated"),
        (video(annotations={}), "has no list 'annotations'"),
        (video(duration="long"), "has duration 'long'; it must be a number above 0, to 1e.09, or left out"),
        (video(duration=0), "has duration 0; it must be a number above 0"),
        (video(fps=float("nan")), "has fps nan; it must be a number above 0"),
        (video(annotations=[{"segment": [1, 2]}]), "has an annotation without a text 'label'"),
        (video(annotations=[{"label": "Run"}]), r"has a 'Run' whose 'segment' is None; it must be \[start_s, end_s\]"),
        (video(annotations=[{"label": "Run", "segment": [1]}]), r"whose 'segment' is \[1\]"),
        (video(annotations=[{"label": "Run", "segment": ["x", 2]}]), r"at \['x', 2\]; start and end must be finite"),
        (video(annotations=[{"label": "Run", "segment": [1, None]}]), r"at \[1, None\]; start and end must be finite"),
        (video(annotations=[{"label": "Run", "segment": {"a": 1, "b": 2}}]), "whose 'segment' is {'a': 1, 'b': 2}"),
        (video(annotations=["ab"]), "has an annotation without a text 'label': 'ab'"),
        (video(annotations=None), "has no list 'annotations'"),
        (video(fps=-1), "has fps -1; it must be a number above 0"),
        (video(annotations=[{"label": "Run", "segment": [True, 2]}]), r"at \[True, 2\]; start and end must be finite"),
        (video(annotations=[{"label": "Run", "segment": [0, float("nan")]}]), r"at \[0, nan\]; start and end must be"),
        (video(annotations=[{"label": "Run", "segment": [0, float("inf")]}]), r"at \[0, inf\]; start and end must be"),
        (
            video(annotations=[{"label": "Run", "segment": [0, 1e10]}]),
            r"at \[0, 1e\+?10|10000000000.0\]; start and end",
        ),
        (video(annotations=[{"label": "Run", "segment": [0, 10**4000]}]), r"\[0, 1000.*000\]; start and end must be"),
        (
            video(annotations=[{"label": "Run", "segment": [0, "9" * 5000]}]),
            r"\[0, '9+\.\.\.9+'\]; start and end must be",
        ),
        (video(annotations=[{"label": None, "segment": [1, 2]}]), "has an annotation without a text 'label'"),
        (video(annotations=[[]]), "has an annotation without a text 'label'"),
    ],
)
def test_a_broken_video_is_named_with_its_fault(tmp_path: Path, broken: Any, message: str) -> None:
    path = write(tmp_path, good=video(), bad=broken)
    for read in (read_annotations, lambda path: read_ground_truth(path, "training")):
        with pytest.raises(InputError, match=f"gt.json: video 'bad' .*{message}"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"video,label\n", "is not usable JSON"),
        (b'{"database": {"v": {}, "v": {}}}', r"is not usable JSON \('v' is given twice\)"),
        (b"\xff\xfe\x00", "is not usable JSON"),
        (b'{"database": {"v": ' + b"[" * 10**5 + b"]" * 10**5 + b"}}", "is not usable JSON .it is nested too deeply"),
        (b'{"database": {"\\ud800": {}}}', "is not usable JSON .*surrogates not allowed"),
        (b'{"database": {"v": ' + b"9" * 5000 + b"}}", "is not usable JSON .*integer string conversion"),
        (b"[1]", "has no object 'database'"),
        (b'{"database": []}', "has no object 'database'"),
        (b'{"v": {"subset": "test"}}', "has no object 'database'"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "gt.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"gt.json {message}"):
        read_annotations(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"There is no ground truth at .*/none.json: give ActivityNet-layout JSON, a CSV, W-TALC's annotation",
    ):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"is not a shard set: it holds no dataset.json"):
        read_annotations(tmp_path)


def test_a_shard_set_holds_the_same(published: Any, tmp_path: Path) -> None:
    published.database["a"] |= {"duration": None, "annotations": []}
    del published.database["b"]["duration"]
    published.write_annotations()
    pack(published.root, tmp_path / "packed", published.annotations, name="small", workers=1)
    original = read_annotations(published.annotations).videos
    assert read_annotations(tmp_path / "packed").videos == original
    assert read_annotations(tmp_path / "packed" / "annotations.parquet").videos == original


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"P" + content])
def test_damaged_ground_truth_of_a_shard_set(shard_set: ShardSet, damage: Callable[[bytes], bytes]) -> None:
    path = shard_set.path / "annotations.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        InputError, match=r"annotations.parquet does not match its checksum in dataset.json, so it is dam"
    ):
        read_annotations(path)
    path.unlink()
    with pytest.raises(InputError, match=r"annotations.parquet is missing: fetch the shard set again"):
        read_annotations(shard_set.path)


def test_reading_ground_truth_imports_nothing_heavy() -> None:
    heavy = {"torch", "pyarrow", "webdataset", "mlflow"}
    code = f"import sys, aumn.data.truth.annotations; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"


VIDEO = '"v": {"subset": "test", "duration": 12, "fps": null, "annotations": [{"label": " a", "segment": [1, 2.5]}]}'
OTHER = (
    '"w \\u00e9": {"subset": "b", "annotations": [{"label": "b", "segment": [3, 1]}, '
    '{"class": "c", "segment": [0, 9]}]}'
)


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        (f'{{"version": 1.5, "database": {{{VIDEO}, {OTHER}}}, "taxonomy": [{{"a": 1}}]}} \n', True),
        (f'\ufeff{{ "GT" :{{ {VIDEO}}}}}', True),
        (f"{{{VIDEO}}}", False),
        (f'{{"database": {{{VIDEO}, {VIDEO}}}}}', False),
        (f'{{"database": {{{VIDEO}, "v ": {{"subset": "test", "annotations": []}}}}}}', False),
        (f'{{"database": {{{VIDEO}}}, "database": {{}}}}', False),
        (f'{{"database": {{{VIDEO}}}, "GT": {{}}}}', False),
        (f'{{"database": {{{VIDEO}}}}} and more', False),
        (f'{{"database": {{{VIDEO}, "x": {{"subset": "test"}}}}}}', False),
        (f'{{"database": {{{VIDEO}, "x": {{"annotations": []}}}}}}', False),
        ('{"database": {"x": {"annotations": []}}}', False),
        (f'{{"database": {{{VIDEO}', False),
        (f'{{"database": {{{VIDEO}}}, "x": "\\ud800"}}', False),
        ('{"database": {}}', False),
        ("[]", False),
        ("12", False),
    ],
)
def test_ground_truth_in_columns_is_what_it_is_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, is_plain: bool
) -> None:
    """Read in pieces of any size; what is not plain is left to the careful reader and its sentences."""
    (path := tmp_path / "gt.json").write_text(text, encoding="utf-8")

    def read(**options: bool) -> tuple[Any, bool]:
        try:
            videos = read_annotations(path, **options).videos
        except InputError as error:
            return str(error), False
        return list(videos.items()), isinstance(videos, VideoColumns)

    expected, _ = read()
    for piece in (1, 7, 2**20):
        monkeypatch.setattr(json_files, "PIECE", piece)
        assert read(in_columns=True) == (expected, is_plain)
