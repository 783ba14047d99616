"""A tar's samples are those that webdataset's own pipeline yields, whatever its members are called."""

import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aumn.data.indexing.members import list_samples
from aumn.records import InputError

KINDS = {"file": tarfile.REGTYPE, "old": tarfile.AREGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
NAMES = st.one_of(
    st.sampled_from(["a.npy", "a.json", "b.rgb.npy", "b.RGB.npy", ".a.npy", "f/a.npy", "f/.a.npy", "f.1/a.npy", "a"]),
    st.sampled_from(["__a__", "__a__/b.npy", "f/__a__.npy", "__a__.npy", "a.__key__", "a.", "x" * 130 + ".rgb.npy"]),
    st.text("abA._/é ", min_size=1, max_size=9),
)


def write_tar(path: Path, members: list[tuple[str, str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = KINDS[kind], "a.npy" * (kind == "link")
            is_folder = kind == "folder" or (kind == "old" and name.endswith("/"))  # which old tars say so
            info.size = 0 if is_folder or kind == "link" else len(content)
            tar.addfile(info, io.BytesIO(content))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.sampled_from([*KINDS, "file", "file", "file"]), st.binary(max_size=9)), max_size=9),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_samples_are_webdatasets(members: list[tuple[str, str, bytes]], form: int) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        write_tar(path, members, form)
        with path.open("rb") as file:
            samples = list(list_samples(file, "a.tar"))
        with path.open("rb") as stream:
            pipeline = group_by_keys(tar_file_expander([{"url": "a.tar", "stream": stream}]))
            if any(sample.problem for sample in samples):
                with pytest.raises(ValueError, match="duplicate file name in tar file"):
                    list(pipeline)
                return
            yielded = [(sample.pop("__key__"), sample) for sample in pipeline]
        content = path.read_bytes()
    assert yielded == [
        (key, {"__url__": "a.tar"} | {suffix: content[at : at + size] for suffix, (at, size) in places.items()})
        for key, places, _ in samples
    ]


def test_one_member_twice_spoils_its_sample_alone(tmp_path: Path) -> None:
    names = ["a.x.npy", "b.x.npy", "b.X.npy", "c.x.npy"]
    write_tar(tmp_path / "a.tar", [(name, "file", b"1") for name in names])
    with (tmp_path / "a.tar").open("rb") as file:
        samples = list(list_samples(file, "a.tar"))
    assert [(sample.key, sample.problem) for sample in samples] == [
        ("a", ""),
        ("b", "has a member twice: b.X.npy: duplicate file name in tar file x.npy"),
        ("c", ""),
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:2000], "a.tar is no whole tar .unexpected end of data.: fetch it again"),
        (lambda content: content[:1024] + b"x" * 512 + content[1536:], "a.tar is damaged: it has no tar header at"),
        (lambda content: content[:2048], "a.tar ends without the mark of a tar's end, so it may be"),
        (lambda _: b"text", "a.tar is no whole tar"),
    ],
)  # fmt: skip
def test_tars_that_webdataset_reads_a_part_of_in_silence(tmp_path: Path, damage, message: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.npy", "file", b"1"), ("b.npy", "file", b"2")])
    (tmp_path / "a.tar").write_bytes(damage((tmp_path / "a.tar").read_bytes()))
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(InputError, match=message):
        list(list_samples(file, "a.tar"))
