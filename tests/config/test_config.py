"""Settings: the paper's defaults, overrides, and every problem told at once."""

import re
from pathlib import Path

import pytest
import yaml

from aumn.config import run_config
from aumn.config.run_config import RunConfig, change_rules, load_config, names_of
from aumn.inference.settings import LocalizeSettings
from aumn.records import InputError

MINIMAL = "data: {shards: data_shards/x}\nrun: {folder: runs/x, steps: 10}\n"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.model.embedding_width, config.model.units, config.batch.global_videos) == (512, 7, 32)
    assert (config.loss.diversity, config.loss.homogeneity) == (0.01, 0.02)
    assert (config.loss.gamma("rgb"), config.loss.gamma("flow")) == (0.05, 0.03)
    assert (config.optimizer.learning_rate, config.localize.shares(("rgb", "flow")), config.localize.nms_tiou) == (
        1e-4,
        {"rgb": 0.3, "flow": 0.7},
        0.3,
    )


def test_every_setting_is_explained():
    assert [(n, f) for n, s in RunConfig.model_fields.items() for f, info in s.annotation.model_fields.items()
            if not info.description] == []  # fmt: skip


def test_settings_as_resolved_are_a_configuration_again(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["run.engine=deepspeed", "engine.zero_stage=3", "model.units=3"])
    assert load_config(write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))) == config
    plain = load_config(write(tmp_path, MINIMAL))
    assert load_config(write(tmp_path, yaml.safe_dump(plain.model_dump(mode="json")))) == plain


STREAMS = {"one": {"rgb": 4}, "two": {"rgb": 4, "flow": 4}, "three": {"rgb": 4, "flow": 4, "audio": 2}}


@pytest.mark.parametrize(
    ("override", "streams", "gammas", "shares"),
    [
        ([], "one", [0.05], [1]),
        ([], "two", [0.05, 0.03], [0.3, 0.7]),
        ([], "three", [0.05, 0.03, 0.05], [1 / 3, 1 / 3, 1 / 3]),
        (["loss.sparsity=0.2", "localize.weights={audio: 1}"], "three", [0.2, 0.2, 0.2], [0, 0, 1]),
        (["model.streams=joint"], "two", [0.05], [1]),
        (["model.streams=both"], "two", [0.05, 0.03, 0.05], [0.25, 0.25, 0.5]),
        (["model.streams=both"], "one", [0.05], [1]),
        (["localize.weights=null"], "two", [0.05, 0.03], [0.3, 0.7]),
        (["loss.sparsity={default: 0.2, audio: 0}"], "three", [0.2, 0.2, 0], [1 / 3, 1 / 3, 1 / 3]),
        (["loss.sparsity={rgb: 1, flow: 2}", "localize.weights={rgb: 0.9, flow: 0.1}"], "two", [1, 2], [0.9, 0.1]),
        # by their names up to commit 497c31b
        (["loss.sparsity_rgb=1", "localize.theta=0"], "two", [1, 0.03], [0, 1]),
        (["loss.sparsity_rgb=1", "loss.sparsity_flow=2", "localize.theta=0.4"], "two", [1, 2], [0.4, 0.6]),
    ],
)
def test_what_is_set_for_each_stream(tmp_path, override, streams, gammas, shares):
    config = load_config(write(tmp_path, MINIMAL), override)
    names = config.model.networks(STREAMS[streams])
    config.check_streams(STREAMS[streams])
    assert [config.loss.gamma(stream) for stream in names] == gammas
    assert list(config.localize.shares(names).values()) == pytest.approx(shares)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_run_from_before_streams_were_data_goes_on(tmp_path):
    plain = load_config(write(tmp_path, MINIMAL))
    begun = plain.model_dump(mode="json")
    del begun["loss"]["sparsity"], begun["localize"]["weights"]
    for newer in ("scale", "smoothing", "thresholds", "contrast", "fusion", "fusion_sigma"):
        del begun["localize"][newer]
    begun["loss"] |= {"sparsity_rgb": 0.05, "sparsity_flow": 0.03}
    begun["localize"] |= {"theta": 0.3}
    assert plain.refused_on_resume(begun) == []
    begun["localize"] |= {"theta": 1}
    assert plain.refused_on_resume(begun) == ["localize.weights: the run has {'rgb': 1}, now {}"]


