"""Sampling one step ahead: whose batches they are, what is taken anew for them, and that a resume changes nothing."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import INT, KILL, TERM, assert_same, run_lives
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.policy import Policy, frozen_copy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts import sampler
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.stage import Needs
from gradus.pipeline.tasks.prompt_order import Schedule
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training.batches import BatchNotNeeded, SampledBatches
from gradus.pipeline.training.prefetch import PrefetchedBatches
from gradus.pipeline.training.signals import SignalProvider
from gradus.pipeline.types import Prompt, Rollouts

STEPS = 6
CONFIG = pipeline([{"stage": "dapo", "steps": 3, "prompts_per_step": 2, "group_size": 3, "async": 1}])


class Stream:
    """The same prompts in every step."""

    def __init__(self, prompts: list[Prompt]):
        self.prompts = prompts

    def at(self, begin: int, size: int) -> list[Prompt]:
        return self.prompts[:size]


def groups_of(policy: Policy, prompts: list[Prompt], suite: RewardSuite) -> SampledBatches:
    stream: Any = Stream(prompts)
    return SampledBatches(policy, Schedule(stream), suite, CONFIG, CONFIG.stages[0])


@pytest.fixture
def suite() -> RewardSuite:
    return RewardSuite(CONFIG.rewards)


def nudge(policy: Policy) -> None:
    """What an update does to the weights, and more."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5)


def same(one: Rollouts, two: Rollouts) -> bool:
    names = ("tokens_PKT", "rollout_logprobs_PKT", "rewards_PK")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def test_each_batch_is_of_the_policy_before_the_running_update(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite
) -> None:
    """Step n trains on what the policy of n - 2 updates sampled, the first on its own; none is sampled in vain."""
    ahead = PrefetchedBatches(groups_of(frozen_copy(policy), prompts, suite), policy)
    weights, found = [frozen_copy(policy)], []
    for step in (1, 2, 3):
        found.append(ahead.batch(step))
        nudge(policy)
        weights.append(frozen_copy(policy))
    for step, rollouts, by in ((1, found[0], 0), (2, found[1], 0), (3, found[2], 1)):
        assert same(rollouts, groups_of(weights[by], prompts, suite).batch(step)), step
        assert rollouts.staleness == step - 1 - by
    assert ahead.metrics["sampler/staleness"] == 1 and list(ahead.state()) == ["groups"]
    ahead.close()


def test_the_next_batch_is_sampled_while_this_one_trains(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite
) -> None:
    groups, done = groups_of(frozen_copy(policy), prompts, suite), threading.Event()
    sample_batch = groups.batch

    def batch(step: int) -> Rollouts:
        rollouts = sample_batch(step)
        if step == 2:
            done.set()
        return rollouts

    groups.batch = batch  # type: ignore[method-assign]
    ahead = PrefetchedBatches(groups, policy)
    ahead.batch(1)
    assert done.wait(60), "nobody has asked for the second batch"
    ahead.close()


def test_a_resume_samples_the_batch_under_way_again(policy: Policy, prompts: list[Prompt], suite: RewardSuite) -> None:
    ahead = PrefetchedBatches(groups_of(frozen_copy(policy), prompts, suite), policy)
    ahead.batch(1)
    nudge(policy)
    state = ahead.state()
    resumed = PrefetchedBatches(groups_of(frozen_copy(tiny_policy(seed=9)), prompts, suite), policy)
    resumed.restore({**state, "weights": {name: value.clone() for name, value in state["weights"].items()}}, 2)
    wanted, found = ahead.batch(2), resumed.batch(2)
    assert same(found, wanted) and found.staleness == wanted.staleness == 1
    ahead.close()
    resumed.close()


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StageFailed("the process for rewards can't start")

    ahead = PrefetchedBatches(groups_of(frozen_copy(policy), prompts, suite), policy)
    monkeypatch.setattr(sampler, "sample", fail)
    with pytest.raises(StageFailed, match="can't start"):
        ahead.batch(1)
    ahead.close()


def test_sampling_that_nobody_wants_ends_at_the_next_group(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite
) -> None:
    groups = groups_of(policy, prompts, suite)
    groups.cancelled = True
    with pytest.raises(BatchNotNeeded):
        groups.batch(1)


