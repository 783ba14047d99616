"""A registered model as MLflow loads it: one video's arrays in, its detections out, as a pandas frame.

    model = mlflow.pyfunc.load_model("models:/aumn-thumos14@champion")
    model.predict({"rgb": rgb_TD, "flow": flow_TD}, params={"fps": 25.0, "duration_s": 61.2})

Each version ships this file as `code/aumn_pyfunc.py`, which imports none of aumn before it knows where that lies: an
installed aumn where there is one, so that its modules never mix with others, else the few files in `code/shipped`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame


def _load_pyfunc(path: str) -> VideoModel:
    """Called by MLflow with the version's folder."""
    if importlib.util.find_spec("aumn") is None:
        sys.path.append(str(Path(path) / "code" / "shipped"))
    return VideoModel(Path(path))


class VideoModel:
    """The streams' networks and the rules of localization."""

    def __init__(self, folder: Path) -> None:
        from aumn.inference.one_video import load_network

        self._network, self._card = load_network(folder)

    def predict(self, model_input: Mapping[str, np.ndarray], params: Mapping[str, Any] | None = None) -> DataFrame:
        """Label, score, start_s and end_s of each detection, best first within a label."""
        from pandas import DataFrame

        from aumn.inference.one_video import localize_video

        clock = {name: (params or {}).get(name) for name in ("fps", "duration_s")}
        found = localize_video(self._network, self._card, model_input, **clock)
        labels = [self._card.classes[label] for label in found.label_N]
        columns = {"score": found.score_N, "start_s": found.start_s_N, "end_s": found.end_s_N}
        return DataFrame({"label": labels, **columns})
