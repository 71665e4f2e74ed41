"""``gradus advise`` as a user meets it: real policies, real rewards, real files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import tiny_policy
from typer.testing import CliRunner, Result

from gradus.flows.advise import advise as work
from gradus.flows.advise import rewrite
from gradus.flows.advise.rules import Advice
from gradus.flows.cli import app
from gradus.flows.order import run_plain
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.estimates.diagnosis import ordered_groups
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

JUDGES = """\
import random, zlib
def even(prompt, completion): return float(zlib.crc32(completion.encode()) % 2)
def noisy(prompt, completion): return float(random.random() < 0.5)
def kind(prompt, completion): return 1.0
def never(prompt, completion): return 0.0
def broken(prompt, completion): raise ValueError("no judge")
"""
CONFIG = """\
# Why this file is here.
name: tiny
policy: {path: model} # a folder beside this file
task:
  source: reasoning_gym
  dataset: chain_sum
  params: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}
  size: 150
  heldout: 20
  demonstrations: solver
sampling: {max_tokens: 12, temperature: 1.0}
rewards:
  - reward: judges:even
  - {reward: equation_steps, weight: 0.0}
reward_workers: 1
stages:
  - stage: dapo # to warm up
    steps: 60
    prompts_per_step: 4
    group_size: 4
    lr: 2e-4 # brisk
  - stage: gfpo
    steps: 20
