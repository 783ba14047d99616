"""`aumn train --dry-run` against what training steps really take, in processes of their own."""

import dataclasses
import json
import time
from contextlib import closing

import pytest

from aumn.config.run_config import RunConfig
from aumn.data.loader import TrainingLoader
from aumn.data.packing.packing import pack
from aumn.data.shards.shard_set import ShardSet
from aumn.model.aumn import StreamNetworks
from aumn.records import InputError
from aumn.synth import synthesize
from aumn.training.footprint import footprint, parse_widths
from aumn.training.footprint import predict as predict_run
from aumn.training.plan import Mesh, Rates
from tests.launching import aumn, python, succeed, torchrun
from tests.training import footprint_steps
from tests.training.footprint_steps import WIDTHS, resident_bytes


def make_case(videos=4, snippets=60, classes=9, micro_batches=1, ranks=1, pseudo_labels=0.0, bank=1, **model):
    batch = {"global_videos": videos * micro_batches * ranks, "micro_videos": videos}
    run = {"folder": "none", "steps": 1, "engine": "ddp"}
    config = {"data": {"shards": "none", "snippets": snippets}, "run": run}
    config["loss"] = {"pseudo_labels": pseudo_labels, "pseudo_labels_from": 0} if pseudo_labels else {}
    engine = {"bank_ranks": bank} if bank > 1 else {}
    return {"config": {**config, "model": model, "batch": batch, "engine": engine}, "classes": classes}


def predict(case, **options):
    config = RunConfig.model_validate(case["config"])
    return footprint(config, WIDTHS, case["classes"], snippets=config.data.snippets, **options)


CASES = {
    "the paper's bank: form 1": make_case(8, 200, 100, units=7),
    "one class basis larger than all else": make_case(8, 50, 300, units=60, embedding_width=256),
    "chunks": make_case(16, 200, 20, units=500, embedding_width=128),
    "long videos, chunks": make_case(2, 1200, units=3_000, embedding_width=64),
    "long videos, no self-attention": make_case(2, 1500, units=300, embedding_width=64, self_attention=False),
    "top-k pooling": make_case(8, 150, 60, units=7, embedding_width=96, pooling_share=0.1),
    "pseudo-labels of many classes": make_case(8, 150, 200, units=7, embedding_width=96, pseudo_labels=1.0),
    "prototypes": make_case(8, 300, 100, units=7, embedding_width=96, pooling_share=0.1, prototypes=True),
    "every dropout, three convolutions": make_case(
        16, 200, 20, embedding_width=128, embedding_layers=3, dropout=0.5, channel_dropout=0.5, mixing_dropout=0.5
    ),
    "a large bank, micro-batches": make_case(4, 50, 20, 3, units=8_192, embedding_width=128),
}


@pytest.fixture(scope="module")
def measured():
    command = (footprint_steps.__file__, "tensors", json.dumps(list(CASES.values())))
    found = json.loads(succeed(python("-W", "ignore", *command)).stdout)
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_steps_peak_is_predicted_within_15_percent(name, measured):
    found = predict(CASES[name])
    assert found.bank.gradients + found.rest.gradients + found.activations_bytes == pytest.approx(
        measured[name], rel=0.15
    )


@pytest.mark.parametrize(("ranks", "bank"), [(1, 1), (2, 1), (2, 2)])
def test_the_whole_process_grows_by_what_was_predicted_and_sends_as_much(ranks, bank):
    """Weights, gradients (of two ranks in one tensor), optimizer state and activations, in resident memory."""
    units = 32_768 * bank  # a rank's are so many that what a processor's own libraries hold hardly counts
    case = make_case(2, 16, ranks=ranks, bank=bank, units=units, embedding_width=128)
    command = (footprint_steps.__file__, "process", json.dumps([case]))
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = torchrun(ranks, *command, environment=environment) if ranks > 1 else python(*command, environment=environment)
    grown, *sent = json.loads(succeed(run).stdout)
    found = predict(case, ranks=ranks)
    assert found.held_bytes - found.features_bytes == pytest.approx(grown, rel=0.10)
    assert [found.moved_bytes] * (ranks > 1) == [pytest.approx(size, rel=1e-3) for size in sent]


def test_the_first_rank_holds_a_snapshot_more_while_it_writes_a_checkpoint():
    case = make_case(2, 16, units=32_768, embedding_width=128)
    command = (footprint_steps.__file__, "saving", json.dumps([case]))
    run = succeed(python(*command, environment={"MALLOC_MMAP_THRESHOLD_": "65536"}))
    found = predict(case)
    assert found.first_rank_bytes - found.features_bytes == pytest.approx(json.loads(run.stdout)[0], rel=0.15)
    assert found.first_rank_bytes > 1.3 * found.held_bytes  # so that the snapshot could not be missed


def test_a_bank_of_any_size_is_measured_in_seconds_without_its_memory():
    """K x F is 20 GB here, and the reading goes through 40,000 chunks."""
    case = make_case(8, 100, units=10_000_000, embedding_width=512)
    start_s, before = time.process_time(), resident_bytes("VmRSS")
    found = predict(case)
    assert found.parameters["rgb"]["memory.units_KF"] == 5_120_000_000
    assert found.bank.weights > 40e9
    assert resident_bytes("VmHWM") - before < 500e6
    assert time.process_time() - start_s < 30


