"""Configuration files: what YAML means, overrides, and every mistake as one message that says what to do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from chat_models import save_chat_model
from paths import REPOSITORY
from safetensors.numpy import save_file

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.loading import dump_config, load_config, packaged_configs, schema
from gradus.pipeline.config.options import identity
from gradus.pipeline.execution.preflight import check_runs_folder, preflight
from gradus.pipeline.policy.architectures import architecture_options, causal_model_types
from gradus.pipeline.rewards.registry import numbers
from gradus.stages import discover

STAGES = [stage.config for stage in discover().values()]
BASE = """\
name: small
policy:
  architecture: {model_type: llama, hidden_size: 32}
task:
  source: reasoning_gym
  dataset: chain_sum
  heldout: 10
  demonstrations: solver
rewards:
  - reward: exact_answer
  - reward: equation_steps
    weight: 0.5
stages:
  - stage: sft
    steps: 10
  - stage: gfpo
    steps: 20
    lr: 1e-4
  - stage: gfpo
    steps: 30
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str, name: str = "small.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def base(write: Callable[[str], str]) -> str:
    return write(BASE)


def load(source: str, *overrides: str) -> PipelineConfig:
    return load_config(source, list(overrides), STAGES).config


def refused(source: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(source, *overrides)
    return str(caught.value)


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5e+3", 1500.0), (".5", 0.5), ("1_000", 1000), ("010", 10), ("-3", -3), ("true", True),
        ("on", "on"), ("yes", "yes"), ("NO", "NO"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("~", None),
        ("", None), ("'1e-4'", "1e-4"), ('"true"', "true"), ("0x10", "0x10"), ("1e", "1e"),
        ("a: 1\n<<: {a: 2, b: 3}", {"a": 1, "b": 3}),
    ],
)  # fmt: skip
def test_plain_values_mean_what_they_look_like(text: str, value: object) -> None:
    read = yaml_text.parse(text, "x").data
    assert read == value and type(read) is type(value)


def test_infinity_and_nan() -> None:
    assert yaml_text.parse("[.inf, -.inf]", "x").data == [math.inf, -math.inf]
    assert math.isnan(yaml_text.parse(".nan", "x").data)


@pytest.mark.parametrize(
    "value",
    ["1e-4", "on", "null", "", "true", "007", "a: b", "- x", "two\nlines\n", "é", "#", "~", "1_0", ".inf", "0x1"],
)
def test_every_text_survives_a_round_trip(value: str) -> None:
    assert yaml_text.parse(yaml_text.dump({"k": [value]}), "x").data == {"k": [value]}


def test_lines_are_those_of_the_keys() -> None:
    lines = yaml_text.parse(BASE, "x").lines
    rows = BASE.splitlines()
    assert rows[lines[("stages", 1, "lr")] - 1].strip() == "lr: 1e-4"
    assert rows[lines[("policy", "architecture")] - 1].strip().startswith("architecture")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "the key `a` stands twice"),
        ("a: !!python/object/apply:os.system [echo]", "tags are not read"),
        ("a: b: c", "put a text that contains `: ` in quotes"),
        ("a: [1", "not valid YAML"),
        ("[" * 3000, "too large"),
        ("a: &a [*a]", "too large"),
        ("? [1, 2]\n: 3", "a key must be a text"),
        ("---\na: 1\n---\nb: 2", "not valid YAML"),
        ("a: *nowhere", "not valid YAML"),
        ("x" * 1_000_001, "too large"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_message(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        yaml_text.parse(text, "x.yaml")


def test_an_alias_bomb_is_bounded() -> None:
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12))
    with pytest.raises(UserError, match="too large"):
        yaml_text.parse(f"l0: &l0 [1]\n{levels}", "x")
    merges = "\n".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 12))
    with pytest.raises(UserError, match="too large"):
        yaml_text.parse(f"m0: &m0 {{a: 1}}\n{merges}", "x")


@pytest.mark.parametrize("many", ["- a\n" * 30_000, "[" + "a, " * 30_000, "{" + "a: 1, " * 15_000, "- " * 100])
def test_too_many_values_are_refused_before_the_rest_is_read(many: str) -> None:
    """What follows is no YAML, which would be said if it were read."""
    with pytest.raises(UserError, match="the YAML is too large"):
        yaml_text.parse(f"{many}\n}}%\tx: [", "x")


