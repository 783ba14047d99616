"""`aumn localize MODEL --video CLIP.mp4`: from a video file to its table, by the extractor of the model's card."""

import json

import pytest
import torch

from aumn.cli.one_video import localize_one
from aumn.inference.detections import read_detections
from aumn.inference.one_video import load_network, localize_video
from aumn.model.aumn import StreamNetworks
from aumn.records import InputError
from aumn.runfolder.checkpoint import ModelCard, save_model
from aumn.video.extract import extract_video
from aumn.video.extractor import open_extractor, read_settings

ARGUMENTS = {"fps": None, "duration_s": None, "dtype": "float16", "top": 5, "json_file": None}


def corners(windows_NCTHW: torch.Tensor) -> torch.Tensor:
    """In I3D's place: N x 12, the means over a window's quarters."""
    return torch.nn.functional.adaptive_avg_pool3d(windows_NCTHW, (1, 2, 2)).flatten(1)


EXTRACTOR = {
    "name": f"{__name__}:corners",
    "streams": {"rgb": {}},
    "side": 32,
    "crop": 24,
    "fps": 10,
    "stride_frames": 4,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    def make(extractor):
        torch.manual_seed(0)
        card = ModelCard(
            model={"embedding_width": 8, "units": 3, "bottleneck": 2}, localize={"class_threshold": 0},
            classes=("a", "b"), streams={"rgb": 12}, stride_frames=4, window_frames=16, dataset="x",
            dataset_identity="0", metrics={},
            aumn_version="0", commit=None, extractor=extractor,
        )  # fmt: skip
        weights = StreamNetworks.build(card.streams, 2, card.model).state_dict()
        return save_model(tmp_path_factory.mktemp("model") / "model", weights, card)

    return make


@pytest.mark.shared
def test_a_clip_is_localized_in_as_its_extracted_features_are(model, shared_data, tmp_path, capsys):
    clip, settings = shared_data / "clips/bbformer_tennis26.mp4", read_settings(EXTRACTOR, "test")
    extractor = open_extractor(settings, {})
    known = json.loads(extractor.settings.model_dump_json())
    folder = model(known)
    localize_one(folder, [str(clip)], **ARGUMENTS | {"json_file": tmp_path / "found.json"})
    assert capsys.readouterr().out.startswith("bbformer_tennis26: 25 snippets, 11.2 s;")
    features = extract_video(clip, extractor)
    expected = localize_video(*load_network(folder), features.streams, fps=features.fps)
    found, _ = read_detections(tmp_path / "found.json")
    assert sorted(found.score_N) == sorted(expected.score_N)
    assert sorted(found.start_s_N) == sorted(expected.start_s_N)
    with pytest.raises(InputError, match=r"tells its own times: leave out --fps, --duration and other files"):
        localize_one(folder, [str(clip)], **ARGUMENTS | {"fps": 25.0})
    with pytest.raises(InputError, match=r"--weights rgb=x.pt: there is no file x.pt"):
        localize_one(folder, [str(clip)], **ARGUMENTS, weights=["rgb=x.pt"])


def test_a_model_of_features_made_elsewhere_takes_no_video(model):
    with pytest.raises(InputError, match=r"features that `aumn extract` did not make, .* give them as --video RGB.npy"):
        localize_one(model(None), ["clip.mp4"], **ARGUMENTS)
