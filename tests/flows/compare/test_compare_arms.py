"""What a comparison's arms are: their stages, their share of the budget, and what is wrong with a wish."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
from small_pipeline import pipeline

from gradus.flows.cli import compare
from gradus.flows.cli.compare import parse_seeds
from gradus.flows.compare import measures
from gradus.flows.compare.plan import folder
from gradus.flows.compare.plan.budget import Budget, divide_budget, rollouts_per_step
from gradus.flows.compare.plan.comparison import ComparisonPlan, make_plan
from gradus.flows.compare.plan.schedule import Tuning
from gradus.flows.compare.report import claims, figures, pages
from gradus.flows.compare.run import jobs
from gradus.flows.compare.run.request import runs_at_once
from gradus.pipeline.common.addresses import resolve_uri
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.loading import load_config
from gradus.stages import discover

STAGES = discover()
ARMS = "dapo,vapo,gfpo,srpo,staged"
SAMPLED = "stages.srpo.baseline=mean"
"""SRPO's reference samples completions of its own, which cost as much as the policy's."""


def plan(
    arms: str = ARMS, budget: str | None = None, changes: tuple[str, ...] = (), config: str = "quickstart",
    overrides: tuple[str, ...] = (), runs: Path = Path("no-runs"),
) -> ComparisonPlan:  # fmt: skip
    loaded = load_config(config, [SAMPLED, *overrides], [stage.config for stage in STAGES.values()])
    return make_plan(loaded, STAGES, arms, Budget.parse(budget) if budget else None, changes, runs)


def spent(found: ComparisonPlan, label: str) -> list[tuple[str, int, int]]:
    """(stage, steps, rollouts) of an arm."""
    arm = next(each for each in found.arms if each.label == label)
    own = found.arm(arm, 0).stages[1:]
    return [(stage.label, stage.steps, stage.steps * rollouts_per_step(stage, STAGES)) for stage in own]


def test_every_arm_spends_what_the_chain_spends() -> None:
    found = plan()
    # 80 x 16 x 8 + 120 x 16 x 8 + 80 x 16 x 8 x 2, the reference policy's samples included
    assert found.budget == Budget(46_080) and str(found.budget) == "46,080 rollouts"
    assert spent(found, "staged") == [("dapo", 80, 10_240), ("gfpo", 120, 15_360), ("srpo", 80, 20_480)]
    assert spent(found, "dapo") == [("dapo", 360, 46_080)]
    assert spent(found, "srpo") == [("srpo", 180, 46_080)]


def test_another_budget_is_shared_in_the_same_proportions() -> None:
    found = plan(budget="4700")
    # dapo 4700 x 10240/46080 / 128 = 8.16 steps, gfpo 12.24, srpo what is left: (4700 - 20 x 128) / 256 = 8.36
    assert spent(found, "staged") == [("dapo", 8, 1024), ("gfpo", 12, 1536), ("srpo", 8, 2048)]
    assert spent(found, "vapo") == [("vapo", 36, 4608)]


def test_an_arm_has_about_twenty_points_wherever_its_stages_end() -> None:
    found = plan()
    for arm in found.arms:
        own = found.arm(arm, 0).stages[1:]
        points = sum(-(-stage.steps // stage.eval_every) for stage in own)
        assert 18 <= points <= 23, arm.label
        gaps = {stage.eval_every * rollouts_per_step(stage, STAGES) for stage in own}
        assert all(abs(gap - 46_080 / 20) < 256 for gap in gaps), "as dense in every stage"


def test_options_come_from_the_chain_or_from_what_its_stages_agree_on() -> None:
    shared = ("stages.dapo.lr=2e-4", "stages.gfpo.lr=2e-4", "stages.srpo.lr=2e-4", "stages.dapo.group_size=4")
    found = plan(overrides=shared)
    configs = {arm.label: found.arm(arm, 0).stages[-1] for arm in found.arms}
    assert configs["gfpo"].ranking == ["reward", "equation_steps"] and configs["srpo"].schedule == "linear"
    assert configs["vapo"].lr == 2e-4 and configs["vapo"].group_size == 8, "only what all agree on"
    assert configs["dapo"].group_size == 4 and configs["vapo"].schedule == "constant"


def test_arms_have_options_of_their_own() -> None:
    changes = ("gfpo.lr=5e-5", "staged.srpo.refresh=7", "all.warmup=3", "slow.lr=1e-6")
    found = plan("gfpo,slow=gfpo,staged", changes=changes)
    configs = {arm.label: found.arm(arm, 0).stages[1:] for arm in found.arms}
    assert [stage.lr for stage in configs["gfpo"]] == [5e-5] and configs["slow"][0].lr == 1e-6
    assert configs["staged"][2].refresh == 7 and {s.warmup for stages in configs.values() for s in stages} == {3}
    assert found.arm(found.arms[0], 0).stages[0].warmup == 10, "what all share stays as it is"


def test_another_configuration_can_be_an_arm(tmp_path: Path) -> None:
    found = plan("staged,quickstart-vapo,gfpo")
    assert [name for name, _, _ in spent(found, "quickstart-vapo")] == ["vapo", "gfpo", "srpo"]
    text = Path("configs/quickstart.yaml").read_text() if Path("configs").is_dir() else ""
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("weight: 0.0", "weight: 0.5"))
    found = plan(f"staged,other={other}")
    assert [reward.weight for reward in found.arm(found.arms[1], 0).rewards] == [1.0, 0.5]
    assert [reward.weight for reward in found.arm(found.arms[0], 0).rewards] == [1.0, 0.0]


def test_validation_prompts_are_kept_where_there_are_none() -> None:
    found = plan(overrides=("task.validation=0", "stages.sft.until=null", "stages.sft.eval_every=0"))
    assert found.arm(found.arms[0], 3).task.validation == 300 and found.notes
    assert found.base(3).stages[-1].eval_every == 300, "the shared start has a point of its own"


def test_tokens_and_seconds_end_stages_by_rule() -> None:
    staged = plan()
    own = staged.arm(staged.arms[-1], 0).stages[1:]
    parts = divide_budget(Budget.parse("900s"), "staged", own, (0.2, 0.3, 0.5), STAGES)
    assert [part["until"] for part in parts] == [{"seconds": 180.0}, {"seconds": 270.0}, {"seconds": 450.0}]
    assert Budget.parse("1e6 tokens") == Budget(1_000_000, "tokens")


@pytest.mark.parametrize(
    ("arms", "changes", "budget", "overrides", "said"),
    [
        ("dapoo,gfpo", (), None, (), ["unknown arm `dapoo`", "did you mean `dapo`?"]),
        ("gfpo", (), None, (), ["a comparison needs two arms"]),
        ("gfpo,gfpo", (), None, (), ["two arms are called `gfpo`", "`gfpo-2=gfpo`"]),
        ("sft,gfpo", (), None, (), ["`sft` is what all arms start from"]),
        ("base=gfpo,dapo", (), None, (), ["an arm cannot have this label"]),
        ("dapo,manual-example", (), None, (), ["another task or model", "task.dataset"]),
        ("dapo,staged", (), "500", (), ["too small for the arm `staged`", "at least 512 rollouts"]),
        ("dapo,gfpo", (), "127", (), ["too small for the arm `dapo`", "at least 128 rollouts"]),
        ("dapo,gfpo", ("gfpoo.lr=1e-4",), None, (), ["not an option of an arm", "did you mean `gfpo`?"]),
        ("dapo,gfpo", ("gfpo.lrr=1e-4",), None, (), ["unknown option `lrr`", "arm `gfpo`", "did you mean `lr`?"]),
        ("dapo,staged", ("staged.vapo.lr=1",), None, (), ["the arm `staged` has no stage `vapo`"]),
        ("dapo,gfpo", ("gfpo.lr=fast",), None, (), ["`lr` has a value it cannot have", "arm `gfpo`"]),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_clear_message(
    arms: str, changes: tuple[str, ...], budget: str | None, overrides: tuple[str, ...], said: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        plan(arms, budget, changes, overrides=overrides)
    assert all(part in caught.value.render() for part in said), caught.value.render()


def test_without_a_shared_stage_there_is_no_common_start(tmp_path: Path) -> None:
    text = Path(load_config("quickstart", [], [s.config for s in STAGES.values()]).path).read_text()
    head, _, stages = text.partition("stages:\n")
    alone = tmp_path / "alone.yaml"
    alone.write_text(f"{head}stages:\n{stages[stages.index('  - stage: dapo') :]}")
    with pytest.raises(UserError, match="no stage makes it") as caught:
        plan(config=str(alone))
    assert "sft first" in caught.value.render()


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "2h", "3 apples"])
def test_a_budget_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="this is not a budget"):
        Budget.parse(text)


def test_seeds_and_tuning_as_they_are_typed() -> None:
    assert parse_seeds("3") == [0, 1, 2] and parse_seeds("4,7") == [4, 7] and parse_seeds("5,") == [5]
    for text in ("", "0", "a", "1,1"):
        with pytest.raises(UserError):
            parse_seeds(text)
    assert Tuning.parse("lr=1e-4, 3e-4", 9, [0]).values == ("1e-4", "3e-4")
    with pytest.raises(UserError, match="is also one of the reported seeds"):
        Tuning.parse("lr=1e-4,3e-4", 0, [0, 1])
    with pytest.raises(UserError, match="nothing to choose between"):
        Tuning.parse("lr=1e-4", 9, [0])


def test_a_vllm_server_trains_one_run_at_a_time() -> None:
    plain = pipeline([{"stage": "dapo"}])
    served = pipeline([{"stage": "dapo"}], rollouts={"engine": "vllm-server"})
    assert [runs_at_once(plain, *asked) for asked in ((None, 3), (None, 0), (5, 2))] == [3, 1, 5]
    assert [runs_at_once(served, *asked) for asked in ((None, 3), (1, 3))] == [1, 1]
    with pytest.raises(UserError, match="one run at a time"):
        runs_at_once(served, 2, 3)


def test_the_examples() -> None:
    modules = [compare, claims, figures, jobs, measures, folder]
    for module in [*modules, pages]:
        outcome = doctest.testmod(module)
        assert outcome.attempted and not outcome.failed, module.__name__


def test_a_comparison_finds_the_store_above_it_wherever_both_are(tmp_path: Path) -> None:
    for uri, kept in (
        (None, "sqlite:///../mlflow.db"),
        ("sqlite:///team.db", "sqlite:///../team.db"),
        ("sqlite:////shared/team.db", "sqlite:////shared/team.db"),
        ("http://team.example", "http://team.example"),
    ):
        found = plan()
        config = found.config.model_copy(update={"tracking": found.config.tracking.model_copy(update={"uri": uri})})
        place = folder.ComparisonFolder(tmp_path / "runs" / "c", replace(found, config=config), 1)
        assert place.tracking(place.path)["uri"] == kept
        assert resolve_uri(kept, place.path) == resolve_uri(uri, tmp_path / "runs")