@pytest.mark.parametrize(
    "written",
    [b"\xef\xbb\xbf" + BASE.encode(), BASE.replace("\n", "\r\n").encode(), BASE.encode() + b"# \xe2\x86\x92\n"],
)
def test_a_byte_order_mark_and_lines_of_windows_change_nothing(written: bytes, base: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_bytes(written)
    assert load_config(str(tmp_path / "other.yaml"), [], STAGES).config == load_config(base, [], STAGES).config


@pytest.mark.parametrize("written", [BASE.encode() + "# ä".encode("latin-1"), BASE.encode("utf-16"), b"\x80"])
def test_a_file_in_another_encoding_is_named(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_bytes(written)
    with pytest.raises(UserError, match="no UTF-8 text") as refused:
        load_config(str(tmp_path / "other.yaml"), [], STAGES)
    assert str(tmp_path / "other.yaml") in refused.value.where and refused.value.fix


# --- loading and overriding -------------------------------------------------------------------------------------------


def test_overrides_reach_everything(base: str) -> None:
    config = load(
        base, "stages.gfpo.steps=40", "stages.gfpo-2.lr=3e-5", "stages.0.steps=7", "rewards.exact_answer.weight=2",
        "sampling.temperature=.7", "stages.sft.sampling.max_tokens=9", "task.params={min_terms: 3}", "seed=5",
    )  # fmt: skip
    assert [stage.steps for stage in config.stages] == [7, 40, 30]
    assert config.stages[2].lr == 3e-5 and config.stages[1].lr == 1e-4
    assert [reward.weight for reward in config.rewards] == [2, 0.5]
    assert config.sampling.temperature == 0.7 and config.stages[0].sampling.max_tokens == 9
    assert config.task.params == {"min_terms": 3} and config.seed == 5


def test_a_key_that_python_cannot_say(base: str, write: Callable[..., str]) -> None:
    config = load(base, "stages.gfpo.async=1")
    assert (config.stages[1].async_, config.stages[1].clip, config.stages[2].async_) == (1, (0.2, 0.28), 0)
    assert identity(config.stages[1])["async"] == 1
    assert load(write(dump_config(config), "again.yaml")) == config
    jsonschema.validate(yaml.safe_load(dump_config(config)), schema(STAGES))
    said = refused(base, "stages.gfpo.async=2")
    assert "async" in said and "async_" not in said
    assert "did you mean `async`" in refused(base, "stages.gfpo.asnyc=1")
    assert "needs a `clip`, not null" in refused(base, "stages.gfpo.async=1", "stages.gfpo.clip=null")


def test_a_stage_can_be_replaced_by_another(base: str) -> None:
    config = load(base, "stages.1={stage: dapo, steps: 3}")
    assert [stage.label for stage in config.stages] == ["sft", "dapo", "gfpo"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.gfpoo.steps=4", "one of: sft, gfpo, gfpo-2"),
        ("stages.gfpoo.steps=4", "did you mean `gfpo`?"),
        ("stages.7.steps=4", "0 to 2"),
        ("stages.gfpo.stepps=4", "did you mean `steps`?"),
        ("seed.x=1", "--set seed.x=1"),
        ("name.x=1", "`name` has no options of its own"),
        ("seed", "an override is a key and a value"),
        ("=1", "an override is a key and a value"),
        ("a..b=1", "an override is a key and a value"),
        ("samplin.top_p=0.3", "did you mean `sampling`?"),
        ("stages=[", "--set stages=["),
        ("sampling.temperature=.inf", "expected: a finite number > 0"),
        ("sampling.top_p=.nan", "expected: a finite number > 0 and <= 1"),
        ("stages.gfpo.weight_decay=-.inf", "expected: a finite number >= 0"),
        ("evaluation.threshold=.inf", "expected: a finite number ("),
        ("rewards.0.params={tolerance: .inf}", "expected: a finite number"),
        ("rewards.0.params={deep: [1, {er: .nan}]}", "expected: a finite number"),
        ("task.params={min_terms: .nan}", "expected: a finite number"),
    ],
)
def test_a_wrong_override_is_named(base: str, override: str, says: str) -> None:
    message = refused(base, override)
    assert says in message and "Traceback" not in message


def test_a_number_of_a_reward_is_told_with_its_bound(base: str) -> None:
    for reward, option, expected in (
        ("numeric_answer", "relative_tolerance", "a finite number >= 0"),
        ("numeric_answer", "deeper", "a finite number"),
        ("length", "falloff", "a whole number >= 0"),
        ("mine:score", "bonus", "a finite number"),
    ):
        for bad in (".inf", "-.inf", ".nan"):
            given = [f"rewards=[{{reward: '{reward}', name: own, params: {{{option}: {bad}}}}}]"]
            with pytest.raises(UserError) as caught:
                load_config(base, given, STAGES, numbers=numbers)
            assert caught.value.expected == expected and option in caught.value.what, (reward, option)


def test_the_dump_loads_as_the_same_configuration(base: str, write: Callable[..., str]) -> None:
    config = load(base, "stages.sft.lr=1e-5", "task.params={text: '1e-4', flag: 'on', none: null}")
    assert load(write(dump_config(config), "again.yaml")) == config


def test_relative_paths_become_absolute(write: Callable[..., str], tmp_path: Path) -> None:
    write('{"question": "1", "answer": "1"}\n', "data.jsonl")
    (tmp_path / "model").mkdir()
    text = BASE.replace("architecture: {model_type: llama, hidden_size: 32}", "path: model").replace(
        "  source: reasoning_gym\n  dataset: chain_sum\n", "  source: file\n  path: data.jsonl\n"
    )
    config = load(write(text), "task.demonstrations=none")
    assert config.task.path == str(tmp_path / "data.jsonl") and config.policy.path == str(tmp_path / "model")
    assert load(write(text), "policy.path=Qwen/Qwen3-0.6B").policy.path == "Qwen/Qwen3-0.6B"


def test_a_missing_configuration_is_said(tmp_path: Path) -> None:
    assert "there is no such configuration file" in refused(str(tmp_path / "no.yaml"))
    assert "a folder is no configuration" in refused(str(tmp_path))
    if "quickstart" in packaged_configs():
        assert "did you mean `quickstart`?" in refused("quickstrat")
        assert "did you mean `recipes/deepscaler`?" in refused("recipes/deepscalr")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    assert "no UTF-8 text" in refused(str(tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text("just words")
    assert "this is no configuration" in refused(str(tmp_path / "y.yaml"))


# --- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown key": ("name: small", "polcy: 1\nname: small", "did you mean `policy`?"),
    "wrong type": ("steps: 10", "steps: ten", "a whole number"),
    "quoted number": ("steps: 10", 'steps: "10"', "remove the quotes"),
    "true for a number": ("steps: 10", "steps: true", "true"),
    "unknown stage": ("stage: sft", "stage: sftt", "did you mean `sft`?"),
    "unknown source": ("source: reasoning_gym", "source: gym", "one of reasoning_gym, file, hub"),
    "a lone completion": ("    steps: 20", "    group_size: 1\n    steps: 20", "at least 2"),
    "missing": ("    steps: 20\n", "", "`steps` is missing"),
    "not finite": ("lr: 1e-4", "lr: .nan", "finite"),
    "a scalar for options": ("  - stage: sft\n    steps: 10", "  - sft", "a group of options"),
    "no stage named": ("  - stage: sft\n    steps: 10", "  - steps: 10", "does not say which stage"),
    "two of one name": ("reward: equation_steps", "reward: exact_answer", "two rewards are called"),
    "both sources": ("  architecture:", "  path: x\n  architecture:", "exactly one of `path`"),
    "unknown accuracy reward": ("stages:", "evaluation: {reward: nope}\nstages:", "none of the rewards"),
    "deep unknown key": ("    steps: 10", "    steps: 10\n    sampling: {top: 3}", "stages.sft.sampling.top"),
    "wrong choice": ("    steps: 10", "    steps: 10\n    schedule: linaer", "did you mean `linear`?"),
    "bad name": ("name: small", "name: a/b", "letters, digits"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_remedy(case: str, write: Callable[[str], str]) -> None:
    old, new, says = MISTAKES[case]
    assert old in BASE
    message = refused(write(BASE.replace(old, new, 1)))
    assert says in message, message
    assert "small.yaml" in message, message
    for noise in ("pydantic", "type=", "Input should", "Pipeline", "function-", "union_tag", "model_attributes"):
        assert noise not in message, message


def test_the_line_is_right_and_all_problems_come_at_once(write: Callable[[str], str]) -> None:
    text = BASE.replace("lr: 1e-4", "lr: fast").replace("heldout: 10", "heldoot: 10").replace("steps: 30", "steps: 0")
    message = refused(write(text))
    rows = text.splitlines()
    for row, key in (
        ("heldoot: 10", "task.heldoot"),
        ("lr: fast", "stages.gfpo.lr"),
        ("steps: 0", "stages.gfpo-2.steps"),
    ):
        number = next(n for n, line in enumerate(rows, 1) if row in line)
        assert re.search(rf"small\.yaml line {number}, {re.escape(key)}\n", message), message
    assert message.startswith("3 problems in ")
    assert message.index("heldoot") < message.index("fast") < message.index("gfpo-2")


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(base: str) -> None:
    described = json.loads(json.dumps(schema(STAGES)))
    jsonschema.Draft202012Validator.check_schema(described)
    valid = yaml_text.parse(BASE, "x").data
    jsonschema.validate(valid, described)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**valid, "polcy": 1}, described)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**valid, "stages": [{"stage": "sft", "steps": 1, "temperature": 1}]}, described)


