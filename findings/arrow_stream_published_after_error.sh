#!/usr/bin/env bash
# pyarrow 25.0.1 with moto 5.2.5 as the S3 server. Tried 2026-11-30, Debian, CPython 3.11.
# `with fs.open_output_stream(KEY) as out:` completes the upload when the block is left, also when an error leaves it: a shard whose producer failed
# half-way stands in the bucket under its full name, shorter than it should be, and nothing says so. NativeFile has no way to give an upload up.
# So a list of what is whole, with sizes, has to be written last, and sizes compared by who reads.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
venv/bin/python - <<'END'
import subprocess
import sys
import time
import urllib.error
import urllib.request

from pyarrow import fs

ADDRESS = "http://127.0.0.1:5791"
server = subprocess.Popen(
    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "5791"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
try:
    for _ in range(300):
        try:
            urllib.request.urlopen(ADDRESS, timeout=1)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.1)
    bucket = fs.S3FileSystem(
        access_key="k", secret_key="s", endpoint_override=ADDRESS, region="us-east-1", allow_bucket_creation=True
    )
    bucket.create_dir("lab")
    try:
        with bucket.open_output_stream("lab/train-000000.tar") as out:
            out.write(bytes(12_000_000))
            raise OSError("the disk that it is read from failed")
    except OSError as error:
        print("the writer had:", error)
    found = bucket.get_file_info("lab/train-000000.tar")
    print("the bucket has:", found)
    assert found.size == 12_000_000, "an upload that an error leaves is not published any more"
    assert not hasattr(out, "abort"), "there is a way to give an upload up now"
finally:
    server.terminate()
END
# Seen:
# the writer had: the disk that it is read from failed
# the bucket has: <FileInfo for 'lab/train-000000.tar': type=FileType.File, size=12000000>
