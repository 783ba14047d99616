"""Detections survive the disk whole, belong to one rank each, and bad files are refused with one clear sentence."""

import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aumn.inference import parts
from aumn.inference.detections import export_json, read_detections
from aumn.inference.parts import write_part
from aumn.records import InputError
from tests.evaluation_reference import Found, as_detections, as_rows

ROWS = [
    Found("v1", "jump", 0.5, 0.0, 4.25),
    Found("v1", "run", 0.1 + 0.2, 1.0, 1.0),
    Found("Zürich", "jump", -1.5e-300, 1 / 3, 2 / 3),
    Found("v1", "jump", 0.5, 0.0, 4.25),
]


def many(count: int) -> list[Found]:
    random = np.random.default_rng(3)
    video, label = random.integers(0, 40, count).tolist(), random.integers(0, 7, count).tolist()
    score, start_s, length_s = random.random((3, count)).tolist()
    rows = zip(video, label, score, start_s, length_s, strict=True)
    return [Found(f"v{v}", f"class {c}", s, start, start + length) for v, c, s, start, length in rows]


def test_a_part_comes_back_as_it_was_written(tmp_path: Path):
    write_part(as_detections(ROWS), tmp_path / "part-0.parquet", {"subset": "testing", "model": "models:/a@b"})
    detections, metadata = read_detections(tmp_path)
    assert as_rows(detections) == sorted(ROWS)
    assert metadata == {"subset": "testing", "model": "models:/a@b"}
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]
    assert as_rows(read_detections(tmp_path / "part-0.parquet")[0]) == sorted(ROWS)


