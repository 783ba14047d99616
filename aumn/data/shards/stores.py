"""Where the files of a set lie: a folder, a web server, an object store. Reading goes on after a cut connection.

Credentials come from the environment alone (AWS_ACCESS_KEY_ID and the like; ~/.netrc for a web server), since an
address is kept with a run and shown. http(s) is read by the standard library, s3 and gs by Arrow, every other
scheme by the fsspec package that knows it.
"""

from __future__ import annotations

import logging
import netrc
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import Request, urlopen

from aumn.addresses import has_password, hide, public
from aumn.data.problems import StoreGoneError
from aumn.records import InputError, Place

logger = logging.getLogger(__name__)

ANSWER_S = 20.0  # how long one answer, or the next part of it, may take
AWAY_S = 300.0
"""How long a store may be away unless a run's settings say otherwise."""
PIECE = 2**25  # bytes asked of an object store at once
WEB_PIECE = 2**16  # of an answer, handed on while they are in the processor's cache: 2.5 times quicker than 2**20
TELL_S = 2.0  # a shorter absence is told nobody
REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "INVALID_CLIENT", "NO_SUCH_BUCKET", "HTTP status 403")
MISSING, REFUSED, TOO_SHORT = {404, 410}, {400, 401, 402, 403, 405, 407, 451}, 416

Answer = TypeVar("Answer")


class Folder:
    """A folder that this machine sees."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self, name: str) -> bytes:
        """A small file; FileNotFoundError where there is none."""
        return (self.place / name).read_bytes()

    def size(self, name: str) -> int | None:
        """How many bytes a file has; None where there is none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.place / name).stat().st_size
        return None


class Remote:
    """What web servers and object stores have in common: they may be slow, cut a connection, or be away for a while.

    `away_s` is how long one may be away. Safe to use from several threads.
    """

    is_writable = True
    ranges = True  # whether it is known to serve parts of a file; what it does not, is read from the start and dropped

    def __init__(self, place: str, away_s: float = AWAY_S) -> None:
        self.place, self.away_s = place, away_s
        self.stopping = threading.Event()  # ends every wait
        self._lock, self._away_since, self._told = threading.Lock(), 0.0, False

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        if (size := self.size(name)) is None:
            raise FileNotFoundError(f"{public(self.place)}/{name} is not there")
        content = bytearray(size)
        self.fill(name, 0, memoryview(content), size)
        return bytes(content)

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        with suppress(FileNotFoundError):
            return self._until_answered(name, lambda: self._size(name))
        return None

    def fill(self, name: str, first: int, target: memoryview, size: int) -> None:
        """Read a file's bytes from `first` on until `target` is full; see `copy`."""
        self._copy(name, first, len(target), size, target=target)

    def copy(self, name: str, first: int, length: int, size: int, put: Callable[[int, memoryview], object]) -> None:
        """Hand on a file's bytes from `first` on, piece by piece with its place, going on where a connection was cut.

        `size` is what the file must have in all; InputError where it has another.
        """
        self._copy(name, first, length, size, put=put)

    def _copy(
        self,
        name: str,
        first: int,
        length: int,
        size: int,
        *,
        target: memoryview | None = None,
        put: Callable[[int, memoryview], object] = lambda _at, _piece: None,
    ) -> None:
        patience, at = _Patience(self, name), first
        while at < first + length:
            before, problem = at, "it ended the connection early"
            try:
                rest = None if target is None else target[at - first :]
                for piece in self._receive(name, at, first + length - at, size, rest):
                    put(at, piece)
                    at += len(piece)
            except FileNotFoundError:
                raise InputError(f"{public(self.place)}/{name} is missing: upload this shard again.") from None
            except (OSError, HTTPException) as error:
                problem = self._judge(name, error)
            if at > before:
                self.answered()
                patience = _Patience(self, name)
            if at < first + length:
                patience.wait(problem)

    def put(self, name: str, file: Path) -> None:
        """Write a file, in place of what has the name; it appears whole."""
        self._until_answered(name, lambda: self._put(name, file))

    def _until_answered(self, name: str, question: Callable[[], Answer]) -> Answer:
        patience = _Patience(self, name)
        while True:
            try:
                answer = question()
            except (OSError, HTTPException) as error:
                patience.wait(self._judge(name, error))
            else:
                self.answered()
                return answer

    def answered(self) -> None:
        """Note that the store is there, and say so if it was said to be away."""
        if self._away_since:
            with self._lock:
                since, self._away_since, told, self._told = self._away_since, 0.0, self._told, False
            if told and since:
                logger.warning("%s answers again, after %.0f s.", public(self.place), time.monotonic() - since)

    def missed(self, problem: str) -> None:
        """Note that the store did not answer; StoreGoneError where it has been away for too long."""
        now = time.monotonic()
        with self._lock:
            self._away_since = self._away_since or now
            away_s = now - self._away_since
            tell, self._told = away_s > TELL_S and not self._told, self._told or away_s > TELL_S
        if self.stopping.is_set():
            raise StoreGoneError(f"{public(self.place)} was not waited for: this process was asked to stop.")
        if away_s > self.away_s:
            raise StoreGoneError(
                f"{public(self.place)} has not answered for {away_s:,.0f} s ({problem}): see that it is up and that "
                "this machine reaches it; data.store_away_s says how long it is waited for."
            )
        if tell:
            logger.warning(
                "%s does not answer (%s): trying again, for up to %.0f s.", public(self.place), problem, self.away_s
            )

    def _judge(self, name: str, error: Exception) -> str:
        """Why it did not answer, where trying again may help; else an error."""
        if isinstance(error, FileNotFoundError):
            raise error
        text = hide(str(error), self.place).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, PermissionError) or any(word in text for word in REFUSALS):
            raise InputError(
                f"{public(self.place)} refuses {name} ({text}): see that it exists and that the environment of this "
                "process has the credentials for it."
            ) from None
        return text

    def _size(self, name: str) -> int | None:
        raise NotImplementedError

    def _receive(
        self, name: str, first: int, length: int, size: int, target: memoryview | None
    ) -> Iterator[memoryview]:
        """The bytes, or as many of the first as come, in `target`; without one, a piece is valid until the next."""
        raise NotImplementedError

    def _put(self, name: str, file: Path) -> None:
        raise NotImplementedError


