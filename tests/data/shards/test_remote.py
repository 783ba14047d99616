"""Shard sets on real servers: read as the same set in a folder is, whatever the servers do."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aumn.data.loader import whole_videos
from aumn.data.problems import DamagedVideoError, StoreGoneError
from aumn.data.shards import cache as cache_module
from aumn.data.shards.cache import ShardCache
from aumn.data.shards.shard_set import Access, ShardSet
from aumn.data.shards.stores import ObjectStore, Remote, open_store
from aumn.data.truth.annotations import read_annotations
from aumn.records import InputError, place_of
from tests.data.conftest import ONE_VIDEO
from tests.stores import S3_ENVIRONMENT, Faulty, faulty, moto, nginx


@pytest.fixture
def local(published) -> ShardSet:
    """Five videos in five tars."""
    return published.open(shard_mb=ONE_VIDEO)


@pytest.fixture
def server(local: ShardSet):
    with faulty(local.path) as found:
        yield found


def open_remote(address: str, folder: Path, *, whole: bool = True, gigabytes: float = 1.0, away_s: float = 5.0):
    return ShardSet.open(place_of(address), Access(whole, folder, round(gigabytes * 1e9), away_s))


def same(one: ShardSet, other: ShardSet) -> bool:
    assert list(one.videos) == list(other.videos)
    assert one.identity == other.identity
    return all(
        np.array_equal(one.read(index)[stream], other.read(index)[stream])
        for index in (3, 0, 4, 2, 1, 0)
        for stream in one.streams
    )


def test_real_servers(published, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nginx").mkdir()
    with nginx(local.path.parent, tmp_path / "nginx") as web, moto(tmp_path) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
        monkeypatch.setenv("SSL_CERT_FILE", str(web.certificate))
        import pyarrow.fs as arrow_fs

        arrow_fs.S3FileSystem(endpoint_override=s3, allow_bucket_creation=True).create_dir("bucket")
        pack_to_bucket(published, "s3://bucket/deep/set", monkeypatch)
        name = local.path.name
        for place in (f"{web.plain}/{name}", f"{web.whole}/{name}/", f"{web.tls}/{name}", "s3://bucket/deep/set"):
            for whole in (True, False):
                assert same(open_remote(place, tmp_path / place.replace("/", "_") / str(whole), whole=whole), local), (
                    place
                )
            truth = read_annotations(place_of(place))
            assert truth.videos == read_annotations(local.path).videos
        size = sum(file.stat().st_size for file in local.path.glob("*.tar"))
        assert size < web.sent_bytes() < 2.2 * size  # whole tars once; the parts of six videos in each of two rounds
        with pytest.raises(InputError, match=r"s3://bucket/other is not a shard set: it holds no dataset\.json"):
            ShardSet.open("s3://bucket/other")
        with pytest.raises(InputError, match=r"http://.*/none is not a shard set: it holds no dataset\.json"):
            ShardSet.open(f"{web.plain}/none")
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(InputError, match=r"cannot be spoken to .*certificate verify failed.*in SSL_CERT_FILE"):
            ShardSet.open(f"{web.tls}/{name}")
        with pytest.raises(InputError, match=r"cannot be spoken to .*WRONG_VERSION_NUMBER.*correct the address"):
            ShardSet.open(f"{web.plain}/{name}".replace("http:", "https:"))


def pack_to_bucket(published, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the last file is sent, and begun again."""
    put, sent = ObjectStore._put, []

    def put_some(store: ObjectStore, name: str, file: Path) -> None:
        if name == "dataset.json":
            raise KeyboardInterrupt
        sent.append(name)
        put(store, name, file)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "_put", put_some)
        with pytest.raises(KeyboardInterrupt):
            published.pack(place, shard_mb=ONE_VIDEO)
    assert len([name for name in sent if name.endswith(".tar")]) == 5
    with pytest.raises(InputError, match="is not a shard set"):
        ShardSet.open(place)
    assert published.pack(place, shard_mb=ONE_VIDEO).kept_shards == 5
    assert not Path("set.partial").exists()
    with pytest.raises(InputError, match=f"{place} already exists"):
        published.pack(place)


