#!/usr/bin/env bash
# pyarrow 25.0.1. Tried 2026-11-30, Debian, CPython 3.11.
# AWS_ENDPOINT_URL, which points every AWS SDK at MinIO, Ceph or a test server, counts for FileSystem.from_uri("s3://...") and not for
# S3FileSystem(...): that one asks Amazon's own host, for the same bucket in the same environment. Who needs S3FileSystem's time limits and retries,
# which from_uri does not take, has to hand the variable on as endpoint_override.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1
AWS_ACCESS_KEY_ID=k AWS_SECRET_ACCESS_KEY=s AWS_REGION=us-east-1 AWS_ENDPOINT_URL=http://127.0.0.1:9 venv/bin/python - <<'END'
from pyarrow import fs

once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
answers = {}
for name, bucket in (("from_uri", fs.FileSystem.from_uri("s3://lab")[0]), ("S3FileSystem", fs.S3FileSystem(retry_strategy=once))):
    try:
        answers[name] = str(bucket.get_file_info("lab/set/dataset.json"))
    except OSError as error:  # nobody listens at the port; the other host is not reached, or refuses the key
        answers[name] = str(error)
    print(f"{name}: {answers[name]}")
assert "127.0.0.1" in answers["from_uri"], "from_uri reads AWS_ENDPOINT_URL no more"
assert "127.0.0.1" not in answers["S3FileSystem"], "S3FileSystem reads AWS_ENDPOINT_URL now"
END
# Seen, on a machine that reaches nothing outside:
# from_uri: When getting information for key 'set/dataset.json' in bucket 'lab': AWS Error NETWORK_CONNECTION during HeadObject operation:
#   curlCode: 7, Could not connect to server; Details: Failed to connect to 127.0.0.1 port 9 after 0 ms: Could not connect to server
# S3FileSystem: ... curlCode: 6, Could not resolve hostname; Details: Could not resolve host: lab.s3.us-east-1.amazonaws.com