EXAMPLES = [str(path) for path in sorted((REPOSITORY / "examples").glob("*/*.yaml"))]


@pytest.mark.parametrize("name", EXAMPLES, ids=lambda name: Path(name).stem)
def test_every_example_is_one_configuration(name: str) -> None:
    """Without the models and the data, which are not part of the checkout."""
    assert load_config(name, [], STAGES).config.stages


ALONE = [name for name in packaged_configs() if "/" not in name]
"""The packaged configurations but the recipes, which have a test of their own."""


@pytest.mark.parametrize("name", [*ALONE, *(name for name in EXAMPLES if "path: ./model" in Path(name).read_text())])
def test_every_packaged_configuration_is_sound(name: str, tmp_path: Path) -> None:
    loaded = load_config(name, [], STAGES)
    stand_ins: list[str] = []  # for what has a Hub id, which is out of reach here
    if loaded.config.policy.path is not None:
        save_chat_model(tmp_path / "model")
        stand_ins.append(f"policy.path={tmp_path / 'model'}")
    if loaded.config.task.source == "hub":
        (tmp_path / "set").mkdir()
        row = dict.fromkeys(loaded.config.task.columns.model_dump().values(), "1 + 1 = #### 2")
        for split in (loaded.config.task.split, loaded.config.task.heldout_split):
            (tmp_path / "set" / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * 1000)
        stand_ins += [f"task.dataset={tmp_path / 'set'}", "task.subset=null"]
    if loaded.config.rollouts.external:
        stand_ins.append("rollouts.engine=transformers")
    loaded = load_config(name, stand_ins, STAGES)
    preflight(loaded.config, loaded.base_dir, discover(), tmp_path)
    assert yaml.safe_load(dump_config(loaded.config))["name"] == loaded.config.name


