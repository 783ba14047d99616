"""How scores become detections."""

from __future__ import annotations

from typing import Literal

from aumn.config.section import Section, Share, setting


class LocalizeSettings(Section):
    """From scores to detections."""

    theta: Share = setting(
        0.3, "RGB's share in Eq. 16 and in the video score; at 0 or 1, one stream alone proposes (paper: 0.3)."
    )
    class_threshold: Share = setting(0.1, "Classes above it are kept, or the best one (paper: 0.1).")
    nms_tiou: Share = setting(0.3, "Class-wise NMS (paper: 0.3).")
    proposals: Literal["attention", "class_activation"] = setting(
        "attention",
        "What stands above its mean in a proposal: a stream's attention (paper), or what Eq. 16 averages, "
        "for each class on its own.",
    )

    def weight(self, stream: str) -> float:
        """A stream's share in Eq. 16."""
        return self.theta if stream == "rgb" else 1 - self.theta
