"""A spreadsheet's table as ground truth: timed actions, actions of unknown times, and everything that can be wrong."""

from pathlib import Path
from typing import Any

import pytest

from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.data.truth.annotated import AnnotatedVideo, Instance
from aumn.data.truth.annotations import read_annotations, read_ground_truth
from aumn.records import InputError


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "gt.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def test_every_column_and_every_kind_of_row(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "label,video,start,end,duration,subset,fps,group",
        "Run,b,1.5,3,20,testing,25,ann",
        '"Jump, high",b,0,1,,,,',
        "Run,a,,,12.5,training,,bob",
        "Jump,a,,,,,,",
        "Jump,a,2,4,,,,bob",
        ",c,,,9,training,,",
    )
    assert list(read_annotations(path).videos.values()) == [
        AnnotatedVideo("b", "testing", 20.0, 25.0, (Instance("Run", 1.5, 3.0), Instance("Jump, high", 0.0, 1.0))),
        AnnotatedVideo("a", "training", 12.5, None, (Instance("Jump", 2.0, 4.0),), ("Run",)),
        AnnotatedVideo("c", "training", 9.0, None, ()),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_shortest_table_is_of_training_videos(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "video,label,start,end", "a, Rüben ziehen ,1,2", "", encoding=encoding)
    assert read_annotations(path).videos == {
        "a": AnnotatedVideo("a", "training", None, None, (Instance("Rüben ziehen", 1.0, 2.0),))
    }


def test_actions_at_unknown_times_are_trained_on_and_not_measured(published: Any, tmp_path: Path) -> None:
    rows = [f"{video},{label},,,training,10,25" for video, label in (("a", "Run"), ("a", "Jump"), ("b", "Jump"))]
    rows += ["d,Run,1,2,testing,10,25"]
    path = write(tmp_path, "video,label,start,end,subset,duration,fps", *rows)
    published.root.joinpath("gt.json").unlink()
    out = tmp_path / "packed"
    pack(published.root, out, path, name="weak", workers=1)
    shards = ShardSet.open(out)
    assert {video.id: video.labels for video in shards.videos} == {"a": (0, 1), "b": (0,), "d": (1,)}
    assert read_annotations(out).videos == read_annotations(path).videos
    assert len(read_ground_truth(out, "testing")) == 1
    for source in (path, out):
        with pytest.raises(InputError, match=r"says of 2 videos in subset 'training' \(a, b\) which") as raised:
            read_ground_truth(source, "training")
        assert "such videos can be trained on, and not be measured on" in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has the columns of an empty file; its first line must name video, label, start, end"),
        (["video;label;start;end"], "has the columns video;label;start;end; its first line must name"),
        (["video,label,start"], "has the columns video, label, start; its"),
        (["video,label,start,end,ende"], "has the columns video, label, start, end, ende; its"),
        (["video,label,start,end,end"], "has the columns video, label, start, end, end; its"),
        (["video,label,start,end"], "has no row below its first line"),
        (["video,label,start,end", "a,Run,1"], "line 2 has not the 4 fields of the first line"),
        (["video,label,start,end", "a,Run, fast,1,2"], "line 2 has not the 4 fields of the first line"),
        (["video,label,start,end", ",Run,1,2"], "video '' (line 2) has no name; fill in column video"),
        (["video,label,start,end", "a,,1,2"], "video 'a' (line 2) has an instance at ['1', '2'] without a label"),
        (["video,label,start,end", "a,Run,1,"], "has a 'Run' at ['1', '']; start and end must be finite numbers"),
        (["video,label,start,end", "a,Run,0:01,2"], "has a 'Run' at ['0:01', '2']; start and end must be finite"),
        (["video,label,start,end", "a,Run,1,1e10"], "has a 'Run' at ['1', '1e10']; start and end must be finite"),
        (
            ["video,label,start,end,fps", "a,Run,1,2,0"],
            "has fps '0'; it must be a number above 0, to 1e+09, or left out",
        ),
        (
            ["video,label,start,end,subset", "a,Run,1,2,x", "a,Run,3,4,y"],
            "video 'a' (lines 2, 3) has subset 'x' and 'y'; a video has one: correct its rows",
        ),
        (['video,label,start,end"x', 'a,"Run'], "has the columns"),
        (["video,label,start,end", 'a,"Run'], "is no table of comma-separated UTF-8 text (unexpected end of data)"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        read_annotations(write(tmp_path, *lines))
    assert str(raised.value).startswith(str(tmp_path / "gt.csv"))
    assert message in str(raised.value)


def test_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gt.csv is no table of comma-separated UTF-8 text .*: save it as CSV UTF-8"):
        read_annotations(write(tmp_path, "video,label,start,end", "a,Rüben,1,2", encoding="latin1"))