@pytest.mark.parametrize("staleness", [0, 1])
def test_scores_of_a_stale_batch_are_taken_anew(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite, staleness: int
) -> None:
    stage: StageConfig = CONFIG.stages[0]
    rollouts = replace(groups_of(policy, prompts, suite).batch(1), staleness=staleness)
    needs = Needs(policy_scores=True, reference=True, log_ratio=True)
    provider = SignalProvider(needs, stage, policy, CONFIG.sampling, lambda policy: groups_of(policy, prompts, suite))
    nudge(policy)
    signals = provider.of(provider.prepared(rollouts, 2), 2)(0, [0, 1])
    now = batch_logprobs(policy if staleness else frozen_copy(tiny_policy()), rollouts, 1.0, 10_000)
    lengths = rollouts.lengths_PK.clamp(min=1)
    assert signals.policy_scores_PK is not None and signals.log_ratio_PK is not None
    torch.testing.assert_close(signals.policy_scores_PK, now.sum(-1) / lengths, rtol=1e-4, atol=1e-5)
    # the reference is the policy that sampled: a fresh batch has no log-ratio, a stale one has the update's
    assert bool(signals.log_ratio_PK.abs().max() > 1e-2) == bool(staleness)


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_policy_that_is_its_reference_has_a_log_ratio_of_exactly_zero(
    policy: Policy, prompts: list[Prompt], suite: RewardSuite, step: int
) -> None:
    """Two forward passes of the same weights may differ by rounding, and AdamW makes a whole step of any gradient."""
    rollouts = groups_of(policy, prompts, suite).batch(1)
    rollouts = replace(rollouts, rollout_logprobs_PKT=rollouts.rollout_logprobs_PKT * (1 + 1e-7))
    needs = Needs(reference=True, refresh_reference=3, log_ratio=True)
    options = (needs, CONFIG.stages[0], policy, CONFIG.sampling, lambda policy: groups_of(policy, prompts, suite))
    provider = SignalProvider(*options)
    provider.begin(step)
    signals = provider.of(provider.prepared(rollouts, step), step)
    first = signals(0, [0, 1]).log_ratio_PK
    assert first is not None and not first.any()
    later = provider.of(provider.prepared(rollouts, step + 1), step + 1)(0, [0, 1]).log_ratio_PK
    assert later is not None and later.any(), "one step after, it is what the two passes say"
    nudge(policy)
    updated = signals(1, [0, 1]).log_ratio_PK
    assert updated is not None and bool(updated.abs().max() > 1e-2), "after an update it is the update's"


def test_a_clip_goes_with_it() -> None:
    def stage(**options: Any) -> PipelineConfig:
        return pipeline([{"stage": "dapo", **options}]).stages[0]

    assert stage().clip is None
    assert stage(**{"async": 1}).clip == (0.2, 0.28)
    assert stage(**{"async": 1, "clip": [0.1, 0.1]}).clip == (0.1, 0.1)
    assert stage(**{"async": 1}).model_dump()["async"] == 1, "the name that a configuration gives it"
    with pytest.raises(ValueError, match="needs a `clip`, not null"):
        stage(**{"async": 1, "clip": None})


# --- whole runs -------------------------------------------------------------------------------------------------------

STAGES = [
    {"stage": "dapo", "group_size": 3, "async": 1},
    {"stage": "vapo", "group_size": 2, "async": 1},
    {"stage": "gfpo", "group_size": 3, "ranking": ["reward", "shorter"], "updates_per_batch": 2, "async": 1},
    {"stage": "srpo", "group_size": 2, "refresh": 3, "advantage": "combined", "baseline": "mean", "async": 1},
]
LABELS = [str(stage["stage"]) for stage in STAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overlap")
    graded = {"reward": "length", "params": {"max": 5, "falloff": 15}}
    options = {"rewards": [graded], "evaluation": {"threshold": 0.5}}
    config = pipeline([{**stage, "steps": STEPS} for stage in STAGES], checkpoints={"every_steps": 2}, **options)
    (folder / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> RunFolder:
    return run_lives(folder, "undisturbed", "-")


def test_staleness_and_what_it_does_are_logged(undisturbed: RunFolder) -> None:
    for index in range(len(STAGES)):
        curves = metric_history(undisturbed.stage_dir(index) / "journal.jsonl")
        assert list(curves["sampler/staleness"].values()) == [0.0] + [1.0] * (STEPS - 1)
        assert all(value > 1e-3 for value in curves["update/gradient_norm"].values())
        drift = curves["update/train_sample_mismatch"]
        assert all(drift[step] > 1e-5 for step in range(2, STEPS + 1)), "one update apart"


def test_killed_at_the_first_the_last_and_a_random_step(folder: Path, undisturbed: RunFolder) -> None:
    chance = random.Random()
    steps = [(label, step) for label in LABELS for step in (0, chance.randrange(1, STEPS - 1), STEPS - 1)]
    lives = [f"{label}:{step}:{chance.random():.3f}:{KILL}" for label, step in steps]
    print("lives:", lives)  # shown when the test fails
    assert_same(undisturbed, run_lives(folder, "killed", *lives, "-"))


def test_asked_to_end_at_the_first_and_a_random_step(folder: Path, undisturbed: RunFolder) -> None:
    chance = random.Random()
    steps = [(label, step) for label in LABELS for step in (0, chance.randrange(1, STEPS - 1))]
    lives = [f"{label}:{step}:{chance.random():.3f}:{chance.choice([TERM, INT])}" for label, step in steps]
    print("lives:", lives)
    assert_same(undisturbed, run_lives(folder, "ended", *lives, "-"))
