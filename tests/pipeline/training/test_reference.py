"""The reference policy: what the log-ratio to it is, at which steps it is refreshed, and that it draws for itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scored_batches import stream_of
from small_pipeline import pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.policy.forward.padded import completion_logprobs
from gradus.pipeline.policy.policy import Policy, copied
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Needs
from gradus.pipeline.tracking.journal import SilentJournal
from gradus.pipeline.training.learned import Learned
from gradus.pipeline.training.setup import Setup
from gradus.pipeline.training.signals import SignalProvider
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

CONFIG = pipeline([{"stage": "srpo", "baseline": "mean", "steps": 9, "prompts_per_step": 4, "group_size": 3}])


def provider_of(policy: Policy, refresh: int) -> SignalProvider:
    needs = Needs(reference=True, log_ratio=True, refresh_reference=refresh)
    unused: Any = lambda reference: None  # noqa: E731
    return SignalProvider(needs, CONFIG.stages[0], policy, CONFIG.sampling, unused)


def move(policy: Policy, factor: float = 1.3) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(factor)


def logprobs_of(model: Any, policy: Policy, rollouts: Rollouts) -> torch.Tensor:
    """Log-probabilities of the tokens under a model, in float64, 0 on padding."""
    other = Policy(model, policy.tokenizer, policy.template)
    rows = [
        completion_logprobs(other, [tokens] * 3, rollouts.tokens_PKT[p], 1.0).detach().double()
        for p, tokens in enumerate(rollouts.prompt_tokens)
    ]
    return torch.stack(rows) * rollouts.mask_PKT


@pytest.fixture
def rollouts(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    batch = sample(policy, prompts, 3, CONFIG.sampling, DrawKey(0, "s", 1))
    shape = batch.truncated_PK.shape
    return batch.with_rewards(rewards_PK=torch.zeros(shape), valid_PK=torch.ones(shape, dtype=torch.bool))


def test_the_log_ratio_is_the_sum_over_a_completion_s_tokens(policy: Policy, rollouts: Rollouts) -> None:
    """log pi(y|x) - log pi_ref(y|x), of whole completions, however long: in float64, token by token."""
    provider, start = provider_of(policy, refresh=0), copied(policy)
    move(policy)
    found = provider.of(provider.prepared(rollouts, 2), 2)(1, [0, 3]).log_ratio_PK
    wanted = (logprobs_of(policy.model, policy, rollouts) - logprobs_of(start, policy, rollouts)).sum(-1)[[0, 3]]
    assert len(rollouts.lengths_PK[[0, 3]].unique()) > 1 and wanted.abs().min() > 1e-3, "or the test shows nothing"
    assert found is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("refresh", "refreshed_at"), [(3, [4, 7]), (1, [2, 3, 4, 5, 6, 7, 8]), (0, [])])
def test_the_reference_is_refreshed_after_so_many_steps(policy: Policy, refresh: int, refreshed_at: list[int]) -> None:
    """With 3: the steps 1, 2 and 3 have the stage's start, 4, 5 and 6 what those three steps have made of it, ..."""
    provider, found = provider_of(policy, refresh), list[int]()
    assert provider.reference is not None
    for step in range(1, 9):
        before = weights_of(provider.reference)
        provider.begin(step)
        now = weights_of(provider.reference)
        if not torch.equal(before, now):
            assert torch.equal(now, weights_of(policy)), "the weights that the step begins with"
            found.append(step)
        move(policy, 1.01)  # the step's update
    assert found == refreshed_at
    assert ("reference" in provider.state()) == bool(refreshed_at)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def test_a_policy_and_its_reference_draw_apart(prompts: list[Prompt], tmp_path: Path) -> None:
    """With equal weights, equal prompts and the same step, because equal draws would always have equal rewards."""
    stage, task = discover()["srpo"], {"": SimpleNamespace(train=stream_of(8).dataset, name="", given={})}
    options: Any = {"folder": tmp_path, "parent_folder": tmp_path, "parent": "p", "fingerprint": "f"}
    suite, journal = RewardSuite(CONFIG.rewards), SilentJournal(tmp_path / "journal.jsonl")
    fixed: Any = (tiny_policy(), stage, CONFIG.stages[0], CONFIG, task, suite, journal, Observer())
    setup = Setup(*fixed, **options)
    schedule = setup.schedule()
    batches: Any = setup.batches(schedule)
    reference = Learned(setup, schedule).signals.reference_groups
    assert reference is not None
    own, other = batches.of(prompts, 1).texts, reference.of(prompts, 1).texts
    assert own == batches.of(prompts, 1).texts and other == reference.of(prompts, 1).texts
    equal = [one == two for mine, its in zip(own, other, strict=True) for one, two in zip(mine, its, strict=True)]
    assert sum(equal) <= 2, "of 12 completions; two short ones may be equal by chance"
