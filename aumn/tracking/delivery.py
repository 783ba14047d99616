"""Delivering, after a run, what its tracking store did not take while it ran."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from aumn.records import InputError
from aumn.tracking.recipient import Recipient
from aumn.tracking.spool import NAME, Contents, Spool

_AT_ONCE = 100


def deliver(folder: Path, uri: str | None = None) -> Contents | None:
    """Send what waits in a run's folder: metrics, the model, how the run ended. What was sent; None: nothing waits.

    `uri` None: the store that the run wrote to. Interrupted or repeated, it sends nothing twice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the run.folder of a training run.")
    if not (folder / NAME).exists():
        return None
    with closing(Spool(folder / NAME)) as spool:
        return empty(spool, uri)


def empty(spool: Spool, uri: str | None = None) -> Contents | None:
    """Send all that waits in an open spool."""
    if not len(spool):
        return None
    assert spool.run is not None
    address = uri or spool.store
    if address is None or "***" in address:
        raise InputError(
            f"{spool.path} does not keep the password of the tracking store {spool.store}: name the store with "
            "--tracking-uri, or without a user in it and with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    recipient, sent = Recipient(address, spool.run, spool.path.parent), Contents()
    while letters := spool.first(_AT_ONCE):
        count = recipient.deliver(letters)
        spool.drop(count)
        sent.add(letters[:count])
    return sent
