"""How ranks find each other, and what is said where they do not: within bounds, in one sentence."""

import socket

import pytest

from aumn.records import InputError, Stopped
from aumn.runtime import ending
from aumn.runtime.ranks import connect, read_environment


@pytest.fixture
def ports():
    """One of a program that takes connections and answers none, and one that is free."""
    with socket.socket() as mute, socket.socket() as free:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        free.bind(("127.0.0.1", 0))
        found = str(free.getsockname()[1])
        free.close()
        yield {"taken": str(mute.getsockname()[1]), "free": found}


@pytest.mark.parametrize(
    ("rank", "host", "place", "error", "sentence"),
    [
        (0, "127.0.0.1", "taken", InputError, r"MASTER_PORT=\d+ cannot be opened here \(.*EADDRINUSE.*choose a port"),
        (0, "127.0.0.1", "text", InputError, "MASTER_PORT='text' must be .* a port of it, 1 to 65535"),
        (1, "127.0.0.1", "", InputError, "MASTER_PORT='' must be"),
        (1, "127.0.0.1", "99999", InputError, "MASTER_PORT='99999' must be"),
        (1, "", "29500", InputError, "MASTER_ADDR='' and"),
        (0, "127.0.0.1", "free", Stopped, "Waited 1 s for 1 of 2 ranks to start: 1. Look at their logs"),
        (1, "127.0.0.1", "1", Stopped, "Waited 1 s for the first rank, or torchrun, at MASTER_ADDR=127.0.0.1 and MA"),
        (1, "127.0.0.1", "taken", Stopped, "Waited 1 s for the first rank"),
        (1, "no-such-host.invalid", "29500", Stopped, "at MASTER_ADDR=no-such-host.invalid and MASTER_PORT=29500"),
    ],
)
def test_a_meeting_that_cannot_be_is_told_by_the_rank_that_finds_it(
    monkeypatch, caplog, ports, rank, host, place, error, sentence
):
    monkeypatch.setattr(ending, "NOTICE_S", 0.3)
    where = {"MASTER_ADDR": host, "MASTER_PORT": ports.get(place, place)}
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", **where}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=sentence) as found, connect(start_s=1 if error is Stopped else 30):
        pass
    if error is Stopped:
        assert (found.value.code, found.value.teller) == (1, rank)
        assert str(found.value)[len("Waited 1 s for ") :].split(". ")[0] in caplog.text


@pytest.mark.parametrize(
    "left_over",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "0", "WORLD_SIZE": "two"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "", "SLURM_STEP_ID": "0"},
    ],
    ids=str,
)
def test_half_a_launcher_is_refused(left_over):
    """Alone, each of several ranks would do all of the work and write the same files."""
    with pytest.raises(InputError, match=r"each must be a whole number|start every rank with one launcher"):
        read_environment(left_over)
