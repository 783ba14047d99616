"""The torture of `make torture` in small: a few rounds with real kills, and that the comparison sees what is lost."""

import re
import shutil
import sqlite3
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.conftest import require_slurm
from tests.network import require

from . import links
from .comparing import differences, lost_for_good
from .links import Case
from .moments import AfterLines, AtShare, WhileWriting
from .places import Place, Reading
from .playing import AUMN, CrashedError, Undisturbed, play, refuse_crash
from .report import summary
from .rounds import Round, Strike, draw
from .stages import STAGES
from .undisturbed import run_undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARD, CHECKPOINT = "shards.partial/shards/.*.partial", "run/checkpoints/.step_00000004.partial"
ROUNDS = [
    Round("pack", (Strike("kill -9 of one", WhileWriting(SHARD, 0)), Strike("kill -9 of all", WhileWriting(SHARD, 0)))),
    Round("pack", (Strike("disk full", WhileWriting(SHARD, 0)),)),
    Round(
        "train remote",
        (
            Strike("store busy", AtShare(0)),
            Strike("kill -9 of one", WhileWriting(CHECKPOINT, 0.001)),
            Strike("cache truncated", AfterLines("step ", 1, 0)),
            Strike("SIGTERM", AfterLines("step ", 2, 0.01)),
            Strike("kill -9 of all", WhileWriting("run/model", 0)),
        ),
        reading=Reading("shard", 0.0027),
    ),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return run_undisturbed(tmp_path_factory.mktemp("faults") / "undisturbed", ("train remote",))


@pytest.mark.parametrize("round_", ROUNDS, ids=lambda round_: f"{round_.stage}, {round_.strikes[0].kind}")
def test_what_is_interrupted_leaves_in_the_end_what_it_would_have_left(round_, undisturbed, tmp_path):
    outcome = play(round_, undisturbed, tmp_path / "round")
    log = (tmp_path / "round" / "log.txt").read_text()
    assert outcome.survived, f"{outcome.failure}\n{outcome.differences}\n{log}"
    assert [struck.kind for struck in outcome.struck] == [strike.kind for strike in round_.strikes]
    assert summary([outcome])["bytes_that_differ"] == 0


def test_a_cut_link_under_slurm_costs_a_requeue_onto_other_nodes(undisturbed, tmp_path):
    """A case of `tests.faults.links`, with limits that are short."""
    require()
    require_slurm()
    as_train = replace(undisturbed, places={"train": undisturbed.places["train remote"]})
    case = Case("ddp", "n2", settings=("run.step_timeout_s=3",))
    quick = "MessageTimeout=3\nTCPTimeout=1\n"  # SLURM finds that a node is lost in 12 s, in place of 29
    outcome = links.play(case, as_train, tmp_path / "case", quick)
    log = (tmp_path / "case" / "log.txt").read_text()
    assert outcome.survived, f"{outcome}\n{log}"
    assert outcome.submissions == 1
    assert outcome.frames["lost"] > 0
    assert re.search(r"Step \d+: another rank has not answered for 3 s", log)
    assert re.search(r"job \d+ on n\[1,3\], restart", log)


def test_a_round_is_a_function_of_seed_and_number():
    rounds = [draw(7, number) for number in range(100)]
    assert rounds == [draw(7, number) for number in range(100)]
    assert rounds != [draw(8, number) for number in range(100)]
    assert {round_.stage for round_ in rounds} == set(STAGES)


@pytest.mark.parametrize(
    ("begin", "file", "is_defect"),
    [("", f"{AUMN}/cli.py", True), ("[rank1]: ", f"{AUMN}/cli.py", True), ("[rank1]: ", "/lib/torch/run.py", False)],
)
def test_a_traceback_of_ours_is_a_defect_whoever_prints_it(begin, file, is_defect):
    lines = ["Traceback (most recent call last):", '  File "<frozen runpy>", line 198, in _run', f'  File "{file}"']
    said = "\n".join(f"{begin}{line}" for line in ["step 1/24", *lines, "RuntimeError: no"])
    with pytest.raises(CrashedError) if is_defect else nullcontext():
        refuse_crash(1, said)


def flip_a_bit(place: Place) -> None:
    weights = place.work / "run" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)


def drop_a_file(place: Place) -> None:
    (place.work / "run" / "model" / "model.json").unlink()


def leave_a_file(place: Place) -> None:
    (place.work / "run" / "model" / "model.safetensors.1").write_bytes(b"half")


def edit_metrics(statement: str):
    def edit(place: Place) -> None:
        with sqlite3.connect(place.database) as connection:
            connection.execute(statement)

    return edit


def drop_a_line(place: Place) -> None:
    file = place.work / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith('{"step": 5,')))


def forget_the_end(place: Place) -> None:
    file = place.work / "run" / "status.json"
    file.write_text(file.read_text().replace('"finished"', '"running"'))


LOST = "held out; steps 0 to 24 Step 20 has the best mAP so far, 51.9%, but could not be saved: no best one"
LOSSES = {
    "a flipped bit": (flip_a_bit, r"run/model/model\.safetensors.*bytes=1,"),
    "a missing file": (drop_a_file, r"run/model/model\.json"),
    "a file too many": (leave_a_file, r"model\.safetensors\.1, which should not be there.*bytes=4"),
    "a line too few": (drop_a_line, r"metrics\.jsonl missing, first .* of step 5"),
    "a status that was left": (forget_the_end, r"status\.json: state is running"),
    "a missing row": (edit_metrics("delete from metrics where key='loss' and step=5"), "missing, first loss of step 5"),
    "a row twice": (
        edit_metrics("insert into metrics select key, value, timestamp + 1, run_uuid, step, is_nan from metrics "
                     "where key = 'videos_per_s' and step = 5"), "too many, first videos_per_s of step 5",
    ),
    "a model registered twice": (
        edit_metrics("insert into model_versions (name, version) values ('torture', 2)"), r"\('torture', 2\)",
    ),
    "a run that never ended": (edit_metrics("update runs set status='RUNNING'"), "RUNNING"),
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_the_comparison_sees(loss, undisturbed, tmp_path):
    lose, message = LOSSES[loss]
    expected = undisturbed.places["train remote"]
    copied = copy_of(expected, tmp_path / "copy")
    assert differences(STAGES["train remote"], expected, copied) == []
    lose(copied)
    found = differences(STAGES["train remote"], expected, copied)
    assert any(re.search(message, str(difference)) for difference in found), found


@pytest.mark.parametrize(
    ("best", "said", "is_lost"),
    [
        (20, "", False),
        (20, LOST, True),
        (10, LOST, False),  # of another step: a later one was better still, and saved
        (20, f"{LOST} held out; steps 16 to 24", False),  # trained again, and saved then
        (20, f"{LOST} held out; steps 22 to 24", True),
        (20, f"{LOST} held out; steps 16 to 24 {LOST}", True),
    ],
)
def test_a_best_checkpoint_is_not_missed_where_training_said_so(best, said, is_lost, tmp_path):
    (tmp_path / "best").symlink_to(f"checkpoints/step_{best:08d}")
    assert lost_for_good(tmp_path / "best", said) == is_lost


def copy_of(place: Place, folder: Path) -> Place:
    shutil.copytree(place.folder, folder, symlinks=True)
    return replace(place, folder=folder, work=folder / "work", database=folder / "store" / "mlflow.db")
