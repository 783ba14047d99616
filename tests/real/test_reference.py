"""The tiny network that stands beside ours learns, from labels of videos and more from labels of snippets."""

from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.inference.settings import LocalizeSettings
from aumn.synth import synthesize
from tests.real.reference import RULES, Recipe, measure, snippet_labels, train

FIRST = Recipe(channels=16, kernel=3, steps=0, rate=1e-2)
LEARNED = Recipe(channels=16, kernel=3, steps=40, rate=1e-2)


def test_it_learns_from_labels_of_videos_and_more_from_those_of_snippets(tmp_path):
    features = tmp_path / "features"
    synthesize(features, videos=48, classes=3, width=24, mean_snippets=40, noise=0.5)
    pack(features, tmp_path / "shards", features / "gt.json")
    shards = ShardSet.open(tmp_path / "shards")
    told = snippet_labels(shards, "training")
    assert {video: set(of.any(0).nonzero()[:, 0].tolist()) for video, of in told.items()} == {
        video.id: set(video.labels) for video in shards.videos if video.subset == "training"
    }

    def average(recipe: Recipe, *, frame_labels: bool) -> float:
        network = train(shards, "training", ["rgb", "flow"], 0, recipe, frame_labels=frame_labels)
        return measure(network, shards, "testing", LocalizeSettings(**RULES)).average

    untrained = average(FIRST, frame_labels=False)
    weak = average(LEARNED, frame_labels=False)
    strong = average(LEARNED, frame_labels=True)
    assert untrained < 0.1 < weak < strong