class Web(Remote):
    """A web server, with or without Range; redirects, proxies and certificates as the environment says."""

    is_writable = False

    def _size(self, name: str) -> int | None:
        with self._open(name, method="HEAD") as answer:
            if not (length := answer.headers.get("Content-Length", "")).isdigit():
                raise InputError(
                    f"{public(self.place)} does not tell how long {name} is (it sends no Content-Length): let the "
                    "server send the set's files as they are, or fetch the set into a folder."
                )
            return int(length)

    def _receive(
        self, name: str, first: int, length: int, size: int, target: memoryview | None
    ) -> Iterator[memoryview]:
        with self._open(name, {"Range": f"bytes={first}-{first + length - 1}"}) as answer:
            whole = answer.headers.get("Content-Length")
            if answer.status == 206:
                span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
                if span.partition("-")[0] != str(first):
                    raise OSError(f"it sent {span or 'nothing'} where bytes from {first} on were asked for")
            else:
                self.ranges = False
            if whole and whole.isdigit() and int(whole) != size:
                raise _other_size(self.place, name, int(whole), size)
            skip = 0 if answer.status == 206 else first
            while skip:
                if not (dropped := len(answer.read(min(skip, 2**20)))):
                    return
                skip -= dropped
            at, buffer = 0, memoryview(bytearray(WEB_PIECE if target is None else 0))
            while at < length:
                into = buffer[: length - at] if target is None else target[at:]
                if not (count := answer.readinto(into)):
                    return
                at += count
                yield into[:count]

    def _open(self, name: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> Any:
        parts = urlsplit(self.place)
        path = f"{quote(parts.path.rstrip('/'), safe='/%~')}/{quote(name, safe='%~')}"
        url = parts._replace(path=path).geturl()
        request = Request(url, headers={"Accept-Encoding": "identity", **(headers or {})}, method=method)  # noqa: S310
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            return urlopen(request, timeout=ANSWER_S)  # noqa: S310  # the scheme is http or https
        except HTTPError as error:
            error.close()
            if error.code in MISSING:
                raise FileNotFoundError(f"{public(url)} is not there ({error.code})") from None
            if error.code in REFUSED:
                raise PermissionError(f"{error.code} {error.reason}") from None
            if error.code == TOO_SHORT:
                raise InputError(
                    f"{public(url)} ends before a part that dataset.json names: it is truncated or another's; upload "
                    "this shard again."
                ) from None
            raise OSError(f"{error.code} {error.reason}") from None
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError) or "WRONG_VERSION" in str(error.reason):
                raise InputError(
                    f"{public(self.place)} cannot be spoken to ({error.reason}): correct the address, or name the file "
                    "of its authority's certificate in SSL_CERT_FILE."
                ) from None
            raise OSError(str(error.reason)) from None
        except UnicodeError as error:
            raise InputError(f"{public(self.place)} is no address ({error}): correct it.") from None

    @cached_property
    def _authorization(self) -> str | None:
        """Basic, of the user whom ~/.netrc (or NETRC) has for this host."""
        from base64 import b64encode

        try:
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(self.place).hostname or "")
        except (OSError, netrc.NetrcParseError):
            return None
        return f"Basic {b64encode(f'{found[0]}:{found[2]}'.encode()).decode()}" if found else None