# --- before compute ---------------------------------------------------------------------------------------------------


def flight(source: str, *overrides: str, runs: Path | None = None) -> str:
    loaded = load_config(source, list(overrides), STAGES)
    with pytest.raises(UserError) as caught:
        preflight(loaded.config, loaded.base_dir, discover(), runs)
    return str(caught.value)


def test_a_sound_configuration_passes(base: str, tmp_path: Path) -> None:
    loaded = load_config(base, [], STAGES)
    preflight(loaded.config, loaded.base_dir, discover(), tmp_path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.demonstrations=none", "stage `sft` learns from demonstrations"),
        ("task.dataset=chain_summ", "chain_sum"),
        ("rewards.0.reward=exact_anser", "exact_answer"),
        ("stages.gfpo.ranking=[reward, prettier]", "stages.gfpo.ranking"),
        ("policy.architecture.model_type=lama", "did you mean `llama`?"),
        ("policy.architecture.max_position_embeddings=16", "max_position_embeddings"),
        ("tracking.uri=ftp://x", "tracking.uri"),
        ("stages.sft.async=1", "the stage `sft` samples nothing that `async` could go by"),
    ],
)
def test_what_can_be_known_before_compute_is_said(base: str, override: str, says: str) -> None:
    assert says in flight(base, override)


def test_problems_are_collected(base: str) -> None:
    message = flight(base, "task.demonstrations=none", "tracking.uri=ftp://x")
    assert message.startswith("2 problems in the pipeline 'small'")


def model_folder(folder: Path, files: list[str], config: dict[str, object]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(b"")
    return f"policy={{path: {folder}}}"


def test_only_safetensors_and_only_known_code(base: str, tmp_path: Path) -> None:
    llama = {"model_type": "llama"}
    pickled = flight(base, model_folder(tmp_path / "pickled", ["pytorch_model.bin"], llama))
    assert "no weights in safetensors form" in pickled and "pytorch_model.bin" in pickled
    remote = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    code = model_folder(tmp_path / "remote", ["model.safetensors"], remote)
    save_file({"weight": np.ones(2)}, tmp_path / "remote" / "model.safetensors")
    assert "policy.trust_remote_code" in flight(base, code)
    loaded = load_config(base, [code, "policy.trust_remote_code=true"], STAGES)
    preflight(loaded.config, loaded.base_dir, discover())
    assert "there is no such model folder" in flight(base, f"policy={{path: {tmp_path / 'none'}}}")
    (tmp_path / "empty").mkdir()
    assert "no Hugging Face model" in flight(base, f"policy={{path: {tmp_path / 'empty'}}}")


def test_model_types_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_model_types() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_runs_folder_must_be_a_folder_with_room(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_runs_folder(tmp_path / "file")
    with pytest.raises(UserError, match="too little disk space"):
        check_runs_folder(tmp_path / "new" / "runs", checkpoint_bytes=10**18)
    check_runs_folder(tmp_path / "new" / "runs")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "mistral", "gemma2", "gpt_neox"])
def test_architecture_options_are_those_that_transformers_accepts(model_type: str) -> None:
    from dataclasses import fields

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    declared = {field.name for field in fields(config)} | set(config.attribute_map)
    assert architecture_options(model_type) == declared
