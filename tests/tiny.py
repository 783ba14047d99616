"""A run that takes seconds: tiny features, their shard set, and a config for tests of real processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from .launching import aumn, succeed
from .running import start

SETTINGS = {
    "data": {"snippets": 24, "holdout_share": 0.2},
    "model": {
        "embedding_width": 16,
        "units": 3,
        "bottleneck": 4,
        "dropout": 0.2,
        "channel_dropout": 0.2,
        "mixing_dropout": 0.3,
        "prototypes": True,
    },
    "loss": {"pseudo_labels": 0.3},
    "optimizer": {"learning_rate": 0.003, "clip_norm": 1.0, "schedule": "cosine", "warmup_steps": 5},
    "batch": {"global_videos": 6},  # the last step of an epoch is smaller
    "run": {"steps": 60, "log_every": 3, "checkpoint_every": 7},
    "evaluation": {"videos": "held_out", "every": 10},
    "tracking": {"enabled": False},
}


class Tiny:
    """A folder with a packed set of 36 videos and a config of many settings at once; `run` names a run's folder.

    `mixed`: with another set of 12, whose videos have names of the first's, of which an epoch draws as many.
    """

    def __init__(self, root: Path, *, mixed: bool = False) -> None:
        self.root, self.config = root, root / "tiny.yaml"
        features, gt = root / "features", root / "features" / "gt.json"
        self.shards = root / "shards"
        self._synth(features, videos=36, seed=0)
        succeed(aumn("pack", features, self.shards, "--annotations", gt, cwd=root))
        settings = {section: dict(fields) for section, fields in SETTINGS.items()}
        settings["data"]["shards"] = str(self.shards)
        if mixed:
            self.other = root / "other"
            self._synth(root / "few", videos=12, seed=2)
            succeed(aumn("pack", root / "few", self.other, "--annotations", root / "few" / "gt.json", cwd=root))
            places = [str(self.shards), str(self.other)]
            settings["data"] |= {"shards": places, "weights": [1, 1], "same_ids": "rename"}
        settings["run"]["folder"] = str(root / "run")
        self.config.write_text(yaml.safe_dump(settings))

    def _synth(self, out: Path, *, videos: int, seed: int) -> None:
        options = ("--videos", videos, "--classes", 3, "--width", 12, "--snippets", 40, "--seed", seed)
        succeed(aumn("synth", out, *options, cwd=self.root))

    @contextmanager
    def grown(self) -> Iterator[None]:
        """With twelve more videos in the set, which are other ones under other names."""
        more = self.root / "more"
        if not more.exists():
            self._synth(more, videos=12, seed=1)
            for file in more.glob("*/*.npy"):
                file.rename(file.with_name(f"more_{file.name}"))
            gt = more / "gt.json"
            gt.write_text(gt.read_text().replace('"synth_', '"more_synth_'))
        before = (self.shards / "dataset.json").read_bytes()
        succeed(aumn("pack", more, self.shards, "--annotations", more / "gt.json", "--append", cwd=self.root))
        yield
        (self.shards / "dataset.json").write_bytes(before)

    def command(self, run: str, *overrides: object) -> list[object]:
        """`python` arguments that train into a run's folder."""
        return ["-m", "aumn", "train", self.config, f"run.folder={self.root / run}", *overrides]

    def start(self, run: str, *overrides: object, **options):
        """Train in the background; see `running.start`."""
        return start(*self.command(run, *overrides), cwd=self.root, **options)

    def train(self, run: str, *overrides: object, **options):
        """Train and wait; see `launching.aumn`."""
        _, _, *arguments = self.command(run, *overrides)
        return aumn(*arguments, cwd=self.root, **options)

    def model(self, run: str) -> dict[str, bytes]:
        """Every byte of the run's final model, metrics and card included."""
        return {path.name: path.read_bytes() for path in sorted((self.root / run / "model").iterdir())}

    def steps(self, run: str) -> list[int]:
        """The steps of the run's checkpoints."""
        return sorted(int(path.name[5:]) for path in (self.root / run / "checkpoints").glob("step_*"))
