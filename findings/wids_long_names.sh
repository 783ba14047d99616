#!/usr/bin/env bash
# wids 0.1.11. Tried 2026-11-30, Debian, CPython 3.11.
# A plain tar header holds 100 characters of a name. How tar, Python and webdataset write longer ones (ustar's prefix, GNU's long names, PAX)
# wids does not read: it takes the first 100 characters, or with ustar the part behind a folder, for the name. Of two samples, which webdataset
# gives, wids has none (gnu, pax: "Ignoring file ... (no '.')" is printed) or one (ustar, without a word; the second one's).
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check webdataset==1.0.2 wids==0.1.11 numpy==2.4.6 torch==2.13.0
venv/bin/python - <<'END'
import io
import tarfile

import webdataset
from wids import wids

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def keys(form, names):
    with tarfile.open("a.tar", "w", format=FORMATS[form]) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    streamed = [sample["__key__"] for sample in webdataset.WebDataset("a.tar", shardshuffle=False)]
    indexed = wids.IndexedTarSamples(path="a.tar")
    return streamed, [indexed[index]["__key__"] for index in range(len(indexed))]


def short(names):
    return [f"{name[:6]}...{name[-6:]} ({len(name)})" if len(name) > 20 else name for name in names]


flat = [f"{'x' * 120}_{number}.json" for number in (1, 2)]
deep = [f"{folder * 60}/{'y' * 60}.json" for folder in "ab"]
found = {form: keys(form, names) for form, names in (("gnu", flat), ("pax", flat), ("ustar", deep))}
for form, (streamed, indexed) in found.items():
    print(f"{form}: webdataset {short(streamed)}, wids {short(indexed)}")
assert all(len(streamed) == 2 for streamed, _ in found.values()), "webdataset reads other samples now"
assert found["gnu"][1] == found["pax"][1] == [], "long names are no longer lost"
assert found["ustar"][1] == ["y" * 60], "folders in front of long names are no longer lost"
print("as found: samples of long names are lost or become one")
END
