"""All that defines features of videos, so that others are extracted alike; a shard set and a model carry it along."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from aumn.config.section import Count, Positive, Section, Size, refusal, setting

OURS = "i3d"


class StreamSettings(Section):
    """One stream's network; nothing is known of it before it is loaded."""

    width: Size | None = setting(None, "D, values a snippet.")
    weights: str | None = setting(None, "Checksum of the weights; null: they are the user's own function's affair.")


class ExtractorSettings(Section):
    """The object `extractor` of extraction.json, of a shard set's dataset.json and of a model's card."""

    name: str = setting(OURS, "i3d, or the user's own function as package.module:function.")
    streams: dict[Literal["rgb", "flow"], StreamSettings] = setting(..., "Networks by stream.")
    fps: Positive | None = setting(25.0, "Rate that frames are resampled to; null: each video's own.")
    stride_frames: Count = setting(16, "Frames from one snippet to the next.")
    window_frames: Count = setting(16, "Frames that a snippet is read from.")
    side: Size = setting(256, "The shorter side's pixels after scaling.")
    crop: Size = setting(224, "Pixels of the square that is cut from the middle.")
    dtype: Literal["float16", "float32"] = setting("float16", "Of the features.")

    @model_validator(mode="after")
    def _check(self) -> ExtractorSettings:
        if self.crop > self.side:
            raise refusal(f"crop={self.crop} must be {self.side} (side) pixels at most")
        if not self.streams:
            raise refusal("streams must be rgb, flow or both")
        return self
