#!/usr/bin/env bash
# webdataset 1.0.2. Tried 2026-11-30, Debian, CPython 3.11.
# A tar with members `v1.RGB.txt` and `v1.json`: the sample's keys are `rgb.txt` and `json`, so who asks for sample["RGB.txt"] finds nothing.
# `v1.Left.txt` beside `v1.left.txt` is refused as a duplicate. And a sample's name ends at the first dot of its file name:
# `clip 1.5s.rgb.txt` and `clip 1.7s.rgb.txt`, two videos, come out as one sample called `clip 1`, without a word.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
venv/bin/python - <<'END'
import io
import tarfile

import webdataset


def samples(*members):
    with tarfile.open("a.tar", "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    return [
        (sample["__key__"], sorted(key for key in sample if not key.startswith("__")))
        for sample in webdataset.WebDataset("a.tar", shardshuffle=False)
    ]


found = samples("v1.RGB.txt", "v1.json")
print("v1.RGB.txt, v1.json:", found)
assert found == [("v1", ["json", "rgb.txt"])], "capitals are kept now"
try:
    samples("v1.Left.txt", "v1.left.txt")
except ValueError as error:
    print("v1.Left.txt, v1.left.txt:", str(error)[:60])
else:
    raise SystemExit("members that differ in capitals are taken now")
found = samples("clip 1.5s.rgb.txt", "clip 1.7s.rgb.txt")
print("clip 1.5s.rgb.txt, clip 1.7s.rgb.txt:", found)
assert found == [("clip 1", ["5s.rgb.txt", "7s.rgb.txt"])], "dots in names are kept now"
print("as found: capitals are lost, and two videos became one sample")
END