def test_parameters_are_counted_by_the_names_that_checkpoints_have():
    case = CASES["chunks"]
    network = StreamNetworks.build(WIDTHS, case["classes"], RunConfig.model_validate(case["config"]).model)
    for stream, counts in predict(case).parameters.items():
        sizes = {name: weight.numel() for name, weight in network.networks[stream].state_dict().items()}
        assert counts["memory.values_RFC"] == sizes["memory.values_RFC"]
        assert counts["embed"] == sizes["embed.weight"] + sizes["embed.bias"]
        assert sum(counts.values()) == sum(sizes.values())


def test_each_zero_stage_divides_one_thing_more_by_the_ranks():
    case = make_case(ranks=4, units=300)
    whole = predict(case, ranks=4)
    count = sum(sum(parts.values()) for parts in whole.parameters.values())
    quarter = count / 4
    found = [whole, *(predict(case, ranks=4, zero=zero) for zero in (1, 2, 3))]
    held = [tuple(sum(part) / 4 for part in zip(one.bank, one.rest, strict=True)) for one in found]
    held = [(weights, gradients, pytest.approx(moments / 2)) for weights, gradients, moments in held]
    assert held == [
        (count, count, count),
        (count, count, quarter),
        (count, quarter, quarter),
        (quarter, quarter, quarter),
    ]


def test_each_rank_of_a_bank_holds_its_part_of_the_units_and_the_work_on_them():
    case, shared_out = (make_case(2, 30, ranks=8, bank=bank, units=40_000, embedding_width=64) for bank in (1, 4))
    whole, part = predict(case, ranks=8), predict(shared_out, ranks=8, per_node=4)
    assert [4 * size for size in part.bank] == [*whole.bank]
    assert part.rest == whole.rest
    assert part.parameters == whole.parameters
    bottleneck = part.parameters["rgb"]["memory.encode_hidden"] // 65
    product = 2 * 2 * 40_000 * 64  # of all units with a column, in both streams
    gram, encoders = product * 64, product * 3 * (16 + bottleneck)  # Eq. 10's gradient is two products, over ranks one
    assert part.flops == pytest.approx(whole.flops - gram * (3 - 2 / 4) - encoders * 3 / 4, rel=0.03)
    links = {one.what: (one.ranks, one.within > 0, one.between > 0) for one in part.collectives}
    assert links == {
        "gradients of all else": (8, True, True),
        "queries and readings": (4, True, False),
        "sums of Eq. 10 to 12": (4, True, False),
        "gradients of units, Eq. 11": (2, False, True),
    }


@pytest.mark.parametrize("micro_batches", [1, 5])
def test_work_that_a_unit_more_makes(micro_batches):
    """As docs/large_memory.md has it: reading for every snippet, encoders once a micro-batch, Eq. 10 once a step."""
    few, many = (
        predict(make_case(2, 40, micro_batches=micro_batches, units=units, embedding_width=64, key_ratio=4))
        for units in (4_096, 8_192)
    )
    rows, width, key, bottleneck = 2 * 40, 64, 16, many.parameters["rgb"]["memory.encode_hidden"] // 65
    passes = 1 if micro_batches > 1 else 0  # to find Eq. 12's shares
    reading = rows * (4 * key + 3 * (bottleneck + 1))
    first = rows * (key + bottleneck + 1)
    encoders = 3 * width * (key + bottleneck)
    a_unit = micro_batches * (reading + encoders + passes * (first + encoders / 3)) + 3 * width**2
    assert (many.flops - few.flops) / 4_096 / 2 / 2 == pytest.approx(a_unit, rel=0.1)


@pytest.mark.parametrize(
    ("ranks", "per_node", "stride", "within", "between"),
    [
        (8, 8, 1, 7 / 4, 0),  # a node
        (16, 8, 1, 15 / 8 * 7 / 8, 15 / 8 / 8),  # a ring leaves each node once, by one of eight links in turn
        (16, 1, 1, 0, 15 / 8),
        (2, 8, 8, 0, 1),  # each on a node of its own
        (4, 8, 4, 3 / 2 / 2, 3 / 2 / 2),
    ],
)
def test_a_ring_by_link(ranks, per_node, stride, within, between):
    (found,) = Mesh(ranks, per_node, stride).collectives({"gradients": 1000})
    assert (found.within, found.between) == pytest.approx((1000 * within, 1000 * between))
    assert found.seconds(Rates(local=100, network=10)) == pytest.approx(max(10 * within, 100 * between))


def test_what_binds_a_step():
    found = predict(make_case(2, 30, ranks=16, units=4_096, embedding_width=64), ranks=16)
    names = {"flops": "matrix products", "memory": "device memory", "network": "network between nodes"}
    for rate, name in names.items():
        parts = found.seconds(dataclasses.replace(Rates(), **{rate: 1e3}))
        assert max(parts, key=parts.__getitem__) == name
    parts = found.seconds(Rates(flops=1e3, memory=1e30))
    assert parts["matrix products"] == pytest.approx(found.flops / 1e3)
    assert found.reading_s(Rates(disk=1)) == 8 * 2 * 30 * sum(WIDTHS.values()) * 2


