"""Alerts: what is told, how often, by a command and by a webhook, and what a run does that they are about."""

import http.server
import json
import math
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from aumn.config.run_config import load_config
from aumn.records import InputError
from aumn.runfolder.metrics import MetricsWriter
from aumn.training import alerts
from aumn.training.alerts import Alerts
from aumn.training.settings import AlertSettings
from tests.launching import aumn

LOSS = {"rule": "not_finite", "metric": "loss"}
FELL = {"rule": "fell_to", "metric": "*/mAP/average", "value": 0.5}
LOW = {"rule": "below", "metric": "*/attention_mean", "value": 0.01}
HIGH = {"rule": "above", "metric": "*/attention_mean", "value": 0.99}
NOTE = [sys.executable, "-c", "import os; print(os.environ['AUMN_ALERT'], file=open('told', 'a'))"]


def told(rules, logged, folder, **how):
    """What is said of these (step, metrics)."""
    said = []
    watch = Alerts(AlertSettings(rules=rules, **(how or {"command": ["true"]})), folder, said.append)
    for step, metrics in logged:
        watch.beat(step)
        watch.add(step, metrics)
    watch.close()
    return said


@pytest.mark.parametrize(
    ("rule", "values", "wanted"),
    [
        (LOSS, {"loss": [1.0, math.nan, math.nan, 1.0, math.inf]}, ["2: loss is not finite", "5: loss is not finite"]),
        (
            FELL,
            {"held_out/mAP/average": [0.1, 0.4, 0.21, 0.2, 0.19, 0.3, 0.1], "loss": [9, 8, 7, 6, 5, 4, 3]},
            [
                "4: held_out/mAP/average fell to 0.2, 50% of its best, 0.4",
                "7: held_out/mAP/average fell to 0.1, 25% of its best, 0.4",
            ],
        ),
        (FELL, {"held_out/mAP/average": [0.0, 0.0]}, []),
        (
            LOW,
            {"rgb/attention_mean": [0.5, 0.009, 0.0], "flow/attention_mean": [0.5, 0.4, 0.0]},
            ["2: rgb/attention_mean is 0.009, below 0.01", "3: flow/attention_mean is 0, below 0.01"],
        ),
        (HIGH, {"rgb/attention_mean": [0.9, 0.99, 1.0]}, ["3: rgb/attention_mean is 1, above 0.99"]),
    ],
)
def test_a_rule_is_told_once_each_time_that_it_begins_to_hold(rule, values, wanted, tmp_path):
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    assert told([rule], enumerate(rows, 1), tmp_path) == [f"Alert: {tmp_path}, step {text}." for text in wanted]


def test_no_step_for_some_minutes_is_told_once_and_again_behind_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "TICK_S", 0.01)
    said = []
    watch = Alerts(
        AlertSettings(rules=[{"rule": "silent_min", "value": 0.1 / 60}], command=["true"]), tmp_path, said.append
    )
    for step in (7, 8):
        watch.beat(step)
        deadline_s = time.monotonic() + 10
        while len(said) < step - 6 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    time.sleep(0.15)
    watch.beat(9, is_last=True)
    watch.close()
    assert [re.sub(r"0\.\d+ min", "N min", line) for line in said] == [
        f"Alert: {tmp_path}, step {step}: no step for N min." for step in (7, 8)
    ]


