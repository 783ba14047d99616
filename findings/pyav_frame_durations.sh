#!/usr/bin/env bash
# PyAV 18.1.0 (its FFmpeg). Tried 2026-11-30, Debian, CPython 3.11.
# An MP4 (H.264, B-frames) whose frames are shown at 0, .04, .08, .12, .50, .54, .58, 1.20, 1.24, 1.28 s. Read again, frames come in
# the order in which they are shown, with the right `pts`. Their `duration` is not the time until the next one: the frame that
# stands for 0.38 s says 0.04 s, and one that stands for 0.04 s says 0.38 s. It is how far apart frames were in the order of decoding.
# Who needs to know for how long a frame is shown must take the next frame's time; of the last frame nothing can be trusted.
# Without B-frames durations are right.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT; cd "$place"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
venv/bin/python - <<'END'
from fractions import Fraction

import av
import numpy as np

TIMES = [0, 4, 8, 12, 50, 54, 58, 120, 124, 128]  # hundredths of a second


def written_and_read(b_frames):
    name = f"{b_frames}.mp4"
    with av.open(name, "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"bf": str(b_frames), "b-adapt": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 100)
        random = np.random.default_rng(0)
        for time in TIMES:
            picture = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    with av.open(name) as source:
        stream = source.streams.video[0]
        unit = stream.time_base * 100
        return [(round(float(f.pts * unit)), round(float(f.duration * unit))) for f in source.decode(stream)]


until_next = [after - before for before, after in zip(TIMES, TIMES[1:])]
for b_frames in (0, 3):
    found = written_and_read(b_frames)
    durations = [duration for _, duration in found[:-1]]
    print(f"B-frames {b_frames}: shown at  {[time for time, _ in found]}")
    print(f"            durations {durations}, until the next frame {until_next}")
    assert [time for time, _ in found] == TIMES
    assert (durations == until_next) == (b_frames == 0), "the durations of frames have changed"
    assert b_frames == 0 or sorted(durations) != durations
print("as found: with B-frames, durations are those of other frames")
END