def test_strings_in_a_part_are_dictionary_encoded(tmp_path: Path):
    write_part(as_detections(ROWS), tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == ["video", "label", "score", "start_s", "end_s"]
    assert [str(kind) for kind in schema.types[:2]] == ["dictionary<values=string, indices=int32, ordered=0>"] * 2
    assert schema.types[2:] == [pa.float64()] * 3


def test_parts_add_up_even_where_they_share_videos_or_are_empty(tmp_path: Path):
    rows = many(100)
    for number, share in enumerate([rows[:30], [], rows[30:]]):
        write_part(as_detections(share), tmp_path / f"{number}.parquet")
    detections, _ = read_detections(tmp_path)
    assert as_rows(detections) == sorted(rows)
    assert len(set(detections.videos)) == len(detections.videos)


def test_parts_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aumn.inference.parts.BATCH_ROWS", 7)
    rows = many(40)
    write_part(as_detections(rows), tmp_path / "a.parquet")
    assert as_rows(read_detections(tmp_path)[0]) == sorted(rows)
    write_part(as_detections([*rows, rows[0]._replace(score=np.nan)]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet, row 40 \(from 0\)"):
        read_detections(tmp_path)


def test_no_detections_at_all_is_a_table_too(tmp_path: Path):
    write_part(as_detections([]), tmp_path / "a.parquet")
    detections, _ = read_detections(tmp_path)
    assert len(detections) == 0
    assert detections.video_N.dtype.kind == "i"
    export_json(detections, tmp_path / "a.json")
    assert len(read_detections(tmp_path / "a.json")[0]) == 0


def test_a_file_by_other_hands_reads_too(tmp_path: Path):
    """Plain strings, single precision, whole seconds, more columns than needed."""
    columns = {
        "note": pa.array(["", None]),
        "end_s": pa.array([4, 9], pa.int16()),
        "start_s": pa.array([1.5, 2.5], pa.float32()),
        "score": pa.array([0.5, 0.25]),
        "label": pa.array(["run", "run"], pa.large_string()),
        "video": pa.array(["v1", "v2"]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    detections, metadata = read_detections(tmp_path)
    assert as_rows(detections) == [Found("v1", "run", 0.5, 1.5, 4.0), Found("v2", "run", 0.25, 2.5, 9.0)]
    assert metadata == {}


def test_json_comes_back_as_it_was_written_and_fits_the_devkit(tmp_path: Path):
    export_json(as_detections(ROWS), tmp_path / "results.json")
    assert as_rows(read_detections(tmp_path / "results.json")[0]) == sorted(ROWS)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document.keys() == {"version", "results", "external_data"}
    assert [detection["score"] for detection in document["results"]["v1"]] == [0.5, 0.5, 0.1 + 0.2]
    assert document["results"]["v1"][0] == {"label": "jump", "score": 0.5, "segment": [0.0, 4.25]}


@pytest.mark.parametrize("form", ["parts", "json"])
@pytest.mark.parametrize("size", [2, 3])
def test_each_video_belongs_wholly_to_one_rank(tmp_path: Path, size: int, form: str):
    rows = many(300)
    path = tmp_path / form
    if form == "json":
        export_json(as_detections(rows), path)
    else:
        path.mkdir()
        write_part(as_detections(rows[:120]), path / "0.parquet")
        write_part(as_detections(rows[120:]), path / "1.parquet")
    shares = [as_rows(read_detections(path, rank, size)[0]) for rank in range(size)]
    assert sorted(chain.from_iterable(shares)) == sorted(rows)
    videos = [{row.video for row in share} for share in shares]
    assert sum(map(len, videos)) == 40
    assert min(map(len, videos)) >= 40 // size // 2


def test_names_without_rows_belong_to_nobody(tmp_path: Path):
    """As pandas writes a categorical column of which some rows were dropped."""
    for number, (first, share) in enumerate((("aaa", ROWS[:2]), ("zzz", ROWS[2:]))):
        names = pa.array([first, *(row.video for row in share)])
        video = pa.DictionaryArray.from_arrays(pa.array(range(1, len(names)), pa.int32()), names)
        columns = {"video": video, **{name: [getattr(row, name) for row in share] for name in Found._fields[1:]}}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    for size in (1, 2, 3):
        shares = [read_detections(tmp_path, rank, size)[0] for rank in range(size)]
        assert sorted(chain.from_iterable(map(as_rows, shares))) == sorted(ROWS)


def test_a_rank_leaves_unread_what_holds_none_of_its_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aumn.inference.parts.BATCH_ROWS", 10)
    rows = sorted(many(400))
    for number, share in enumerate((rows[:137], rows[137:])):  # the cut goes through a video
        write_part(as_detections(share), tmp_path / f"{number}.parquet")
    read: list[int] = []
    monkeypatch.setattr(parts, "checked", lambda chunk, *_: read.append(len(chunk)) or chunk)
    shares = [as_rows(read_detections(tmp_path, rank, 4)[0]) for rank in range(4)]
    assert list(chain.from_iterable(shares)) == rows
    assert max(map(len, shares)) < 400 / 4 + 20
    assert 400 <= sum(read) <= 400 + 3 * 20  # what two ranks share is read by both


def test_parts_of_different_runs_are_refused(tmp_path: Path):
    write_part(as_detections(ROWS), tmp_path / "a.parquet", {"subset": "testing"})
    write_part(as_detections(ROWS), tmp_path / "b.parquet", {"subset": "training"})
    with pytest.raises(InputError, match=r"b.parquet is not of the run that wrote a.parquet: subset is 'training'"):
        read_detections(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "json"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Found("v9", "run", np.nan, 0, 1), r"row 4 \(from 0\), video 'v9': score=nan; .* finite"),
        (Found("v9", "run", -np.inf, 0, 1), r"video 'v9': score=-inf; .* finite"),
        (Found("v9", "run", 0.5, np.nan, 1), r"video 'v9': start_s=nan"),
        (Found("v9", "run", 0.5, 0, np.inf), r"video 'v9': end_s=inf"),
        (Found("v9", "run", 0.5, 2, 1.5), r"video 'v9': end_s=1.5 is before start_s=2.0; .* not before its start"),
    ],
)
def test_numbers_that_cannot_be_ranked_are_refused_by_every_rank_that_reads_them(
    tmp_path: Path, row: Found, message: str, form: str
):
    path = tmp_path / f"bad.{form}"
    detections = as_detections([*ROWS, row], videos=["v1", "Zürich", "v9"])
    export_json(detections, path) if form == "json" else write_part(detections, path)
    for rank in range(3):
        with pytest.raises(InputError, match=rf"bad.{form}, .*{message}"):
            read_detections(path, rank, 3)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("score", None, r"a.parquet has no column 'score': a part needs video, label, score, start_s, end_s"),
        ("score", pa.array(["0.5", "0.4"]), r"the column 'score' is of type string; it must hold numbers"),
        ("label", pa.array([3, 4]), r"the column 'label' is of type int64; it must hold strings"),
        ("end_s", pa.array([1.0, None]), r"the column 'end_s' has empty cells"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, column: str, values: pa.Array | None, message: str):
    numbers = {"score": [0.5, 0.5], "start_s": [0.5, 0.5], "end_s": [0.5, 0.5]}
    columns = {"video": ["v1", "v2"], "label": ["a", "b"], **numbers, column: values}
    table = pa.table({name: value for name, value in columns.items() if value is not None})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path)


def test_damaged_parts_are_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_part(as_detections(many(5000)), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", b"not Parquet at all", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.parquet cannot be read as Parquet \(.+\): write it again") as caught:
            read_detections(tmp_path)
        assert "\n" not in str(caught.value)


def test_counts_of_rows_that_were_damaged_lose_no_row_in_silence(tmp_path: Path):
    """Checksums of pages cover neither their headers nor the footer, where each count of rows stands as a number."""
    path = tmp_path / "a.parquet"
    write_part(as_detections(many(200)), path)
    whole, refused = path.read_bytes(), 0
    for found in re.finditer(re.escape(b"\x90\x03"), whole):  # 200 as Parquet writes it
        path.write_bytes(whole[: found.start()] + b"\x8e\x03" + whole[found.end() :])  # 199
        try:
            assert len(read_detections(tmp_path)[0]) == 200
        except InputError:
            refused += 1
    assert refused >= 7  # five columns', the row group's and the file's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json is not usable JSON"),
        ('{"results": {"v1": [], "v1": []}}', "results.json is not usable JSON .'v1' is given twice"),
        ('{"results": {"\\ud800": []}}', "results.json is not usable JSON .*surrogates not allowed"),
        ("[" * 10**5, "results.json is not usable JSON .it is nested too deeply"),
        (
            '{"results": {"v1": [{"label": "run", "score": 0.5, "segment": [0, 1e10]}]}}',
            "end_s=10000000000.0; .* below 1e",
        ),
        (
            '{"results": {"v1": [{"label": "run", "score": %s, "segment": [0, 1]}]}}' % ("9" * 4000),
            "999.* is not a detec",
        ),
        ("[]", "results.json holds no ActivityNet results"),
        ('{"database": {}}', "results.json holds no ActivityNet results"),
        ('{"results": {"v1": {"label": "run"}}}', "results.json holds no ActivityNet results"),
        ('{"results": {"v1": [{"label": "run", "score": 0.5}]}}', "video 'v1': .* is not a detection; its layout"),
        ('{"results": {"v1": [{"label": [3], "score": 0.5, "segment": [0, 1]}]}}', "is not a detection"),
        ('{"results": {"v1": [{"label": "run", "score": 0.5, "segment": [0]}]}}', "is not a detection"),
        ('{"results": {"v1": [{"label": "run", "score": 0.5, "segment": ["0", "1"]}]}}', "is not a detection"),
    ],
)
def test_json_that_is_no_results_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_detections(tmp_path / "results.json")


