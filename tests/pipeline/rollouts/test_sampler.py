"""The sampler: what it records is what training sees, and a draw depends on its key alone."""

from __future__ import annotations

import pytest
import torch
from sampled_models import ARCHITECTURES, DRAW, make_endings_likely, policy_with
from transformers import GenerationConfig

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.rollouts.builtin import DrawKey, draw_tokens, sample, truncate
from gradus.pipeline.types import Prompt

OPTIONS = SamplingConfig(max_tokens=12)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_recorded_logprobs_are_those_of_a_training_forward(architecture, prompts):
    policy = policy_with(architecture)
    make_endings_likely(policy)
    rollouts = sample(policy, prompts, 5, OPTIONS, DRAW)
    assert len(set(rollouts.lengths_PK.flatten().tolist())) > 2, "lengths must differ for the test to mean something"
    again = batch_logprobs(policy, rollouts, 1.0, token_budget=300)
    torch.testing.assert_close(again, rollouts.rollout_logprobs_PKT, rtol=0, atol=1e-5)


def test_greedy_equals_generate(policy, prompts):
    make_endings_likely(policy, bias=0.5)
    rollouts = sample(policy, prompts, 1, OPTIONS, draw=None)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=12, eos_token_id=list(policy.template.eos_ids), pad_token_id=0
    )
    for p, tokens in enumerate(rollouts.prompt_tokens):
        ids = torch.tensor([tokens])
        expected = policy.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        length = int(rollouts.lengths_PK[p, 0])
        assert rollouts.tokens_PKT[p, 0, :length].tolist() == expected[0, len(tokens) :].tolist()


def test_a_batch_split_differently_draws_the_same_tokens(policy, prompts):
    make_endings_likely(policy)
    whole = sample(policy, prompts, 4, OPTIONS, DRAW)
    one_by_one = sample(policy, prompts, 4, OPTIONS.model_copy(update={"token_budget": 1}), DRAW)
    reverse = sample(policy, prompts[::-1], 4, OPTIONS, DRAW)
    assert one_by_one.texts == whole.texts == reverse.texts[::-1]
    fewer = sample(policy, prompts[1:2], 2, OPTIONS, DRAW)
    assert fewer.texts[0] == whole.texts[1][:2]


@pytest.mark.parametrize("other", [DrawKey(1, "a", 1), DrawKey(0, "b", 1), DrawKey(0, "a", 2)])
def test_every_part_of_the_key_changes_the_draw(policy, prompts, other):
    assert sample(policy, prompts, 4, OPTIONS, DRAW).texts != sample(policy, prompts, 4, OPTIONS, other).texts


def test_samples_of_a_group_differ_and_global_random_state_does_not_matter(policy, prompts):
    first = sample(policy, prompts[:1], 8, OPTIONS, DRAW)
    torch.manual_seed(999)
    assert first.texts == sample(policy, prompts[:1], 8, OPTIONS, DRAW).texts
    assert len(set(first.texts[0])) > 4


def test_frequencies_follow_the_policy():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    uniforms = torch.from_numpy(DRAW.uniforms("p", 0, 20_000))
    tokens, logprobs, entropy = draw_tokens(probabilities.log().expand(20_000, 4), uniforms, OPTIONS)
    counts = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(counts, probabilities, rtol=0, atol=0.015)  # four standard errors
    torch.testing.assert_close(logprobs.exp(), probabilities[tokens])
    # -(0.5 ln 0.5 + 0.2 ln 0.2 + 0.3 ln 0.3) = 0.346574 + 0.321888 + 0.361192
    assert entropy[0].item() == pytest.approx(1.029653, rel=1e-5)


def test_temperature_scales_what_is_drawn_and_what_is_recorded():
    logits = torch.tensor([[1.0, 0.0]])
    _, logprob, _ = draw_tokens(logits, torch.tensor([0.0]), SamplingConfig(temperature=0.5))
    assert logprob.item() == pytest.approx(-0.126928, rel=1e-5)  # -ln(1 + e^-2)


def test_truncation():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    top_2 = truncate(probabilities, SamplingConfig(top_k=2))
    torch.testing.assert_close(top_2, torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    # sorted 0.4, 0.3, 0.2, 0.1: 0.4 + 0.3 reaches 0.6
    torch.testing.assert_close(truncate(probabilities, SamplingConfig(top_p=0.6)), top_2)
    only_best = truncate(probabilities, SamplingConfig(top_p=1e-9))
    torch.testing.assert_close(only_best, torch.tensor([[0.0, 0.4, 0.0, 0.0]]))


def test_a_draw_at_the_very_end_stays_inside_the_vocabulary():
    token, _, _ = draw_tokens(torch.zeros(1, 3), torch.tensor([1.0]), OPTIONS)
    assert 0 <= token.item() < 3


def test_truncated_means_that_no_end_was_drawn(policy, prompts):
    make_endings_likely(policy)
    rollouts = sample(policy, prompts, 6, OPTIONS, DRAW)
    last = rollouts.tokens_PKT.gather(-1, rollouts.lengths_PK[..., None] - 1)[..., 0]
    assert torch.equal(rollouts.truncated_PK, last != policy.template.eos_ids[0])
    assert rollouts.truncated_PK.any() and not rollouts.truncated_PK.all()
    assert (rollouts.rollout_logprobs_PKT[~rollouts.mask_PKT] == 0).all()


@pytest.mark.parametrize(("budget", "group_size", "longest"), [(200, 1, 12), (200, 2, 12), (400, 1, 20)])
def test_a_completion_may_reach_its_greatest_length_among_many_that_began_later(budget, group_size, longest):
    """Few rows are full then, too few to be dropped for their number."""
    policy = policy_with({})
    make_endings_likely(policy, 1.5)
    questions = [Prompt(f"p{n}", f"{n}+{n} =", "1") for n in range(40)]
    tight = sample(policy, questions, group_size, SamplingConfig(max_tokens=longest, token_budget=budget), DRAW)
    at_once = sample(policy, questions, group_size, SamplingConfig(max_tokens=longest), DRAW)
    assert tight.truncated_PK.any() and torch.equal(tight.tokens_PKT, at_once.tokens_PKT)
    assert tight.texts == at_once.texts and torch.equal(tight.mask_PKT, at_once.mask_PKT)


def test_prompt_states_are_the_last_hidden_state_of_each_prompt(policy, prompts):
    rollouts = sample(policy, prompts, 2, OPTIONS, DRAW, return_prompt_states=True)
    for p, tokens in enumerate(rollouts.prompt_tokens):
        output = policy.model(torch.tensor([tokens]), output_hidden_states=True)
        torch.testing.assert_close(rollouts.prompt_states_PD[p], output.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-5)