def test_a_run_that_goes_on_remembers_its_best(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.append(10, {"held_out/mAP/average": 0.4})
    writer.close()
    assert len(told([FELL], [(20, {"held_out/mAP/average": 0.1})], tmp_path)) == 1


def test_a_webhook_gets_json_and_one_that_fails_is_told_of_once(tmp_path):
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204 if len(got) < 2 else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/hook"
    values = [math.nan, 1.0, math.nan, 1.0, math.nan]
    said = told([LOSS], [(step, {"loss": value}) for step, value in enumerate(values)], tmp_path, url=url)
    server.shutdown()
    server.server_close()
    assert got[0] == {
        "text": f"{tmp_path}, step 0: loss is not finite", "rule": "not_finite", "metric": "loss", "value": "nan",
        "step": "0", "run": str(tmp_path),
    }  # fmt: skip
    assert len(got) == 3
    assert [line for line in said if "delivered" in line] == [
        "alerts: it was not delivered (HTTP Error 500: Internal Server Error), which is not said again."
    ]


def test_a_command_gets_the_facts_and_neither_its_failure_nor_its_slowness_holds_anything_up(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "COMMAND_S", 0.2)
    show = 'echo "$AUMN_ALERT_METRIC $AUMN_ALERT_VALUE $AUMN_ALERT_STEP $AUMN_ALERT_RUN $AUMN_ALERT_RULE" >> "$0"; '
    rows = [(step, {"loss": value}) for step, value in enumerate([2.0, 0.0, 3.0])]
    above = {"rule": "above", "metric": "loss", "value": 1}
    for ending, why in (("echo no mail here >&2; exit 3", "exit status 3. no mail here"), ("sleep 9", "timed out")):
        file, start_s = tmp_path / ending[:2], time.monotonic()
        said = told([above], rows, tmp_path, command=["sh", "-c", show + ending, str(file)])
        assert file.read_text() == "".join(
            f"loss {value} {step} {tmp_path} above\n" for step, value in ((0, 2), (2, 3))
        )
        assert time.monotonic() - start_s < 5
        assert [bool(re.search(why, line)) for line in said if "delivered" in line] == [True]


def test_a_command_that_leaves_something_running_has_told(tmp_path, monkeypatch):
    """As a mailer that goes into the background does: with the output that it was given."""
    monkeypatch.setattr(alerts, "COMMAND_S", 3)
    said = told([LOSS], [(1, {"loss": math.nan})], tmp_path, command=["sh", "-c", "sleep 9 &"])
    assert [line for line in said if "delivered" in line] == []


def test_a_metric_that_is_never_logged_is_said_at_the_end(tmp_path):
    assert told([{**HIGH, "metric": "attention"}], [(1, {"rgb/attention_mean": 1.0})], tmp_path) == [
        "alerts: this run logged no metric attention, so above had nothing to look at."
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": [LOSS]}, r"alerts\.rules need alerts\.command or alerts\.url"),
        ({"url": "https://x"}, r"alerts\.rules need .* set both, or leave both out"),
        ({"rules": [LOSS], "url": "https://me:secret@x"}, r"alerts\.url must hold no password"),
        ({"rules": [LOSS], "url": "ftp://x"}, r"alerts\.url='ftp://x' must begin with http"),
        (
            {"rules": [{**LOSS, "metrc": 1}], "command": ["x"]},
            r"alerts\.rules\.0\.metrc is not a setting: did you mean metric",
        ),
        ({"rules": [{"metric": "loss"}], "command": ["x"]}, r"alerts\.rules\.0\.rule is missing"),
        ({"rules": [{**FELL, "value": 2}], "command": ["x"]}, r"fell_to with value=2\.0: fell_to is a share"),
        ({"rules": [{**LOSS, "value": 2}], "command": ["x"]}, r"not_finite has no value"),
        ({"rules": [{"rule": "silent_min", "value": 0}], "command": ["x"]}, r"silent_min is minutes, more than 0"),
        ({"rules": [{"rule": "below", "value": 0}], "command": ["x"]}, r"each other rule names a metric"),
    ],
)
def test_settings_that_would_tell_nothing_are_refused(settings, message, tmp_path):
    config = {"data": {"shards": "x"}, "run": {"folder": "y", "steps": 3}, "alerts": settings}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=message) as refused:
        load_config(tmp_path / "c.yaml")
    assert "secret" not in str(refused.value)


def test_training_whose_loss_is_not_finite_tells_it_before_it_ends(tmp_path):
    """The learning rate that does it ends the run, and nothing of that step is ever logged."""
    assert aumn("synth", "f", "--videos", 8, "--classes", 2, "--width", 6, cwd=tmp_path).returncode == 0
    assert aumn("pack", "f", "shards", "--annotations", "f/gt.json", cwd=tmp_path).returncode == 0
    config = {
        "data": {"shards": "shards", "snippets": 8},
        "model": {"embedding_width": 8, "bottleneck": 2},
        "batch": {"global_videos": 4},
        "optimizer": {"learning_rate": 1e37},
        "run": {"folder": "run", "steps": 30, "log_every": 1},
        "tracking": {"enabled": False},
        "alerts": {"rules": [LOSS, LOW], "command": NOTE},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    ended = aumn("train", "c.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    step = re.search(r"Step (\d+): .* not finite", ended.stderr)[1]
    lines = Path(tmp_path / "told").read_text().splitlines()
    assert f"run, step {step}: loss is not finite" in lines