@pytest.mark.parametrize("text", ["flop=1", "flops=fast", "disk=0", "flops=1e14,"])
def test_rates_are_read_or_refused(text):
    assert Rates.parse("flops=1e13,disk=5") == dataclasses.replace(Rates(), flops=1e13, disk=5)
    assert Rates.parse("default") == Rates()
    with pytest.raises(
        InputError,
        match=r"--rates '.*' must read name=number above 0, e\.g\. flops=4e14; the names are flops, memory, local, ",
    ):
        Rates.parse(text)


def test_bytes_that_a_rank_moves():
    """A ring of N ranks: (N - 1)/N of the gradients out to be reduced and as much again to be gathered."""
    units, micro_batches = 300, 3
    case = make_case(ranks=4, units=units)
    count = sum(sum(parts.values()) for parts in predict(case, ranks=4).parameters.values())
    shares = 2 * 2 * units  # of two streams, all-reduced
    moved = [predict(case, ranks=4, zero=zero).moved_bytes for zero in (2, 3)]
    assert moved == [(2 * count + shares) * 3, (3 * count + shares) * 3]
    case = make_case(ranks=4, units=units, micro_batches=micro_batches)
    moved = [predict(case, ranks=4, zero=zero).moved_bytes for zero in (1, 2, 3)]
    rounds = (2, micro_batches + 1, micro_batches + 3 * micro_batches)
    assert moved == [(times * count + shares) * 3 for times in rounds]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    folder = tmp_path_factory.mktemp("described")
    synthesize(folder / "features", videos=24, classes=5, width=12, mean_snippets=30)
    pack(folder / "features", folder / "shards", folder / "features" / "gt.json", name="small", workers=1)
    return ShardSet.open(folder / "shards")


def test_features_in_flight_are_those_that_the_loader_keeps(shards):
    """Its blocks of memory serve again and again, so those seen over many steps are all that there are."""
    case = make_case(ranks=1, videos=4, micro_batches=2, snippets=70)
    config = RunConfig.model_validate(case["config"])
    loader = TrainingLoader(
        shards, shards.indices("training"), global_videos=8, micro_videos=4, snippets=70, seed=0, rank=0, world_size=1
    )
    blocks = {}
    with closing(loader.steps(0, 14)) as steps:
        for step in steps:
            time.sleep(0.02)  # so that the readers get ahead
            for batch in step.micro_batches:
                blocks |= {tensor.data_ptr(): tensor.nbytes for tensor in batch.features.values()}
    predicted = footprint(config, shards.streams, 5, snippets=70).features_bytes
    assert predicted * 3 / 4 <= sum(blocks.values()) <= predicted


def test_a_shard_set_describes_itself_down_to_its_longest_video(shards):
    settings = {"data": {"shards": str(shards.path), "snippets": None}, "run": {"folder": "none", "steps": 1}}
    found = predict_run(RunConfig.model_validate(settings), ranks=2, zero=0, num_classes=None, widths=None)
    longest = max(video.snippets for video in shards.videos if video.subset == "training")
    whole = footprint(
        RunConfig.model_validate(settings), shards.streams, 5, snippets=longest, ranks=2, videos=found.videos
    )
    assert found == whole
    assert found.videos == sum(video.subset == "training" for video in shards.videos)
    assert found.snippets == longest


def test_widths_are_read_or_refused():
    assert parse_widths("rgb=1024,flow=512") == {"rgb": 1024, "flow": 512}
    with pytest.raises(InputError, match=r"--widths 'rgb' must read stream=width,\.\.\., e\.g\. rgb=1024,flow=1024"):
        parse_widths("rgb")


def test_the_dry_run_prints_a_table_and_starts_nothing(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("data: {shards: absent}\nrun: {folder: out, steps: 5}\nbatch: {global_videos: 8}\n")
    described = ("--classes", 20, "--widths", "rgb=1024,flow=512", "--videos", 1001, "--rates", "default")
    command = (
        "train",
        config,
        "--dry-run",
        "--ranks",
        4,
        "run.engine=deepspeed",
        "engine.zero_stage=2",
        "model.units=4096",
        "data.snippets=100",
    )
    said = succeed(aumn(*command, *described, cwd=tmp_path)).stdout
    assert "K=4,096, 4 ranks, ZeRO 2: 1 micro-batch a step on each rank" in said
    assert "activations, 2 videos x 100 snippets" in said
    assert "An epoch of 1,001 videos has 126 steps." in said
    assert "What binds is" in said
    assert "2,097,152" in said  # K x F
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    refused = aumn(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "data.shards=absent does not exist: pack it, or give --classes 200 --widths" in refused.stderr
    refused = aumn("train", config, "--ranks", 4, cwd=tmp_path)
    assert "--ranks, --ranks-per-node, --classes, --widths, --videos and --rates belong to --dry-run" in refused.stderr