"""
SMALL = ("--prompts", "12", "--samples", "8")


class Gradus:
    """The command in a folder that holds a policy, judges and a configuration."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "tiny.yaml"
        (folder / "judges.py").write_text(JUDGES)
        self.config.write_text(CONFIG)
        tiny_policy().save(folder / "model")

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app.app, list(arguments), catch_exceptions=False, env={"COLUMNS": "80"})
        assert result.exit_code == code, result.output + result.stderr
        assert "Traceback" not in result.output + result.stderr
        return result

    def advise(self, *arguments: str, judge: str = "even", code: int = 0) -> Result:
        return self("advise", "tiny.yaml", "--set", f"rewards.0.reward=judges:{judge}", *SMALL, *arguments, code=code)

    def asked(self, *arguments: str, judge: str = "even") -> dict:
        return json.loads(self.advise("--json", *arguments, judge=judge).stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    Gradus(folder)
    return folder


@pytest.fixture
def gradus(place: Path, monkeypatch: pytest.MonkeyPatch) -> Gradus:
    monkeypatch.chdir(place)
    return Gradus(place)


@pytest.fixture(scope="module")
def trained(place: Path) -> Iterator[Path]:
    """A run of a configuration with a new policy and a stage of SFT."""
    model = "{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}"
    text = CONFIG.replace("{path: model}", f"{{architecture: {model}}}").replace("judges:even", "exact_answer")
    text = text.replace("stages:\n", "stages:\n  - {stage: sft, steps: 2, prompts_per_step: 4}\n")
    (place / "run.yaml").write_text(text.replace("steps: 60", "steps: 1").replace("steps: 20", "steps: 1"))
    kinds = [stage.config for stage in discover().values()]
    loaded = load_config(str(place / "run.yaml"), [], kinds)
    run = RunFolder.create(place / "runs", loaded.config, "tiny", loaded.path, kinds)
    run_plain(run.path, Observer())
    yield run.path


@pytest.fixture(scope="module")
def even(place: Path) -> Iterator[dict]:
    """What the small probe of the configuration finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield Gradus(place).asked()


@pytest.fixture(scope="module")
def coin(place: Path) -> Iterator[dict]:
    """The same with more prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield Gradus(place).asked("--prompts", "60")


def topics(found: dict) -> dict[str, dict]:
    return {each["topic"]: each for each in found["advice"]}


# --- what it says -----------------------------------------------------------------------------------------------------


def test_it_says_what_the_policy_can_do_and_leaves_nothing_behind(gradus: Gradus) -> None:
    before, scratch = set(gradus.folder.iterdir()), set(Path(tempfile.gettempdir()).glob("gradus-advise-*"))
    said = gradus.advise().stdout
    for part in ("pass@1", "pass@8", "all wrong", "mixed", "K = 8", "noise", "equation_steps", "truncated", "█"):
        assert part in said
    for part in ("group size K", "warm-up", "GFPO", "SRPO", "rule: manual:", "rule: ours:", "tokens/s sampled"):
        assert part in said
    assert max(map(len, said.splitlines())) <= 80
    assert {path for path in gradus.folder.iterdir() if path.name != "__pycache__"} <= before
    assert set(Path(tempfile.gettempdir()).glob("gradus-advise-*")) <= scratch


def test_the_same_probe_finds_the_same(gradus: Gradus, even: dict) -> None:
    first, second = gradus.asked(), even
    assert first["diagnosis"] == second["diagnosis"] and first["advice"] == second["advice"]
    assert (first["diagnosis"]["prompts"], first["diagnosis"]["samples"]) == (12, 8)
    other = gradus.asked("--set", "seed=1")
    assert other["diagnosis"] != first["diagnosis"]


def test_a_fair_coin_of_a_judge_gives_the_shares_of_a_coin(coin: dict) -> None:
    """The judge of texts is deterministic and right half of the time: groups of K are mixed 1 - 2 * 0.5^K."""
    found = coin["diagnosis"]
    for k, truth in (("2", 0.5), ("4", 0.875), ("8", 1 - 2 / 256)):
        assert found["mixed"][k]["low"] - 0.02 <= truth <= found["mixed"][k]["high"] + 0.02
    assert found["noise"]["value"] == 0 and found["flips"]["value"] == 0


def test_estimates_are_measured(even: dict) -> None:
    found = even
    speed, stages = found["speed"], found["estimates"]
    assert speed["sample_tokens_per_second"] > 0 and speed["update_tokens_per_second"] > 0
    assert speed["peak_bytes"] > 2 * speed["weight_bytes"] > 0
    dapo = next(each for each in stages if each["label"] == "dapo")
    length, useful = found["diagnosis"]["length_mean"], found["diagnosis"]["useful"]["4"]["value"]
    sampled = 16 * (length / speed["sample_tokens_per_second"] + speed["score_seconds"])
    learned = 16 * length * useful / speed["update_tokens_per_second"]
    assert dapo["rollouts"] == 16 and dapo["step_seconds"] == pytest.approx(sampled + learned)
    assert dapo["seconds"] == pytest.approx(60 * dapo["step_seconds"])


def test_a_stage_is_estimated_by_its_own_ranking(gradus: Gradus) -> None:
    """Which need not be the one that was probed for: the advice may propose another."""
    stages = discover()
    loaded = load_config("tiny.yaml", ["stages.gfpo.group_size=4"], [stage.config for stage in stages.values()])
    report = work.advise(loaded, stages, work.find_probed_policy(loaded, None, None, Path("runs")), 12, 8)
    assert report.probe.diagnosis.ranking == ("reward",)
    chain = loaded.config.model_copy(
        update={"stages": [loaded.config.stages[1].model_copy(update={"ranking": ["reward", "shorter"]})]}
    )
    (plain,), (ranked,) = (
        [cost for cost in work.costs(config, stages, report) if cost.label == "gfpo"]
        for config in (loaded.config, chain)
    )
    assert plain.useful == report.probe.diagnosis.ordered[4].value
    by_hand = ordered_groups(report.probe.groups, ["reward", "shorter"])[4].value
    assert ranked.useful == by_hand > plain.useful and ranked.step_seconds > plain.step_seconds


def test_a_noisy_judge_is_found_out(gradus: Gradus, coin: dict) -> None:
    found = gradus.asked("--prompts", "40", judge="noisy")
    assert found["diagnosis"]["noise"]["high"] > 0.8 and found["diagnosis"]["flips"]["value"] == pytest.approx(
        0.5, abs=0.15
    )
    assert topics(found)["warm-up"]["value"] == "vapo"
    assert topics(coin)["warm-up"]["value"] == "dapo"


def test_where_nothing_is_right_it_asks_for_sft(gradus: Gradus) -> None:
    said = topics(gradus.asked("--prompts", "60", judge="never"))
    assert said["SFT first"]["verdict"] == "yes" and "warm-up" not in said


def test_where_everything_is_right_there_is_nothing_to_write(gradus: Gradus) -> None:
    arguments = ("--prompts", "100", "--write", "solved.yaml")
    result = gradus.advise(*arguments, judge="kind", code=2)
    assert "the task is solved: take a harder task" in result.stdout and "harder task" in result.stderr
    assert not (gradus.folder / "solved.yaml").exists()


# --- whom it probes ---------------------------------------------------------------------------------------------------


def test_a_new_policy_is_said_to_be_untrained(gradus: Gradus, trained: Path) -> None:
    said = gradus("advise", "run.yaml", *SMALL).stdout
    assert "random weights" in said and "probe again" in said and "gradus advise run.yaml --after sft" in said
    again = json.loads(gradus("advise", "run.yaml", *SMALL, "--after", "sft", "--json").stdout)
    checkpoint = Path(again["probed"]["checkpoint"])
    assert not again["probed"]["untrained"] and checkpoint.is_relative_to(trained / "stages" / "01-sft")


def test_a_checkpoint_goes_by_its_folder_and_a_run_by_its_name(gradus: Gradus, trained: Path) -> None:
    start = json.loads(gradus("advise", "run.yaml", *SMALL, "--from", str(trained / "start"), "--json").stdout)
    assert start["probed"]["untrained"]
    latest = json.loads(gradus("advise", "run.yaml", *SMALL, "--from", "tiny", "--json").stdout)
    assert "03-gfpo" in latest["probed"]["checkpoint"]
    other = gradus.asked("--from", "model")
    assert other["probed"]["checkpoint"].endswith("model") and not other["probed"]["untrained"]


def test_a_probe_does_not_touch_the_run(gradus: Gradus, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    gradus("advise", "run.yaml", *SMALL, "--from", "tiny")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompts", "2"), "greater than or equal to 8"),
        (("--samples", "x"), "integer"),
        (("--seconds", "0"), "--seconds"),
        (("--seconds", "-5"), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--write", "new.txt"), "a configuration is a YAML file"),
        (("--write", "nowhere/new.yaml"), "an existing folder"),
        (("--write", "tiny.yaml"), "this file exists"),
        (("--write", "new.yaml", "--set", "stages.gfpo.from=start"), "only a chain can be written anew"),
        (("--plot", "plot.gif"), ".svg, .png, .pdf"),
        (("--plot", "nowhere/plot.svg"), "an existing folder"),
        (("--from", "nobody"), "there is no such checkpoint or run"),
        (("--from", "empty"), "no Hugging Face model"),
        (("--after", "dapo", "--runs", "none"), "there is no run called 'tiny' yet"),
        (("--after", "dapo", "--from", "model"), "--after names a stage of a run"),
        (("--set", "stages.dapo.steps=none"), "steps"),
    ],
)
def test_bad_input_is_said_before_anything_is_computed(
    gradus: Gradus, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    (gradus.folder / "empty").mkdir(exist_ok=True)

    def computed(*given: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr("gradus.flows.advise.advise.advise", computed)
    result = gradus.advise(*arguments, code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_an_unknown_stage_of_a_run(gradus: Gradus, trained: Path) -> None:
    result = gradus("advise", "run.yaml", "--after", "vapo", code=2)
    assert "no stage `vapo`" in result.stderr and "sft, dapo, gfpo" in result.stderr


def test_a_judge_that_fails_always(gradus: Gradus) -> None:
    assert "no judge" in gradus.advise(judge="broken", code=2).stderr


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_the_advised_configuration_is_the_users_own_with_what_changes(gradus: Gradus) -> None:
    target = gradus.folder / "new.yaml"
    gradus.advise("--prompts", "40", "--write", str(target), judge="noisy")
    assert "is valid" in gradus("check", "new.yaml").stdout
    text = target.read_text()
    for kept in ("# Why this file is here.", "# a folder beside this file", "# to warm up", "lr: 2e-4 # brisk"):
        assert kept in text
    assert text.startswith("# Advised by") and "manual: DAPO is fast but fragile" in " ".join(
        text.replace("#", "").split()
    )
    stages = load_config("new.yaml", [], [stage.config for stage in discover().values()]).config.stages
    assert stages[0].stage == "vapo" and stages[0].steps >= 60
    assert stages[0].prompts_per_step * stages[0].group_size == 16
    again = gradus.advise("--write", str(target), code=2)
    assert "this file exists" in again.stderr
    gradus.advise("--write", str(target), "--force")
    assert "stage: dapo" in target.read_text()


def test_the_diagnosis_is_drawn(gradus: Gradus) -> None:
    gradus.advise("--plot", "probe.svg")
    assert "<svg" in (gradus.folder / "probe.svg").read_text()


def advice(topic: str, value: object, verdict: str = "yes") -> Advice:
    return Advice(topic, verdict, value, "say", "reason", "rule")  # type: ignore[arg-type]


def applied(stages: list[dict], *given: Advice, **more: object) -> dict:
    data = {"policy": {"path": "x"}, "stages": stages, **more}
    rewrite.apply(data, given, discover())
    return data


def test_sft_comes_first_where_it_is_missing() -> None:
    found = applied([{"stage": "dapo", "steps": 5}], advice("SFT first", "sft"))["stages"]
    assert [each["stage"] for each in found] == ["sft", "dapo"]
    assert applied(found, advice("SFT first", "sft"))["stages"] == found


def test_another_warm_up_keeps_the_common_options_and_loses_its_own() -> None:
    chain = [
        {"stage": "vapo", "name": "vapo", "steps": 5, "alpha": 0.2, "lr": 2e-4},
        {"stage": "vapo", "name": "second", "steps": 5, "carry": ["optimizer", "critic"]},
    ]
    found = applied(chain, advice("warm-up", "dapo"))["stages"]
    assert found[0] == {"stage": "dapo", "steps": 5, "lr": 2e-4}
    assert found[1]["carry"] == ["optimizer"]


def test_a_chain_without_stages_gets_those_advised() -> None:
    given = advice("warm-up", "vapo"), advice("GFPO", ["reward", "shorter"]), advice("SRPO", "srpo")
    found = applied([{"stage": "sft", "steps": 9}], *given)["stages"]
    assert [each["stage"] for each in found] == ["sft", "vapo", "gfpo", "srpo"]
    assert found[2]["ranking"] == ["reward", "shorter"]


def test_steps_of_a_stage_with_nothing_to_rank_go_to_the_warm_up() -> None:
    chain = [{"stage": "dapo", "steps": 5}, {"stage": "gfpo", "steps": 7}, {"stage": "srpo", "steps": 2}]
    found = applied(chain, advice("GFPO", None, "no"), advice("SRPO", None, "no"))["stages"]
    assert found == [{"stage": "dapo", "steps": 12}]


def test_a_larger_group_keeps_the_completions_of_a_step() -> None:
    chain = [{"stage": "sft", "steps": 1}, {"stage": "dapo", "steps": 5}]
    found = applied(chain, advice("group size K", 32))["stages"]
    assert found == [
        {"stage": "sft", "steps": 1},
        {"stage": "dapo", "steps": 5, "group_size": 32, "prompts_per_step": 4},
    ]


def test_longer_answers_need_positions() -> None:
    architecture = {"model_type": "llama", "max_position_embeddings": 100}
    found = applied(
        [{"stage": "dapo", "steps": 5, "sampling": {"max_tokens": 40}}],
        advice("max_tokens", 80),
        policy={"architecture": architecture},
        sampling={"max_tokens": 40},
    )
    assert found["stages"][0]["sampling"]["max_tokens"] == 80
    assert found["sampling"] == {"max_tokens": 80} and architecture["max_position_embeddings"] == 140


def test_what_is_open_changes_nothing() -> None:
    chain = [{"stage": "dapo", "steps": 5}, {"stage": "gfpo", "steps": 7}]
    assert applied([dict(each) for each in chain], advice("GFPO", ["reward"], "open"))["stages"] == chain


@pytest.mark.parametrize(
    "stages",
    [
        "stages: [{stage: dapo, steps: 60}, {stage: gfpo, steps: 20}]\n",
        "stages:\n- &first {stage: dapo, steps: 60}\n- {<<: *first, stage: srpo, name: again}\n",
        "stages:\n    -   stage: dapo\n        steps: 60\n        lr: 1e-4\n",
    ],
)
def test_any_layout_is_written_as_what_was_meant(gradus: Gradus, tmp_path: Path, stages: str) -> None:
    """In another folder, too: paths that were relative to the old one still lead to the same place."""
    gradus.config.write_text(CONFIG[: CONFIG.index("stages:")] + stages)
    kinds = [stage.config for stage in discover().values()]
    loaded = load_config("tiny.yaml", [], kinds)
    given = [advice("warm-up", "vapo"), advice("group size K", 16), advice("SRPO", "srpo")]
    target = tmp_path / "new.yaml"
    rewrite.write(loaded, ["seed=3"], given, discover(), target, "a test")
    found = load_config(str(target), [], kinds).config
    assert found.seed == 3 and found.policy.path == str(gradus.folder / "model")
    assert found.stages[0].stage == "vapo" and found.stages[-1].stage == "srpo"
    assert all(stage.group_size == 16 and stage.prompts_per_step == 8 for stage in found.stages)
    expected = yaml_text.parse(gradus.config.read_text(), "x").data["stages"]
    assert [stage.steps for stage in found.stages][: len(expected)] == [each["steps"] for each in expected]
