"""What the trainer ties together: weights and validity, batches and the history of prompts, roll-backs and sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scored_batches import scored, stream_of
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.policy import Policy, copy_parameters, frozen_copy, parameters
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.stage import Needs, Stage
from gradus.pipeline.tasks.prompt_order import HistoryResampling, Schedule
from gradus.pipeline.tracking.journal import SilentJournal
from gradus.pipeline.training import batches as batches_module
from gradus.pipeline.training.batches import SampledBatches
from gradus.pipeline.training.early_stopping import Best, EarlyStopping, RuleEvent
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.training.prefetch import PrefetchedBatches
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.trainer import Trainer
from gradus.pipeline.types import Prompt, Rollouts

CONFIG = pipeline([{"stage": "dapo", "steps": 9, "prompts_per_step": 2, "group_size": 3, "async": 1}])


def setup_of(folder: Path, weigh: Any = None, needs: Needs | None = None, prompts: int = 4, **options: Any) -> Setup:
    """The inputs of a stage of its own function and needs, on made-up prompts."""
    config = pipeline([{"stage": "dapo", "steps": 9, "prompts_per_step": 2, "group_size": 3, **options}])
    stage = Stage("own", "own", StageConfig, weigh, lambda config: needs or Needs())
    task: Any = {"": SimpleNamespace(train=stream_of(prompts).dataset, name="", given={})}
    return Setup(
        tiny_policy(), stage, config.stages[0], config, task, RewardSuite(config.rewards),
        SilentJournal(folder / "journal.jsonl"), Observer(), folder, folder, "parent", "fingerprint",
    )  # fmt: skip


# -- weights


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 2)], ids=["a completion", "a token"])
def test_what_could_not_be_scored_gets_no_weight_whatever_the_stage_says(tmp_path: Path, shape: tuple) -> None:
    """The stage weighs everything 1, and what is not valid even with a value that is not a number."""
    valid = [[True, False], [True, True], [False, True]]

    def weigh(signals: Any, config: StageConfig) -> torch.Tensor:
        known = signals.valid_PK.view(*signals.valid_PK.shape, *[1] * (len(shape) - 2))
        return torch.ones(len(signals.valid_PK), *shape[1:]).where(known, torch.nan)

    setup = setup_of(tmp_path, weigh)
    batch = scored([Prompt(str(p), "q", "1") for p in range(3)], [[True, False]] * 3, valid)
    found = Learned(setup, setup.schedule()).weigher(batch, 1)
    for groups in ([0, 1, 2], [2], [1, 0]):
        wanted = torch.tensor([valid[group] for group in groups]).float()
        weights = found(0, groups)
        assert weights.shape == (len(groups), *shape[1:])
        assert torch.equal(weights, wanted if len(shape) == 2 else wanted[..., None].expand_as(weights))


# -- the history of prompts


def test_a_stage_that_asks_for_it_gets_history_resampling(tmp_path: Path) -> None:
    assert type(setup_of(tmp_path, needs=Needs(resample=True)).schedule()) is HistoryResampling
    assert type(setup_of(tmp_path).schedule()) is Schedule


def test_batches_tell_the_schedule_what_was_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """p0 and p2 are always solved: the first epoch visits all four prompts, the second only the other two."""

    def rewarded(rollouts: Rollouts, *_: Any) -> Rollouts:
        right = [[prompt.id in ("p0", "p2")] * 3 for prompt in rollouts.prompts]
        made = scored(rollouts.prompts, right)
        return replace(rollouts, rewards_PK=made.rewards_PK, valid_PK=made.valid_PK, correct_PK=made.correct_PK)

    monkeypatch.setattr(batches_module, "rewarded", rewarded)
    setup = setup_of(tmp_path, needs=Needs(resample=True))
    batches = setup.batches(setup.schedule())
    seen = [[prompt.id for prompt in batches.batch(step).prompts] for step in (1, 2, 3, 4)]
    assert sorted(seen[0] + seen[1]) == ["p0", "p1", "p2", "p3"]
    assert sorted(seen[2]) == sorted(seen[3]) == ["p1", "p3"]
    assert batches.metrics["prompts/epoch"] == 2 and batches.metrics["prompts/left"] == 2


# -- roll-backs


def groups_of(policy: Policy, suite: RewardSuite) -> SampledBatches:
    return SampledBatches(policy, Schedule(stream_of(20)), suite, CONFIG, CONFIG.stages[0])


def test_a_batch_under_way_is_dropped_when_the_policy_is_replaced() -> None:
    """The next batch is of the new policy, for the prompts that the dropped one was for; none is left out."""
    suite, policy, best = RewardSuite(CONFIG.rewards), tiny_policy(), tiny_policy(seed=5)
    ahead = PrefetchedBatches(groups_of(frozen_copy(policy), suite), policy)
    first = ahead.batch(1)  # and begins the second, with the policy as it is
    copy_parameters(parameters(best), policy)
    ahead.drop(2)
    assert list(ahead.state()) == ["groups"], "nothing is under way"
    found = ahead.batch(2)
    ahead.close()
    alone = groups_of(best, suite)
    assert [prompt.id for prompt in alone.schedule.take(2)] == [prompt.id for prompt in first.prompts]
    wanted = alone.batch(2)
    assert [prompt.id for prompt in found.prompts] == [prompt.id for prompt in wanted.prompts]
    assert found.texts == wanted.texts and torch.equal(found.rollout_logprobs_PKT, wanted.rollout_logprobs_PKT)
    assert found.staleness == 0


@pytest.mark.parametrize("action", ["slower", "end"])
def test_the_trainer_drops_it_when_a_stage_goes_back(action: Any, tmp_path: Path) -> None:
    """After the policy was rolled back, so that what is sampled next is of the best policy."""
    calls: list[Any] = []
    trainer: Any = Trainer.__new__(Trainer)
    trainer.setup = setup_of(tmp_path, guard={"watch": "reward", "every": 4, "then": "slower", "factor": 0.5})
    trainer.config, trainer.stopping = trainer.setup.config, EarlyStopping(trainer.setup.config)
    trainer.stopping.best, trainer.stopping.guard.slowed = Best(2, [1.0]), 1
    trainer.progress = SimpleNamespace(step=6)
    trainer.checkpoints = SimpleNamespace(whole=lambda step: f"checkpoint of {step}")
    trainer.learned = SimpleNamespace(roll_back=lambda *arguments: calls.append(("roll back", *arguments)))
    trainer.batches = SimpleNamespace(drop=lambda step: calls.append(("drop", step)))
    trainer._act(RuleEvent(6, "guard", action, "why"))
    assert calls == ([("roll back", "checkpoint of 2", 0.5), ("drop", 7)] if action == "slower" else [])