def test_a_run_of_thumos14s_challenge(tmp_path: Path):
    text = "v1\t7.5\t10.1\t45\t0.25\n\nv2 0 1 97 1e-3\r\nv1 0 1 Juggling 1\n"
    (tmp_path / "run.txt").write_text(text)
    assert as_rows(read_detections(tmp_path / "run.txt")[0]) == [
        Found("v1", "JavelinThrow", 0.25, 7.5, 10.1), Found("v1", "Juggling", 1, 0, 1),
        Found("v2", "VolleyballSpiking", 1e-3, 0, 1),
    ]  # fmt: skip
    for line in ("v1 1 2 45", "v1 1 2 45 high", "v1 1 2 45 nan"):
        (tmp_path / "run.txt").write_text(text + line)
        with pytest.raises(InputError, match=rf"run.txt.*({line!r}|score=nan)"):
            read_detections(tmp_path / "run.txt")


@pytest.mark.shared
def test_a_published_run_is_what_its_json_says(shared_data: Path):
    run, document = "thumos_run_format/stpn_results.txt", "wtalc_folder_as_truth/stpn_results.json"
    (found, _), (expected, _) = (read_detections(shared_data / "field" / name) for name in (run, document))
    assert (len(found), sorted(found.labels)) == (9151, sorted(expected.labels))
    assert [row[:2] for row in as_rows(found)] == [row[:2] for row in as_rows(expected)]


def test_a_path_without_detections_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no Parquet parts .* give the folder that `aumn localize` wrote"):
        read_detections(tmp_path)
    with pytest.raises(InputError, match=r"nowhere does not exist: give a folder of Parquet parts or an ActivityNet"):
        read_detections(tmp_path / "nowhere")
