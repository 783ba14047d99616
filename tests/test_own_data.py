"""docs/own_data.md followed to the letter: its commands, extracted from the page, run in order in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .launching import QUIET

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"


def blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_uses_the_commands_that_it_is_about() -> None:
    for command in ("doctor", "pack", "inspect", "train", "tune", "localize", "evaluate", "report", "models promote"):
        assert any(f"aumn {command} " in f"{block} ".replace("\n", " ") for block in blocks()), command


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_features_and_a_csv_to_a_registered_model_and_a_report(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = ""
    for block in blocks():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=os.environ | QUIET | {"PATH": path},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert "layout folders (rgb/VIDEO and flow/VIDEO), found by looking" in printed
    assert "CHECK" not in printed
    assert "No video looks wrong." in printed
    assert re.search(r"^tuned/config.yaml is \w.*\. Next: aumn train tuned/config.yaml$", printed, re.MULTILINE)
    assert "models:/my-model@champion is version 1 now" in printed
    assert re.search(r"^synth_000001: \d+ snippets, .* detections$", printed, re.MULTILINE)
    assert json.loads((tmp_path / "my_metrics.json").read_text())["population"]["videos"] == 20
    assert (tmp_path / "my_shards.png").stat().st_size > 10_000
    assert "<html" in (tmp_path / "my_report.html").read_text()
