"""Checkpoints and model artifacts: whole or absent, exact, and clear about what is wrong with them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from aumn.inference.settings import LocalizeSettings
from aumn.model.settings import ModelSettings
from aumn.records import InputError
from aumn.runfolder.checkpoint import (
    Checkpoint,
    ModelCard,
    read_card,
    read_checkpoint,
    read_last_checkpoint,
    read_model,
    save_checkpoint,
    save_model,
    source_commit,
)
from aumn.runtime.optimizer_state import load_slots, named_state, read_slots

REPOSITORY = Path(__file__).resolve().parents[2]
CARD = ModelCard(
    model={"embedding_width": 6, "key_ratio": 3, "units": 3, "self_attention": True},
    localize={"theta": 0.3},
    classes=("Golf Swing", "HammerThrow", "日本"),
    streams={"rgb": 5, "flow": 4},
    stride_frames=16,
    dataset="spliced",
    dataset_identity="sha256:0123",
    metrics={"mAP/0.5": 0.1 + 0.2, "mAP/average": float("nan")},
    aumn_version="0.1.0",
    commit=None,
)


def make_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "rgb.memory": torch.randn(3, 6, generator=generator),
        "flow.memory": torch.randn(6, 3, generator=generator).T,  # not contiguous
        "rgb.scale": torch.tensor(1 / 3, dtype=torch.float64),
        "rgb.steps": torch.tensor([2**60 + 1]),
        "rgb.half": torch.randn(7, generator=generator).bfloat16(),
    }


def make_checkpoint(step: int) -> Checkpoint:
    tensors = {"optimizer/rgb.memory/exp_avg": torch.full((3, 6), float(step)), "rng": torch.get_rng_state()}
    return Checkpoint(step, make_weights(step), CARD, tensors, {"epoch": 2, "run_id": None, "best": 0.1 + 0.2})


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def save_steps(run_dir: Path, *steps: int, keep_last: int = 9) -> list[Path]:
    return [save_checkpoint(run_dir, make_checkpoint(step), keep_last=keep_last) for step in steps]


def flip_bit(file: Path, at: float = 0.7) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 4
    file.write_bytes(data)


# Round trips


def test_a_model_artifact_comes_back_as_saved_and_saving_again_replaces_it(tmp_path):
    path = tmp_path / "new" / "model"
    for seed in (0, 1):
        save_model(path, make_weights(seed), CARD)
        (path / "MLmodel").write_text("flavors: {}")  # other files may lie in it
        found, card = read_model(path)
        assert_same(found, make_weights(seed))
        assert card.model_dump_json() == CARD.model_dump_json()
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True)
    assert card.metrics["mAP/0.5"] == 0.1 + 0.2
    assert os.listdir(path.parent) == ["model"]


def test_all_files_of_a_model_may_be_read_by_those_whom_the_umask_lets_read(tmp_path):
    """A registry or a colleague takes them; safetensors alone would let nobody else read the weights."""
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "model", make_weights(0), CARD)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(
        InputError, match=r"thesis exists and is no model artifact, so it is not replaced: name another"
    ):
        save_model(tmp_path / "thesis", make_weights(0), CARD)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_checkpoint_comes_back_as_saved(tmp_path):
    saved = make_checkpoint(400)
    path = save_checkpoint(tmp_path, saved, keep_last=1)
    assert path == tmp_path / "checkpoints" / "step_00000400"
    found = read_checkpoint(path)
    assert_same(found.weights, saved.weights)
    assert_same(found.trainer_tensors, saved.trainer_tensors)
    assert (found.step, found.trainer_facts) == (400, saved.trainer_facts)
    weights, card = read_model(path)  # it is a model artifact too
    assert_same(weights, saved.weights)
    assert card.classes == CARD.classes


def test_tensors_outlive_their_folder(tmp_path):
    (path,) = save_steps(tmp_path, 5)
    found = read_checkpoint(path)
    shutil.rmtree(path)
    found.weights["rgb.memory"].add_(1)
    assert torch.equal(found.weights["rgb.memory"], make_weights(5)["rgb.memory"] + 1)


def test_a_card_is_read_without_torch(tmp_path):
    save_model(tmp_path / "model", make_weights(0), CARD)
    code = (
        "import sys; from pathlib import Path; from aumn.runfolder.checkpoint import read_card;"
        f"print(read_card(Path({str(tmp_path / 'model')!r})).dataset); assert 'torch' not in sys.modules"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "spliced\n"
    )


# Which checkpoints stay, and which one a run continues from


def test_the_last_few_and_the_best_stay(tmp_path):
    for step in (100, 200, 300, 400, 500):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=2, best=step in (100, 200))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000200", "step_00000400", "step_00000500"]
    assert read_checkpoint(tmp_path / "best").step == 200


def test_the_checkpoint_just_written_stays_though_later_steps_exist(tmp_path):
    save_steps(tmp_path, 100, 200, 300)
    save_steps(tmp_path, 150, keep_last=1)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000150", "step_00000200", "step_00000300"]


def test_an_old_checkpoint_that_cannot_be_removed_keeps_no_new_one_from_being_written(tmp_path, monkeypatch, caplog):
    """As where a colleague has written it: in a folder that we share, it can be renamed but not emptied."""
    save_steps(tmp_path, 100)
    removed = shutil.rmtree

    def refuse(path, ignore_errors=False):
        if "step_00000100" not in str(path):
            removed(path, ignore_errors)
        elif not ignore_errors:
            raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("aumn.files.shutil.rmtree", refuse)
    for step in (200, 300):
        save_checkpoint(tmp_path, make_checkpoint(step), keep_last=1)
        assert read_last_checkpoint(tmp_path)[1].step == step
    assert [record.getMessage().split(": [")[0] for record in caplog.records] == [
        f"The old checkpoint {tmp_path}/checkpoints/step_00000100 cannot be removed"
    ]


def test_a_run_can_be_moved_with_its_best(tmp_path):
    save_checkpoint(tmp_path / "run", make_checkpoint(100), keep_last=1, best=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read_checkpoint(tmp_path / "moved" / "best").step == 100


def test_the_last_checkpoint_is_the_highest_step_not_the_newest_file(tmp_path):
    assert read_last_checkpoint(tmp_path) is None
    save_steps(tmp_path, 90_000_000, 100_000_000, 800)
    path, checkpoint = read_last_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoints" / "step_100000000"
    assert checkpoint.step == 100_000_000


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.json", "trainer.safetensors", "trainer.json", "SHA256SUMS"]
)
@pytest.mark.parametrize("damage", [flip_bit, Path.unlink, lambda file: os.truncate(file, 20)])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(tmp_path, caplog, name, damage):
    *_, before, newest = save_steps(tmp_path, 100, 200, 300)
    damage(newest / name)
    assert read_last_checkpoint(tmp_path)[0] == before
    (warning,) = caplog.messages
    assert str(newest) in warning
    assert warning.endswith("Continuing from step_00000200, the checkpoint before it.")
    with pytest.raises(InputError, match=rf"Use the checkpoint before it, {before}\."):
        read_checkpoint(newest)


def test_training_does_not_start_over_where_every_checkpoint_is_damaged(tmp_path):
    for path in save_steps(tmp_path, 100, 200):
        (path / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"No checkpoint in .* is whole: remove that folder to train from the start"
    ) as error:
        read_last_checkpoint(tmp_path)
    assert "step_00000100/model.safetensors is missing." in str(error.value)


# What is wrong, in a sentence


def test_the_trainer_half_may_be_damaged_for_readers_of_the_model(tmp_path):
    (path,) = save_steps(tmp_path, 100)
    flip_bit(path / "trainer.safetensors")
    assert_same(read_model(path)[0], make_weights(100))


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (read_model, "flipped", "model.safetensors does not match its checksum in SHA256SUMS: it was damaged, cut"),
        (read_model, "less", "model.safetensors is missing. Name a folder that training wrote, or copy this one again"),
        (read_checkpoint, "model", "model is no checkpoint: it has no trainer.json"),
        (read_model, "checkpoints", "is no model artifact or checkpoint: it has no model.json. Name a folder that"),
        (read_model, "", "has no model.json. Name one of its checkpoints, such as RUN/checkpoints/step_00000200."),
    ],
)
def test_what_will_not_do_is_told_with_what_to_use_instead(read, name, message, tmp_path):
    save_steps(tmp_path, 100, 200)
    for model in ("model", "less", "flipped"):
        save_model(tmp_path / model, make_weights(0), CARD)
    (tmp_path / "less" / "model.safetensors").unlink()
    flip_bit(tmp_path / "flipped" / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(message.replace("RUN", str(tmp_path)))):
        read(tmp_path / name)


def rewrite(file: Path, data: bytes) -> None:
    """As another program would, checksum included."""
    file.write_bytes(data)
    names = sorted(path.name for path in file.parent.iterdir() if path.name != "SHA256SUMS")
    with (file.parent / "SHA256SUMS").open("w") as sums:
        subprocess.run(["sha256sum", *names], cwd=file.parent, stdout=sums, check=True)


def rewrite_card(folder: Path, text: str) -> None:
    rewrite(folder / "model.json", text.encode())


NAN = save({"memory": torch.tensor([1.0, torch.nan]), "good": torch.ones(2)})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"", "model.safetensors holds no tensors (Error while deserializing"),
        ("trainer.safetensors", b"", "trainer.safetensors holds no tensors (Error"),
        ("model.safetensors", NAN, "has weights that are NaN or infinite (memory). Use the checkpoint before it"),
        (
            "trainer.json",
            b'{"format_version": 1}',
            "trainer.json has no step: it was edited. Use the checkpoint before",
        ),
        ("trainer.json", b'{"format_version": 1, "step": "2"}', "trainer.json has no step: it was edited. Use"),
    ],
)
def test_a_checkpoint_that_was_rewritten_with_its_checksums_is_told(name, data, message, tmp_path):
    *_, newest = save_steps(tmp_path, 100, 200)
    rewrite(newest / name, data)
    with pytest.raises(InputError, match=re.escape(message)):
        read_checkpoint(newest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "model.json is not the JSON of a model artifact or checkpoint. ") for text in ("[1]", "{", "{}")),
        (
            '{"format_version": 4}',
            "has format version 4, and this aumn reads up to 3: use the aumn that wrote it, or a newer",
        ),
    ],
)
def test_a_file_that_is_not_our_json_or_of_another_format(text, message, tmp_path):
    folder = save_model(tmp_path / "model", make_weights(0), CARD)
    rewrite_card(folder, text)
    with pytest.raises(InputError, match=message):
        read_model(folder)


def test_a_card_with_wrong_fields_names_them(tmp_path):
    folder = save_model(tmp_path / "model", make_weights(0), CARD)
    facts = json.loads((folder / "model.json").read_text())
    del facts["classes"]
    rewrite_card(folder, json.dumps({**facts, "stride_frames": "many"}))
    with pytest.raises(InputError, match="is no model card") as error:
        read_card(folder)
    assert "classes: Field required" in str(error.value)
    assert "stride_frames: Input should be a valid integer" in str(error.value)


def test_a_card_with_a_setting_that_was_removed_since_names_the_aumn_that_knows_it(tmp_path):
    folder = save_model(tmp_path / "model", make_weights(0), CARD)
    facts = json.loads((folder / "model.json").read_text())
    facts["model"]["gated_reading"] = True
    rewrite_card(folder, json.dumps({**facts, "aumn_version": "0.0.7", "commit": "c0ffee"}))
    with pytest.raises(
        InputError,
        match=r"has model.gated_reading, which aumn [\d.]+ does not know: use the aumn that wrote it, 0.0.7 \(commit "
        r"c0ffee\), or train the model again",
    ):
        read_model(folder)


def test_a_model_of_the_first_format_is_read_with_every_setting_it_had(tmp_path):
    """As commit 0e01a02 wrote it. Where this fails, FORMAT_VERSION goes up."""
    folder = save_model(tmp_path / "model", make_weights(0), CARD)
    network = {
        "embedding_width": 16, "kernel": 5, "key_ratio": 2, "units": 3, "bottleneck": 4, "self_attention": False,
        "dropout": 0.5, "channel_dropout": 0.25, "mixing_dropout": 0.5, "centred_queries": True, "attention_rate": 3.0,
        "independent_classes": True, "embedding_layers": 2, "pooling_share": 0.5, "normalised_pooling": True,
    }  # fmt: skip
    rules = {"theta": 0.4, "class_threshold": 0.2, "nms_tiou": 0.5, "proposals": "class_activation"}
    facts = json.loads((folder / "model.json").read_text())
    rewrite_card(folder, json.dumps({**facts, "format_version": 1, "model": network, "localize": rules}))
    card = read_card(folder)
    weights = {"rgb": rules.pop("theta"), "flow": 0.6}
    assert card.model.model_dump() == ModelSettings(unit_rates=False).model_dump() | network
    assert card.localize.model_dump() == LocalizeSettings().model_dump() | {"weights": weights, **rules}


# Interruptions


def in_subprocess(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs code, with this file as `helpers`."""
    load = "import sys; from pathlib import Path; from tests.runfolder import test_checkpoint as helpers\n"
    command = [sys.executable, "-c", load + code, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_a_disk_that_refuses_leaves_the_checkpoints_as_they_were(tmp_path):
    save_steps(tmp_path, 100, 200)
    code = """
checkpoint = helpers.make_checkpoint(300)
checkpoint.trainer_tensors["large"] = helpers.torch.zeros(100_000)
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    helpers.save_checkpoint(Path(sys.argv[1]), checkpoint, keep_last=1, best=True)
except OSError as error:
    print(error)
"""
    output, _ = in_subprocess(code, str(tmp_path)).communicate(timeout=60)
    assert "trainer.safetensors cannot be written" in output
    assert "File too large" in output
    assert os.listdir(tmp_path) == ["checkpoints"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000100", "step_00000200"]


def test_killed_at_any_moment_a_writer_leaves_whole_checkpoints_and_the_next_one_cleans_up(tmp_path):
    code = """
for step in range(1, 10_000):
    helpers.save_checkpoint(Path(sys.argv[1]), helpers.make_checkpoint(step), keep_last=2, best=step % 3 == 0)
    print(step, flush=True)
"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        shutil.rmtree(tmp_path)
        writer = in_subprocess(code, str(tmp_path))
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(float(torch.rand((), generator=generator)) * 0.1)
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.communicate()[0].split()]
        newest = read_last_checkpoint(tmp_path)[1]
        assert newest.step >= max(said, default=3)
        assert_same(newest.weights, make_weights(newest.step))
        for path in (tmp_path / "checkpoints").glob("step_*"):
            read_checkpoint(path)
        assert read_checkpoint(tmp_path / "best").step % 3 == 0
        save_steps(tmp_path, newest.step + 1)
        assert not list((tmp_path / "checkpoints").glob(".*"))


# The optimizer


def make_training(optimizer_class):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    first, last = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": last}, {"params": first, "lr": 3e-3, "weight_decay": 0.01}]  # not the model's order
    optimizer = optimizer_class(groups, lr=1e-2, betas=(0.8, 0.95))
    return model, optimizer, dict(zip([*last, *first], ["2.weight", "2.bias", "0.weight", "0.bias"], strict=True))


def take_steps(model, optimizer, steps) -> None:
    for step in steps:
        inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, partial(torch.optim.AdamW, fused=True)])
def test_training_goes_on_from_a_checkpoint_to_the_bit(tmp_path, optimizer_class):
    model, optimizer, names = make_training(optimizer_class)
    take_steps(model, optimizer, range(5))
    path = save_checkpoint(
        tmp_path, Checkpoint(5, model.state_dict(), CARD, named_state(optimizer, names), {}), keep_last=1
    )
    take_steps(model, optimizer, range(5, 9))

    checkpoint = read_checkpoint(path)
    resumed, its_optimizer, its_names = make_training(optimizer_class)
    resumed.load_state_dict(checkpoint.weights)
    facts = {"groups": [{"params": list(names.values())}]}
    load_slots(its_optimizer, its_names, read_slots(checkpoint.trainer_tensors, facts, list(names.values())))
    take_steps(resumed, its_optimizer, range(5, 9))
    assert_same(resumed.state_dict(), model.state_dict())
    assert its_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_an_optimizer_that_has_not_stepped_goes_on_from_its_start():
    _, optimizer, names = make_training(torch.optim.Adam)
    before = optimizer.state_dict()
    load_slots(optimizer, names, read_slots(named_state(optimizer, names), {"groups": []}, []))
    assert optimizer.state_dict() == before


def test_an_optimizer_of_other_parameters_is_refused():
    facts = {"groups": [{"params": ["2.weight", "2.bias", "0.weight"]}, {"params": ["0.bias"]}]}
    with pytest.raises(InputError, match=r"disagree on their parameters \(0.bias, 0.memory\): resume with the config"):
        read_slots({}, facts, ["2.weight", "2.bias", "0.weight", "0.memory"])


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this copy of the code has no history")
def test_the_commit_is_of_this_code():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert source_commit().removesuffix("-dirty") == head.stdout.strip()