@pytest.mark.parametrize(
    ("override", "streams", "message"),
    [
        ("loss.sparsity={rgb: 0.1}", "two", "loss.sparsity has none for flow: add it, or `default` for all others."),
        ("loss.sparsity={rgb: 1, flow: 1}", "one", "loss.sparsity names flow, and the networks are rgb:"),
        ("localize.weights={rgb: 0.5, flow: 0.5}", "one", "localize.weights names flow, and the networks are rgb"),
        ("localize.weights={rgb: 0.5}", "two", "are 0.5 together, and shares are 1 together"),
        ("loss.sparsity={rgb: -1}", "two", "loss.sparsity.rgb=-1: input should be greater than or equal to 0"),
        (
            "model.streams=joint localize.weights={rgb: 1}",
            "two",
            "names rgb, and the networks are joint",
        ),
        ("loss.sparsity=on", "two", "loss.sparsity.default='on': input should be a valid number"),
    ],
)
def test_what_does_not_fit_the_streams(tmp_path, override, streams, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(write(tmp_path, MINIMAL), re.split(r" (?=\w+\.\w+=)", override)).check_streams(STREAMS[streams])


@pytest.mark.parametrize(
    ("overrides", "rules"),
    [
        (["localize.thresholds=[0.1, 0.5]", "localize.contrast=1"], {"thresholds": (0.1, 0.5), "contrast": 1.0}),
        (["localize.thresholds=0"], {"thresholds": (0.0,)}),
        (["localize.fusion=gaussian", "localize.fusion_sigma=1"], {"fusion": "gaussian", "fusion_sigma": 1.0}),
        (["localize.thresholds=[0.5, 1]"], "localize.thresholds.1=1: input should be less than 1."),
        (["localize.contrast=-1"], "localize.contrast=-1: input should be greater than or equal to 0."),
        (["localize.fusion=mean"], "localize.fusion='mean': input should be 'nms' or 'gaussian'."),
        (
            ["localize.fusion_sigma=1"],
            "localize.fusion_sigma=1.0 has no effect with localize.fusion=nms: set localize.fusion=gaussian, or leave",
        ),
    ],
)
def test_rules_of_a_run_and_of_a_trained_model(tmp_path, overrides, rules):
    for change in (
        lambda: load_config(write(tmp_path, MINIMAL), overrides).localize,
        lambda: change_rules(LocalizeSettings(), overrides),
    ):
        if isinstance(rules, dict):
            made = change()
            assert made == LocalizeSettings(**rules)
            assert LocalizeSettings.model_validate_json(made.model_dump_json()) == made
        else:
            with pytest.raises(InputError, match=re.escape(rules)):
                change()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_reads(path):
    load_config(path)


def test_overrides_are_yaml_values(tmp_path):
    overrides = ["optimizer.learning_rate=1e-3", "data.snippets=null", "model.self_attention=false", "run.seed=010"]
    config = load_config(write(tmp_path, MINIMAL), overrides)
    assert config.optimizer.learning_rate == 1e-3
    assert config.data.snippets is None
    assert config.model.self_attention is False
    assert config.run.seed == 10  # YAML 1.1 takes it for octal
    assert load_config(write(tmp_path, MINIMAL), ["tracking.run_name=1:05"]).tracking.run_name == "1:05"


def test_all_problems_are_told_at_once_and_nothing_is_merged_silently(tmp_path):
    text = MINIMAL + "model: {unts: 7, kernel: 0}\nloss: {sparsity_reduction: median}\nlosses: {a: 1}\n"
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text))
    message = str(error.value)
    assert "run.yaml is not a run configuration (4 to mend):" in message
    assert "model.unts is not a setting: did you mean units?" in message
    assert "model.kernel=0: input should be greater than or equal to 1." in message
    assert "loss.sparsity_reduction='median': input should be 'mean' or 'sum'." in message
    assert "losses is not a setting: did you mean loss?" in message


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("data: {shards: x}", [], "run is missing; it has no default."),
        (MINIMAL, ["tracking.uri=postgresql://me:secret@lab/mlflow"], "tracking.uri must hold no password, since"),
        (MINIMAL + "data: {shards: y}", [], "data is given twice"),
        ("- 1", [], "must hold sections (data, run, model"),
        ("a: [", [], "run.yaml is not YAML"),
        (MINIMAL, ["units=3"], "override 'units=3' must read section.field=value"),
        (MINIMAL, ["model.units=[", "run.seed=1"], "override 'model.units=[': its value is not YAML"),
        (MINIMAL, ["model.key_ratio=5"], "model.embedding_width=512 is no multiple of model.key_ratio=5"),
        (
            MINIMAL,
            ["engine.zero_stage=1"],
            "engine.zero_stage=1 has no effect with run.engine=ddp: set run.engine=deepspeed, or leave",
        ),
        (
            MINIMAL,
            ["run.engine=deepspeed", "engine.bank_ranks=2"],
            "engine.bank_ranks=2 has no effect with run.engine=deepspeed: set run.engine=ddp, or leave",
        ),
        (
            MINIMAL,
            ["model.self_attention=false", "model.mixing_dropout=0.5"],
            "model.mixing_dropout=0.5 has no effect with model.self_attention=false: set model.self_attention=true, or "
            "leave model.mixing_dropout at 0.0.",
        ),
        (
            MINIMAL,
            ["tracking.alias=champion"],
            "tracking.alias=champion has no effect with tracking.model_name=null: set tracking.model_name, or",
        ),
        (
            MINIMAL,
            ["optimizer.warmup_steps=11"],
            "optimizer.warmup_steps=11 is more than run.steps=10, so that the learning rate would never be reached",
        ),
        (
            MINIMAL,
            ["run.engine=deepspeed", "engine.offload=all"],
            "engine.offload=all needs engine.zero_stage=3 or more.",
        ),
        (
            MINIMAL,
            ["run.engine=deepspeed", "engine.zero_stage=0", "engine.compile_ops=true"],
            "needs engine.zero_stage=1 or more.",
        ),
        (
            MINIMAL,
            ["data.shards=s3://a/b", "data.cache.size_gb=5", "run.start_timeout_s=300"],
            "data.store_away_s=300 is not less than run.start_timeout_s=300, so that ranks which wait",
        ),
        (
            MINIMAL,
            ["data.shards=s3://a/b", "data.cache.size_gb=5", "run.step_timeout_s=30"],
            "data.store_away_s=300 is not less than run.step_timeout_s=30, so that ranks which wait",
        ),
        (
            MINIMAL,
            ["run.hang_timeout_s=600"],
            "run.hang_timeout_s is no setting any more: run.step_timeout_s is how long ranks wait for each other in a "
            "step (learnt where you leave it out), run.start_timeout_s outside of steps.",
        ),
        (MINIMAL, ["data.cache=5"], "data.cache=5 must be a mapping of folder, size_gb."),
        (MINIMAL, ["data.shards=5"], "data.shards=5 must be one name, or a list with a name for each shard set."),
        (MINIMAL, ["data.shards=[]"], "data.shards=[] must be one name, or a list"),
        (MINIMAL, ["data.subset=[a, 1]"], "data.subset=['a', 1] must be one name, or a list"),
        (
            MINIMAL,
            ["data.shards=[x, y, z]", "data.subset=[a, b]"],
            "data.subset has 2 for 3 shard sets: give one for each.",
        ),
        (MINIMAL, ["data.shards=[a, b]", "data.weights=[1]"], "data.weights has 1 for 2 shard sets: give one for each"),
        (MINIMAL, ["data.shards=[a, b]", "data.weights=[1, 0]"], "data.weights.1=0: input should be greater than 0"),
        (MINIMAL, ["data.shards=[a]", "data.weights=[2]"], "data.weights has no effect with one shard set: leave it"),
        (MINIMAL, ["data.same_ids=rename"], "data.same_ids has no effect with one shard set: leave it out, or list"),
        (MINIMAL, ["data.class_names={Ran: Run}"], "data.class_names has no effect with one shard set: leave it out"),
        (MINIMAL, ["run.steps=1:05"], "run.steps='1:05': input should be a valid integer"),
        (MINIMAL, ["optimizer.learning_rate=yes"], "optimizer.learning_rate='yes': input should be a valid number"),
        (MINIMAL, ["optimizer.learning_rate=true"], "optimizer.learning_rate=True: input should be a valid number"),
        (MINIMAL, ["optimizer.learning_rate=1e-400"], "optimizer.learning_rate=0.0: input should be greater than 0"),
        (MINIMAL, ["optimizer.clip_norm=.inf"], "optimizer.clip_norm=inf: input should be a finite number"),
        (MINIMAL, ["model.units=3000000000"], "model.units=3000000000: input should be less than 2147483648"),
        (MINIMAL, ["model.embedding_layers=100000000"], "model.embedding_layers=100000000: input should be less than"),
        (
            MINIMAL,
            ["batch.global_videos=1000000000"],
            "batch.global_videos=1000000000: input should be less than or eq",
        ),
        (MINIMAL, [f"run.seed={2**63}"], f"run.seed={2**63}: input should be less than {2**63}"),
        (MINIMAL, ["run.seed=" + "9" * 5000], "override 'run.seed=9999"),
        (MINIMAL + f"loss: {'[' * 3000}", [], "run.yaml is not YAML that a person wrote: it is nested too deeply"),
        (MINIMAL + f"loss: {{diversity: {'9' * 5000}}}", [], "run.yaml is not YAML: Exceeds the limit"),
        (MINIMAL, ["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1: input should be greater than 0."),
    ],
)
def test_bad_settings_are_one_clear_sentence(tmp_path, text, overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(write(tmp_path, text), overrides)


def test_settings_without_effect_are_all_told_at_once(tmp_path):
    off = ["model.self_attention=false", "model.centred_queries=true", "engine.compile_ops=true", "data.holdout_seed=1"]
    with pytest.raises(InputError, match=r"is not a run configuration \(3 to mend\)") as error:
        load_config(write(tmp_path, MINIMAL), off)
    assert len(str(error.value).splitlines()) == 4
    config = load_config(write(tmp_path, MINIMAL), ["model.self_attention=false", "model.mixing_dropout=0"])
    assert config.model.mixing_dropout == 0


def test_a_setting_that_is_gone_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(run_config.REMOVED, "model.gates", "they never helped.")
    with pytest.raises(InputError, match=r"model\.gates is no setting any more: they never helped\."):
        load_config(write(tmp_path, MINIMAL), ["model.gates=3"])


PSEUDO = "loss.pseudo_labels=0.5"
MIXED = ["data.shards=[a, b]", "data.weights=[1, 3]", "data.class_names={Ran: Run}", "data.subset=[x, y]"]


@pytest.mark.parametrize(
    ("begun", "now", "names"),
    [
        ([], ["data.shards=moved", "run.folder=moved", "run.engine=deepspeed", "engine.zero_stage=3"], ""),
        ([], ["batch.micro_videos=2", "tracking.uri=sqlite:///x.db", "run.steps=20", "run.step_timeout_s=9"], ""),
        ([], ["model.units=3", "engine.precision=bf16", "run.device=cuda"], "model.units engine.precision run.device"),
        (["optimizer.schedule=cosine"], ["optimizer.schedule=cosine", "run.steps=20"], "run.steps"),
        (MIXED, [*MIXED, "data.shards=[moved, s3://b/c]"], ""),
        (
            MIXED,
            ["data.shards=[a, b]", "data.same_ids=rename", "data.weights=[3, 1]"],
            "data.subset data.class_names data.weights data.same_ids",
        ),
        ([PSEUDO], [PSEUDO, "run.steps=20"], "run.steps"),
        ([PSEUDO, "loss.pseudo_labels_from=0"], [PSEUDO, "loss.pseudo_labels_from=0", "run.steps=20"], ""),
    ],
)
def test_a_resumed_run_may_change_what_makes_no_other_run(tmp_path, begun, now, names):
    saved = load_config(write(tmp_path, MINIMAL), begun).model_dump(mode="json")
    refused = load_config(write(tmp_path, MINIMAL), now).refused_on_resume(saved)
    assert sorted(line.partition(":")[0] for line in refused) == sorted(names.split())


def test_other_steps_are_refused_with_what_would_move(tmp_path):
    saved = load_config(write(tmp_path, MINIMAL), [PSEUDO]).model_dump(mode="json")
    assert load_config(write(tmp_path, MINIMAL), [PSEUDO, "run.steps=20"]).refused_on_resume(saved) == [
        "run.steps: the run has 10, now 20, and loss.pseudo_labels_from would move with it"
    ]


def test_settings_that_an_older_run_did_not_know_or_that_had_no_effect_are_no_difference(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["model.self_attention=false"])
    saved = config.model_dump(mode="json")
    del saved["model"]["normalised_pooling"]
    saved["model"]["mixing_dropout"] = 0.5
    saved["engine"]["shared_memory"] = True
    saved["run"]["hang_timeout_s"] = 60
    assert config.refused_on_resume(saved) == []


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist: give a run configuration"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("run.steps=3", {"run.steps"}),
        ("localize.weights.rgb=0.4", {"localize.weights"}),
        ("localize.theta=0.4", {"localize.weights"}),
        ("loss.sparsity_flow=0.4", {"loss.sparsity"}),
        ("no.such=1", {"no.such"}),
        ("none=1", set()),
    ],
)
def test_what_an_override_sets_is_told_by_todays_name(override, names):
    assert names_of([override]) == names
