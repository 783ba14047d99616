"""Localization of THUMOS14-length videos: the model against its own matrix products, and who takes the time.

The products are those that Eq. 1-8 and 15 cannot do without, of both streams, by
`aumn.model.products`, which are PyTorch's own or faster.
"""

import time
from collections import Counter
from functools import partial

import numpy as np
import torch
from harness import Row, fresh_seed, main, take_turns

from aumn.inference.proposals import detect
from aumn.inference.settings import LocalizeSettings
from aumn.model.aumn import AUMN, StreamNetworks
from aumn.model.products import product
from aumn.model.settings import ModelSettings
from aumn.records import Batch, Clock, Video
from tests.model import reference

WIDTH, CLASSES, STRIDE_FRAMES = 1024, 20, 16
RULES = LocalizeSettings(class_threshold=0.04)  # a network without training keeps many classes: NMS has more to do
STREAMS = ("rgb", "flow")


def measure() -> list[Row]:
    seed = fresh_seed()
    torch.manual_seed(seed)
    network = StreamNetworks.build(dict.fromkeys(STREAMS, WIDTH), CLASSES, ModelSettings()).eval()
    batches = [make_batch(seed + number, snippets, WIDTH) for number, snippets in enumerate((400, 310, 500, 390))]
    check_against_reference(network, batches[1])
    products = [call for batch in batches for call in make_products(network, batch)]
    best_s = take_turns(
        8,
        ours=lambda: [network.localize(batch) for batch in batches],
        theirs=lambda: [call() for call in products],
    )
    share, proposals_s, whole_s, found = time_parts(network, batches)
    print(f"{found / len(batches):.0f} detections a video")
    ours_s, theirs_s = (best_s[side] / len(batches) for side in ("ours", "theirs"))
    return [
        Row("localization: model against its products", ours_s / theirs_s, "<= 1.3", ours_s, theirs_s, "s/video"),
        Row("  share of proposals and NMS in the whole", share, "<= 0.1", proposals_s, whole_s, "s/video"),
    ]


def make_batch(seed: int, snippets: int, width: int) -> Batch:
    """One video whose features change slowly, as a real one's do: in runs of eight snippets, with noise."""
    rng = np.random.default_rng(seed)
    features = {}
    for stream in STREAMS:
        runs = np.repeat(rng.standard_normal((-(-snippets // 8), width), np.float32), 8, axis=0)[:snippets]
        features_TD = np.maximum(runs + 0.3 * rng.standard_normal(runs.shape, np.float32), 0)
        features[stream] = torch.from_numpy(features_TD)[None]
    video = Video("video", "testing", snippets, (), snippets * STRIDE_FRAMES / 25, 25.0)
    return Batch((video,), (snippets,), (0,), features, torch.ones(1, snippets, dtype=torch.bool), torch.zeros(1, 1))


def make_products(network: StreamNetworks, batch: Batch) -> list:
    """Every matrix product of one video's localization as a call, operands in place."""
    calls = []
    for stream in STREAMS:
        net: AUMN = network.networks[stream]
        taps, width, embedding = net.embed.weight.shape
        keys, units = net.encode_query.out_features, len(net.memory.units_KF)
        basis, _, classes = net.memory.values_RFC.shape
        snippets, small = batch.lengths[0], min(units, basis)
        shapes = [
            (snippets, taps * width, embedding),  # Eq. 1
            (snippets, embedding, keys),  # Eq. 4: Q
            (snippets, keys, snippets),  # Q Qᵀ
            (snippets, snippets, embedding),  # ... E
            (units, embedding, keys),  # Eq. 3
            (units, embedding, basis - 1),
            (snippets, keys, units),  # Eq. 5
            (snippets, embedding, small * classes),  # Eq. 15
        ]
        if small == units:  # form 1 builds the values
            shapes.append((units, basis, embedding * classes))
        for rows, inner, columns in shapes:
            calls.append(partial(product, torch.randn(rows, inner), torch.randn(inner, columns)))
    return calls


def check_against_reference(network: StreamNetworks, batch: Batch) -> None:
    """Both streams' scores against the equations as written, in float64."""
    scores = network.localize(batch)
    double = StreamNetworks.build(
        {stream: features.shape[2] for stream, features in batch.features.items()}, CLASSES, ModelSettings()
    ).double()
    double.load_state_dict(network.state_dict())
    with torch.no_grad():
        for stream in STREAMS:
            expected = reference.video(double.networks[stream], batch.features[stream][0].double())
            for name in ("video_C", "attention_T", "cas_TC"):
                np.testing.assert_allclose(getattr(scores[stream], name), expected[name].numpy(), rtol=1e-3, atol=1e-6)


def time_parts(network: StreamNetworks, batches: list[Batch]) -> tuple[float, float, float, int]:
    """Proposals and NMS in the whole of model and detection: its share, both in seconds a video, and detections."""
    best_s, found = Counter(), 0
    for turn in range(6):
        spent_s: Counter = Counter()
        found = 0
        for batch in batches:
            start_s = time.perf_counter()
            scores = network.localize(batch)
            scored_s = time.perf_counter()
            found += len(detect(scores, batch.videos[0], Clock(STRIDE_FRAMES, STRIDE_FRAMES), RULES).score_N)
            spent_s["proposals"] += time.perf_counter() - scored_s
            spent_s["whole"] += time.perf_counter() - start_s
        best_s = spent_s if turn == 0 else Counter({name: min(spent_s[name], best_s[name]) for name in spent_s})
    proposals_s, whole_s = best_s["proposals"] / len(batches), best_s["whole"] / len(batches)
    return proposals_s / whole_s, proposals_s, whole_s, found


def check() -> None:
    seed = fresh_seed()
    torch.manual_seed(seed)
    check_against_reference(
        StreamNetworks.build(dict.fromkeys(STREAMS, 12), CLASSES, ModelSettings()).eval(), make_batch(seed, 19, 12)
    )


if __name__ == "__main__":
    main(measure)
