"""Disks that refuse what they are asked to write, as real ones do: full, forbidden, read-only, broken."""

import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

MODES_BIND_ROOT = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")


class FullDisk:
    """A tmpfs of one megabyte; where mounting is not permitted, a limit on the size of the command's files."""

    refusal = "No space left on device|File too large|cannot be written"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.prefix: Sequence[str] = ()
        self.environment: dict[str, str] = {}
        self._folder, self._filler = folder, folder / "filler"
        self._is_mounted = _mount("-t", "tmpfs", "-o", "size=1m", "aumn-test", folder)

    def refuse(self, pid: int) -> None:
        if not self._is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
            return
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1024))

    def relent(self, pid: int) -> None:
        if self._is_mounted:
            self._filler.unlink()
        else:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


class ForbiddenFolder:
    """Folders whose modes take the permission to write from their owner; root is started without its exemption."""

    refusal = "Permission denied"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.prefix = MODES_BIND_ROOT if os.geteuid() == 0 else ()
        if self.prefix and subprocess.run([*self.prefix, "true"], capture_output=True, check=False).returncode:
            pytest.skip("setpriv cannot take root's exemption from modes away")
        self.environment: dict[str, str] = {}
        self._folder = folder

    def refuse(self, _pid: int) -> None:
        self._allow(0o555)

    def relent(self, _pid: int) -> None:
        self._allow(0o755)

    def close(self) -> None:
        self._allow(0o755)

    def _allow(self, mode: int) -> None:
        for path in (*self._folder.iterdir(), *self._folder.glob("*/checkpoints")):
            path.chmod(mode)


class ReadOnlyDisk:
    """A file system that becomes read-only, as ext4 does after an error, and is mounted again by a person.

    A read-only mount of the same files over the first: unlike the kernel, `remount` waits until no file is open to be
    written, and a run has its lock and its metrics open.
    """

    refusal = "Read-only file system"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.prefix: Sequence[str] = ()
        self.environment: dict[str, str] = {}
        self._folder = folder
        if not _mount("-t", "tmpfs", "aumn-test", folder):
            pytest.skip("mounting is not permitted")

    def refuse(self, _pid: int) -> None:
        assert _mount("--bind", self._folder, self._folder)
        assert _mount("-o", "remount,bind,ro", self._folder)

    def relent(self, _pid: int) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


class BrokenDisk:
    """The system's call `name` on files below the folder fails with EIO, as the kernel's does when a disk is dying."""

    refusal = "Input/output error|os error 5"

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        if shutil.which("gcc") is None:
            pytest.skip("gcc is not installed")
        self.prefix: Sequence[str] = ()
        self._flag, library = folder.with_name(f"{name}-fails"), folder.with_name(f"{name}.so")
        _compile(library, name)
        self.environment = {
            "LD_PRELOAD": str(library),
            "BROKEN_FOLDER": str(folder.resolve()),
            "BROKEN_FLAG": str(self._flag),
        }

    def refuse(self, _pid: int) -> None:
        self._flag.touch()

    def relent(self, _pid: int) -> None:
        self._flag.unlink()

    def close(self) -> None:
        self._flag.unlink(missing_ok=True)


def _mount(*arguments: object) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


_SIGNATURES = {
    "fsync": ("int", "(int fd)", "(fd)"),
    "write": ("ssize_t", "(int fd, const void *data, size_t count)", "(fd, data, count)"),
}
_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_broken(int fd)
{{
    const char *folder = getenv("BROKEN_FOLDER"), *flag = getenv("BROKEN_FLAG");
    char link[64], path[PATH_MAX];
    if (!folder || !flag || access(flag, F_OK))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && !strncmp(path, folder, strlen(folder));
}}

{result} {name}{parameters}
{{
    static {result} (*real){parameters};
    if (!real)
        real = dlsym(RTLD_NEXT, "{name}");
    if (is_broken(fd)) {{
        errno = EIO;
        return -1;
    }}
    return real{arguments};
}}
"""


def _compile(library: Path, name: str) -> None:
    result, parameters, arguments = _SIGNATURES[name]
    source = _SOURCE.format(name=name, result=result, parameters=parameters, arguments=arguments)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
