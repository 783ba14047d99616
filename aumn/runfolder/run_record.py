"""`<run>/run.json`: what is known of a run beside its checkpoints, from its start on.

By it a launcher's next attempt knows the run as its own before there is a checkpoint, and a finished run says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from aumn.files import whole_file


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Facts that are None or 0 until they are known."""

    launch: str | None = None  # see runtime.attempts.launch_id
    tracking_run: str | None = None
    published_step: int = 0  # of the final model that was last written
    registered: str | None = None  # what that model became, such as models:/aumn-thumos14/3
    finished: bool = False  # and the tracker was told so

    def holds(self, step: int, name: str | None) -> bool:
        """Whether the model of this step was published, under this name where there is one."""
        has_name = name is None or (self.registered or "").startswith(f"models:/{name}/")
        return self.published_step == step and has_name

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The run's record; an empty one where none can be read, which costs a convenience and no data."""
        try:
            facts = json.loads((folder / "run.json").read_bytes())
            return cls(**{name: facts[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Replace the record that is there. OSError where the disk refuses."""
        with whole_file(folder / "run.json") as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