def test_a_set_in_a_store_grows(published, local: ShardSet, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    place, database = "memory://grows/small", dict(published.database)
    published.database = {video: facts for video, facts in database.items() if video != "a"}
    published.write_annotations()
    published.pack(place, shard_mb=ONE_VIDEO)
    before = ShardSet.open(place)
    published.database = database
    published.write_annotations()
    report = published.pack(place, shard_mb=ONE_VIDEO, append=True, name=None)
    assert (report.appended_to, report.held, report.packed) == (4, 4, {"training": 1})
    assert ShardSet.open(place).identity == local.identity
    assert ShardSet.open(place, identity=before.identity).ids(range(4)) == before.ids(range(4))
    assert not Path("small.partial").exists()


def test_a_web_server_takes_no_files(published, server: Faulty) -> None:
    with pytest.raises(InputError, match="is a web server's, which takes no files: give a folder, or s3://bucket/set"):
        published.pack(f"{server.address}/set")


FAULTS = {
    "cut": {"cut_after": 300},
    "busy": {"busy": 3},
    "slow": {"pause_s": 0.02},
    "damaged once": {"damage": 1},
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("fields", FAULTS.values(), ids=FAULTS)
def test_a_server_that_misbehaves(fields, whole, local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache", whole=whole)
    vars(server).update(fields)
    assert same(remote, local)
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_a_cut_connection_goes_on_where_it_was(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    server.cut_after, server.sent_bytes = 300, 0
    assert same(remote, local)
    assert server.sent_bytes == remote.bytes


def test_a_store_that_is_away(local: ShardSet, server: Faulty, tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("aumn.data.shards.stores.TELL_S", 0.05)
    remote = open_remote(server.address, tmp_path / "cache")
    server.away = True
    threading.Timer(0.5, vars(server).update, [{"away": False}]).start()
    assert same(remote, local)
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert f"{server.address} does not answer (" in told[0]
    assert "trying again, for up to 5 s" in told[0]
    assert f"{server.address} answers again, after" in told[1]
    server.away = True
    gone = open_remote_later(server, local, tmp_path)
    with pytest.raises(
        StoreGoneError, match=r"has not answered for \d s \(.*\): see that it is up and that this machine"
    ):
        gone.read(0)


def test_who_waits_for_a_video_of_an_evaluation_can_give_up(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    waiting = open_remote_later(server, local, tmp_path, away_s=60.0)
    start_s = time.monotonic()
    assert list(whole_videos(waiting, [0, 1], rank=0, world_size=1, give_up=lambda: True)) == []
    assert time.monotonic() - start_s < 30


def open_remote_later(server: Faulty, local: ShardSet, tmp_path: Path, away_s: float = 0.2) -> ShardSet:
    """Of a store that is away by now."""
    server.away = False
    remote = open_remote(server.address, tmp_path / "another", away_s=away_s)
    server.away = True
    return remote


def test_a_store_that_is_wrong(local: ShardSet, server: Faulty, tmp_path: Path, caplog) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    server.longer = 5
    with pytest.raises(InputError, match=r"tar has [\d,]+ bytes where dataset.json says [\d,]+: it is truncated or an"):
        remote.read(0)
    server.longer, server.damage = 0, 100
    for one in (remote, open_remote(server.address, tmp_path / "none", whole=False)):
        with pytest.raises(
            DamagedVideoError, match="rgb of video 'd' does not match its checksum, so the file"
        ) as error:
            [one.read(index) for index in range(5)]
        assert error.value.video == "d"
    assert "came damaged (what it holds of stream rgb of video 'd') again: the store's copy is damaged." in caplog.text
    server.damage = 0
    os.truncate(local.path / "training-000000.tar", 300)
    with pytest.raises(
        InputError, match=r"training-000000.tar ends before a part that dataset.json names: it is trunc"
    ):
        [open_remote(server.address, tmp_path / "none", whole=False).read(index) for index in range(5)]
    (local.path / "training-000000.tar").unlink()
    with pytest.raises(InputError, match=r"training-000000.tar is missing: upload this shard again"):
        [open_remote(server.address, tmp_path / "new").read(index) for index in range(5)]


def test_passwords_are_refused_and_credentials_come_from_the_environment(server: Faulty, tmp_path, monkeypatch) -> None:
    secret = server.address.replace("//", "//me:hunter2@")
    with pytest.raises(InputError, match="holds a password or a token") as error:
        ShardSet.open(secret)
    assert "hunter2" not in str(error.value)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen = []
    monkeypatch.setattr("urllib.request.Request.add_unredirected_header", lambda _, *header: seen.append(header))
    ShardSet.open(server.address)
    assert ("Authorization", "Basic bWU6aHVudGVyMg==") in seen


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://", "names no host or bucket: give an address such as http://NAME/set"),
        ("s3://", "names no host or bucket: give an address such as s3://NAME/set"),
        ("s3:///set", "names no host or bucket"),
        ("http://[bad/set", "is no address"),
        ("http://127.0.0.1:abc/set", "is no address"),
        ("http://.foo/set", "is no address"),
        ("github://x", "github:// is not an address that is known here"),
        ("hdfs://h/x", "hdfs:// is not an address that is known here"),
    ],
)
def test_what_trying_again_cannot_mend_is_told_at_once(place: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ShardSet.open(place_of(place), Access(away_s=30))


def test_a_path_in_other_scripts(local: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    local.path.rename(tmp_path / "www" / "sét 1")
    with faulty(tmp_path / "www") as server:
        assert len(open_remote(f"{server.address}/sét 1", tmp_path / "cache").read(0)) == 2


def test_a_disk_that_fails_under_way_is_not_taken_for_the_store(local, server, tmp_path, monkeypatch, caplog) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    monkeypatch.setattr(cache_module.os, "pwrite", refuse(errno.EIO))
    assert same(remote, local)
    assert "cannot be written to (Input/output error): videos are read one by one" in caplog.text
    assert "does not answer" not in caplog.text


def test_what_no_package_reads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nosuch://x/y: nosuch:// is not an address that is known here"):
        ShardSet.open("nosuch://x/y")


def test_fsspec_reads_the_rest(local: ShardSet, tmp_path: Path) -> None:
    store = open_store("memory://sets/small")
    for file in local.path.iterdir():
        store.put(file.name, file)
    assert same(open_remote("memory://sets/small", tmp_path), local)


def test_processes_of_a_machine_share_what_they_fetch(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    sets = [open_remote(server.address, tmp_path / "cache", away_s=60.0) for _ in range(4)]
    server.sent_bytes, server.pause_s = 0, 0.002
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda one: same(one, local), sets * 3))
    assert server.sent_bytes == sets[0].bytes  # each tar once
    assert sum(one.cache.fetched_bytes for one in sets) == sets[0].bytes


def test_what_another_finished_just_now_is_not_fetched_again(local, server, tmp_path, monkeypatch) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    remote.read(0)
    server.sent_bytes, held, answers = 0, remote.cache.held, [None, None]
    monkeypatch.setattr(remote.cache, "held", lambda name: answers.pop() if answers else held(name))
    assert np.array_equal(remote.read(0)["rgb"], local.read(0)["rgb"])
    assert not server.sent_bytes


def test_the_cache_stays_within_its_bound(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    sizes = [file.stat().st_size for file in local.path.glob("*.tar")]
    bound = max(sizes) + min(sizes)
    remote = open_remote(server.address, tmp_path / "cache", gigabytes=bound / 1e9)
    kept = []
    for index in (0, 1, 2, 3, 4, 0, 2, 1):
        kept.append((index, remote.read(index)))
        assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= bound
    for index, features in kept:  # what was removed stays readable for who has it
        np.testing.assert_array_equal(features["rgb"], local.read(index)["rgb"])


def test_other_files_in_its_folder_are_not_the_caches(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    sizes = [file.stat().st_size for file in local.path.glob("*.tar")]
    remote = open_remote(server.address, tmp_path / "home", gigabytes=max(sizes) / 1e9)
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    for name in ("thesis.tar", ".partial", ".thesis.partial", "thesis/a.tar"):
        (tmp_path / "home" / name).write_bytes(b"x" * max(sizes))
        os.utime(tmp_path / "home" / name, (0, 0))  # read longest ago
    assert same(remote, local)
    assert sum(path.is_file() and path.stat().st_mtime == 0 for path in (tmp_path / "home").rglob("*")) == 4


def test_what_was_read_longest_ago_makes_room(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    for index in range(5):
        remote.read(index)
    for number, file in enumerate(sorted((tmp_path / "cache").glob("*.tar"))):
        os.utime(file, ns=(number, number))
    remote.read(2)
    held = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*.tar")}
    oldest = min(held, key=held.get)
    bound = sum(file.stat().st_size for file in held)
    other = ShardCache(tmp_path / "cache", bound)
    store = open_store(server.address)
    assert isinstance(store, Remote)
    other.get(f"{0:016}-new.tar", store, oldest.name.partition("-")[2], oldest.stat().st_size, lambda _: "")
    assert not oldest.exists()
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 5


def test_a_cache_that_is_lost_or_cut_or_changed(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    import shutil

    remote = open_remote(server.address, tmp_path / "cache")
    assert same(remote, local)
    shutil.rmtree(tmp_path / "cache")
    assert same(remote, local)
    for file in (tmp_path / "cache").glob("*.tar"):
        content = bytearray(file.read_bytes())
        content[content.index(b"NUMPY") + 130] ^= 1
        file.write_bytes(content)
    assert same(open_remote(server.address, tmp_path / "cache"), local)


def test_a_cached_file_that_is_cut_under_way_ends_nobody(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    kept = [remote.read(index) for index in range(5)]
    for size in (300, 0):
        for file in (tmp_path / "cache").glob("*.tar"):
            os.truncate(file, size)
        for index, features in enumerate(kept):  # of a map, this was a SIGBUS
            np.testing.assert_array_equal(features["rgb"], local.read(index)["rgb"])
        assert same(remote, local)


def test_what_is_damaged_in_the_cache_is_fetched_again_however_often(local, server, tmp_path) -> None:
    remote, start = open_remote(server.address, tmp_path / "cache"), threading.Barrier(2)
    for _ in range(3):
        (held,) = [remote.read(0), *(tmp_path / "cache").glob("*.tar")][1:]
        content = bytearray(held.read_bytes())
        content[content.index(b"NUMPY") + 130] ^= 1
        held.write_bytes(content)
        with ThreadPoolExecutor(2) as threads:  # both find it damaged before either has fetched it again
            found = threads.map(lambda _: (start.wait(), remote.read(0))[1], range(2))
        assert all(np.array_equal(features["rgb"], local.read(0)["rgb"]) for features in found)


def test_nobody_renames_the_part_that_another_has_begun(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    import shutil

    cache, store, seen = ShardCache(tmp_path / "cache", 10**9), open_store(server.address), []
    source, size = Path(local.tar_of(0)).name, Path(local.tar_of(0)).stat().st_size

    def check(_: memoryview) -> str:
        if not seen:
            shutil.rmtree(cache.folder)
            cache.folder.mkdir()
            (cache.folder / ".0123456789abcdef-x.tar.partial").write_bytes(b"half")  # another process's
        seen.append((cache.folder / "0123456789abcdef-x.tar").exists())
        return ""

    assert isinstance(store, Remote)
    file = cache.get("0123456789abcdef-x.tar", store, source, size, check)
    assert seen == [False, False]
    assert file.read_bytes() == (local.path / source).read_bytes()


def test_no_file_is_renamed_while_another_counts_them(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    import fcntl

    cache, store, counting = ShardCache(tmp_path / "cache", 10**9), open_store(server.address), []
    source, size = Path(local.tar_of(0)).name, Path(local.tar_of(0)).stat().st_size

    def check(_: memoryview) -> str:
        counting.append((cache.folder / ".lock").open("rb"))
        fcntl.flock(counting[0], fcntl.LOCK_EX)
        return ""

    assert isinstance(store, Remote)
    with ThreadPoolExecutor(1) as threads:
        fetched = threads.submit(cache.get, "0123456789abcdef-x.tar", store, source, size, check)
        threading.Event().wait(0.3)
        assert (cache.folder / ".0123456789abcdef-x.tar.partial").exists()
        counting[0].close()
        assert fetched.result().exists()


def test_who_was_stopped_while_it_fetched_is_not_waited_for(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    import fcntl

    remote, other = (open_remote(server.address, tmp_path / "cache", away_s=away_s) for away_s in (0.1, 60.0))
    remote.read(0)
    (held,) = (tmp_path / "cache").glob("*.tar")
    with held.rename(held.with_name(f".{held.name}.partial")).open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        np.testing.assert_array_equal(remote.read(0)["rgb"], local.read(0)["rgb"])
        server.requests.clear()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(other.read, 0)
            threading.Event().wait(0.2)
            assert not server.requests
            stopped.close()
            np.testing.assert_array_equal(waiting.result()["rgb"], local.read(0)["rgb"])


def test_parts_that_killed_processes_left(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache", gigabytes=remote_size(local) / 1e9)
    (tmp_path / "cache").mkdir()
    orphan = tmp_path / "cache" / ".0123456789abcdef-training-000009.tar.partial"
    orphan.write_bytes(b"x" * 5000)
    assert same(remote, local)
    assert not orphan.exists()


def remote_size(shards: ShardSet) -> int:
    return sum(file.stat().st_size for file in shards.path.glob("*.tar"))


@pytest.mark.parametrize("why", ["full disk", "broken disk", "small cache", "no folder"])
def test_without_room_videos_are_read_one_by_one(why, local, server, tmp_path, monkeypatch, caplog) -> None:
    folder, gigabytes = tmp_path / "cache", 1.0
    if why.endswith("disk"):
        monkeypatch.setattr(cache_module.os, "posix_fallocate", refuse(errno.ENOSPC if why[0] == "f" else errno.EIO))
    elif why == "small cache":
        gigabytes = 1e-9
    else:
        folder = Path("/proc/nowhere")
    remote = open_remote(server.address, folder, gigabytes=gigabytes)
    assert same(remote, local)
    (told,) = [record.message for record in caplog.records]
    assert "videos are read one by one from" in told
    expected = {"full disk": "has no room", "small cache": "data.cache.size_gb=1e-09", "no folder": "cannot be made"}
    assert expected.get(why, "cannot be written to (Input/output error)") in told


def refuse(number: int):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def test_shards_are_fetched_ahead_of_their_use(local: ShardSet, server: Faulty, tmp_path: Path) -> None:
    remote = open_remote(server.address, tmp_path / "cache")
    with remote.ahead([4, 1, 4, 0]):
        for _ in range(500):
            if len(list((tmp_path / "cache").glob("*.tar"))) == 3:
                break
            threading.Event().wait(0.01)
    asked = {name for name in (request.split()[1] for request in server.requests) if name.endswith(".tar")}
    assert asked == {f"/{Path(local.tar_of(index)).name}" for index in (4, 1, 0)}


def test_a_file_that_appears_while_it_is_looked_for_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, held, too_early = ShardCache(tmp_path, 10**6), ShardCache.held, [True]
    (tmp_path / "name").write_bytes(b"fetched")
    monkeypatch.setattr(
        ShardCache, "held", lambda self, name: None if too_early and too_early.pop() else held(self, name)
    )
    store = open_store("http://127.0.0.1:9", away_s=0.1)
    assert cache.get("name", store, "source", 7, lambda _: "") == tmp_path / "name"
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["name"]