class ObjectStore(Remote):
    """What Arrow reads: S3 and its like, Google's; and by fsspec whatever there is a package for."""

    def _size(self, name: str) -> int | None:
        import pyarrow.fs as arrow_fs

        info = self._system.get_file_info(self._path(name))
        return int(info.size) if info.type == arrow_fs.FileType.File else None

    def _receive(
        self, name: str, first: int, length: int, size: int, target: memoryview | None
    ) -> Iterator[memoryview]:
        with self._system.open_input_file(self._path(name)) as file:
            if file.size() != size:
                raise _other_size(self.place, name, file.size(), size)
            file.seek(first)
            at = 0
            while at < length and (piece := file.read_buffer(min(length - at, PIECE))).size:
                content = memoryview(piece).cast("B")
                if target is not None:
                    target[at : at + len(content)] = content
                at += len(content)
                yield content

    def _put(self, name: str, file: Path) -> None:
        with file.open("rb") as source, self._system.open_output_stream(self._path(name)) as target:
            while part := source.read(PIECE):
                target.write(part)
        if self._size(name) != file.stat().st_size:
            raise OSError(f"{name} was not taken whole")

    def _path(self, name: str) -> str:
        parts = urlsplit(self.place)
        return f"{parts.netloc}{parts.path.rstrip('/')}/{name}".lstrip("/" if not parts.netloc else "")

    @cached_property
    def _system(self) -> Any:
        import pyarrow.fs as arrow_fs

        parts = urlsplit(self.place)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            endpoint, region = options.get("endpoint_override", endpoint), options.get("region", region)
            if not endpoint and not region:
                region = self._until_answered("the bucket", lambda: arrow_fs.resolve_s3_region(parts.netloc))
            return arrow_fs.S3FileSystem(
                endpoint_override=endpoint,
                region=region or "us-east-1",
                anonymous=options.get("anonymous") == "true",
                connect_timeout=ANSWER_S,
                request_timeout=ANSWER_S,
                retry_strategy=arrow_fs.AwsStandardS3RetryStrategy(max_attempts=1),  # we do that
            )
        if parts.scheme == "gs":
            patience = timedelta(seconds=ANSWER_S)  # ours is for longer, and says so
            return arrow_fs.GcsFileSystem(anonymous=options.get("anonymous") == "true", retry_time_limit=patience)
        import fsspec

        try:
            return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(fsspec.filesystem(parts.scheme, **options)))
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise InputError(
                f"{public(self.place)}: {parts.scheme}:// is not an address that is known here ({error}); known are "
                "folders, http(s)://, s3://, gs:// and what installed fsspec packages read."
            ) from None


class _Patience:
    """Waits between attempts: at first not at all, then longer and longer, up to ten seconds."""

    def __init__(self, store: Remote, name: str) -> None:
        self._store, self._name, self._pause_s = store, name, 0.0

    def wait(self, problem: str) -> None:
        self._store.missed(f"{self._name}: {problem}")
        self._store.stopping.wait(self._pause_s * random.uniform(0.5, 1))  # noqa: S311
        self._pause_s = min(max(0.05, 2 * self._pause_s), 10.0)


Store = Folder | Remote


def open_store(place: Place, away_s: float = AWAY_S) -> Store:
    """The store of an address; InputError where it holds a password, which would be kept with every run."""
    if isinstance(place, Path):
        return Folder(place)
    if has_password(place):
        raise InputError(
            f"{public(place)} holds a password or a token, which every run would keep: give it in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.netrc for a web server), and the address without."
        )
    try:
        scheme, host, *_ = parts = urlsplit(place)
        _ = parts.port  # which is looked at when it is asked for
    except ValueError as error:
        raise InputError(f"{public(place)} is no address ({error}): correct it.") from None
    if scheme in {"http", "https", "s3", "gs"} and not host:
        raise InputError(f"{place} names no host or bucket: give an address such as {scheme}://NAME/set.")
    return (Web if scheme in {"http", "https"} else ObjectStore)(place, away_s)


def _other_size(place: str, name: str, found: int, wanted: int) -> InputError:
    return InputError(
        f"{public(place)}/{name} has {found:,} bytes where dataset.json says {wanted:,}: it is truncated or "
        "another's; upload this shard again."
    )
