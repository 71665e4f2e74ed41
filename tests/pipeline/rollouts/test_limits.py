"""Stop texts, a shortest length and banned tokens: what is drawn changes, and what is recorded remains the policy's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chat_models import described, load
from pydantic import ValidationError
from small_pipeline import pipeline, write_task

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.config.options import differences, identity
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.execution.prepare import starting_policy
from gradus.pipeline.policy.forward.logprobs import batch_logprobs_and_entropies
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.prompt_lengths import check_ban
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.rollouts.builtin.draw import draw_tokens
from gradus.pipeline.rollouts.builtin.limits import Limits
from gradus.pipeline.rollouts.vllm.checks import check_rollouts
from gradus.pipeline.tasks.several.build import build_tasks
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

DRAW = DrawKey(3, "limits", 1)


def drawn(policy: Policy, prompts: list[Prompt], draw: DrawKey | None = DRAW, **options: object) -> Rollouts:
    return sample(policy, prompts, 6, SamplingConfig(**{"max_tokens": 24, **options}), draw)  # type: ignore[arg-type]


def rows(rollouts: Rollouts) -> list[list[int]]:
    """The tokens of each completion."""
    tokens, lengths = rollouts.tokens_PKT.flatten(0, 1).tolist(), rollouts.lengths_PK.flatten().tolist()
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def is_honest(policy: Policy, rollouts: Rollouts, temperature: float = 1.0) -> bool:
    """Whether log-probabilities and entropies are those that the policy gives to these tokens, without any limit."""
    logprobs, entropies = batch_logprobs_and_entropies(policy, rollouts, temperature, 10_000)
    assert rollouts.entropy_PKT is not None
    close = torch.allclose(rollouts.rollout_logprobs_PKT, logprobs, atol=1e-4)
    return close and torch.allclose(rollouts.entropy_PKT, entropies, atol=1e-4)


def test_no_completion_is_shorter_than_the_shortest(policy: Policy, prompts: list[Prompt]) -> None:
    often = tuple({*policy.template.eos_ids, *rows(drawn(policy, prompts))[0][:3]})  # tokens that would end it early
    policy.template = replace(policy.template, eos_ids=often)
    free, bound = drawn(policy, prompts), drawn(policy, prompts, min_tokens=9)
    assert int(free.lengths_PK.min()) < 9 <= int(bound.lengths_PK.min()) and not bound.truncated_PK.all()
    assert not any(token in often for row in rows(bound) for token in row[:8])
    assert is_honest(policy, bound)
    greedy = drawn(policy, prompts, None, min_tokens=9, temperature=0.7)
    assert int(greedy.lengths_PK.min()) >= 9 and is_honest(policy, greedy, 0.7)


@pytest.mark.parametrize("draw", [DRAW, None])
def test_banned_tokens_are_never_drawn(policy: Policy, prompts: list[Prompt], draw: DrawKey | None) -> None:
    free = {token for row in rows(drawn(policy, prompts, draw)) for token in row}
    banned = sorted(free - {*policy.template.eos_ids})[:5]
    entries = [banned[0], *policy.tokenizer.convert_ids_to_tokens(banned[1:])]
    for more in ({}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.5}):
        bound = drawn(policy, prompts, draw, ban=entries, **more)
        assert not {token for row in rows(bound) for token in row} & {*banned}
        assert is_honest(policy, bound, more.get("temperature", 1.0))


def test_what_is_left_is_drawn_in_proportion() -> None:
    logits, forbidden = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(6_000, 4), torch.zeros(6_000, 4).bool()
    forbidden[:, 1] = True
    uniforms = ((torch.arange(6_000, dtype=torch.float64) + 0.5) / 6_000).float()
    tokens, _, _ = draw_tokens(logits, uniforms, SamplingConfig(), forbidden)
    assert torch.bincount(tokens, minlength=4).tolist() == pytest.approx([1_000, 0, 2_000, 3_000], abs=3)
    nothing = torch.tensor([[0.0, 1e4, 0.0, 1.0]])  # what is allowed has no probability in float32
    assert draw_tokens(nothing, torch.tensor([0.5]), SamplingConfig(), forbidden[:1])[0].tolist() == [3]


def test_a_stop_text_ends_a_completion_and_stays_in_it(policy: Policy, prompts: list[Prompt]) -> None:
    longest = max(rows(drawn(policy, prompts)), key=len)
    stop = policy.decode(longest[3:6])  # of several tokens
    for shortest in (1, 12):
        whole, bound = rows(drawn(policy, prompts, min_tokens=shortest)), None
        for budget in (65_536, 200):  # in one batch and in several
            found = drawn(policy, prompts, stop=[stop, "never written"], token_budget=budget, min_tokens=shortest)
            assert bound is None or (torch.equal(found.tokens_PKT, bound.tokens_PKT) and found.texts == bound.texts)
            bound = found
        assert bound is not None and is_honest(policy, bound)
        stopped, cuts = 0, [text for group in bound.texts for text in group]
        for row, cut, text, truncated in zip(whole, rows(bound), cuts, bound.truncated_PK.flatten(), strict=True):
            written = [policy.decode(row[:n]).count(stop) for n in range(len(row) + 1)]
            places = [n for n in range(shortest, len(row) + 1) if written[n] > written[n - 1]]
            assert cut == row[: places[0] if places else len(row)] and text == policy.decode(cut)
            assert not (places and truncated)
            stopped += bool(places) and text.endswith(stop)
        assert stopped or shortest > 1


@pytest.mark.parametrize("entry", ["12 + 34", 10**6])
def test_a_ban_of_what_is_no_token_is_refused(policy: Policy, prompts: list[Prompt], entry: str | int) -> None:
    with pytest.raises(UserError, match="no single token") as caught:
        drawn(policy, prompts, ban=[entry])
    assert caught.value.where == "sampling.ban"


@pytest.mark.parametrize(
    "options", [{"min_tokens": 25}, {"min_tokens": 0}, {"stop": [""]}, {"ban": [-1]}, {"ban": [""]}]
)
def test_impossible_limits_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        SamplingConfig(max_tokens=24, **options)


@pytest.mark.parametrize("options", [{"stop": ["\n"]}, {"min_tokens": 2}, {"ban": [3]}])
def test_vllm_takes_none_of_them(options: dict) -> None:
    for place in ({"sampling": options}, {}):
        stage = {"stage": "dapo"} if place else {"stage": "dapo", "sampling": options}
        with pytest.raises(UserError, match="vLLM engines take no") as caught:
            check_rollouts(pipeline([stage], rollouts={"engine": "vllm"}, **place))
        assert caught.value.where == f"sampling.{next(iter(options))}"


def test_runs_of_earlier_versions_are_what_they_were() -> None:
    """Their stages were begun before these options existed."""
    earlier = {"max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert differences(earlier, identity(SamplingConfig())) == []
    assert differences(earlier, identity(SamplingConfig(stop=["x"]))) == ['stop: null -> ["x"]']


def test_a_ban_of_what_is_no_token_is_found_before_the_run_begins(chat: Path, tmp_path: Path) -> None:
    policy = load(chat)
    texts = [*policy.tokenizer.get_vocab(), *(policy.decode([n]) for n in range(len(policy.tokenizer)))]
    texts += ["<|im_end|>", " 7", "7", "Calculate", " answer", "assistant", "12 + 34", "no such", "\n", "é"]
    one = [text for text in dict.fromkeys(texts) if text and _is_one(policy, text)]
    assert len(one) > 200 and len(one) < len(texts)
    of_folder = PolicyConfig(path=str(chat))
    check_ban(of_folder, [*one, 0, policy.model.get_input_embeddings().num_embeddings - 1], "sampling")
    write_task(tmp_path)
    for ban, got in (("12 + 34", "which is"), ("é è", "which is"), (10**6, "1000000")):
        config = pipeline(
            [{"stage": "dapo", "sampling": {"max_tokens": 4, "ban": [ban]}}, {"stage": "gfpo"}],
            policy={"path": str(chat), "device": "cpu"}, sampling={"ban": ["7", ban]},
        )  # fmt: skip
        with pytest.raises(UserError, match="2 problems") as caught:
            preflight(config, tmp_path, discover())
        told = str(caught.value)
        assert "stages.dapo.sampling.ban" in told and told.count(got) == 2 and told.count("no single token") == 2
    described(shutil.copytree(chat, tmp_path / "added"), "tokenizer_config.json",
              added_tokens_decoder={"9": {"content": "<late added>"}})  # fmt: skip
    check_ban(PolicyConfig(path=str(tmp_path / "added")), ["<late added>"], "sampling")


def test_a_ban_of_a_new_policy_is_found_before_it_is_measured(tmp_path: Path) -> None:
    write_task(tmp_path)
    config = pipeline([{"stage": "dapo"}, {"stage": "gfpo", "sampling": {"max_tokens": 4, "ban": [10**6]}}])
    assert preflight(config, tmp_path, discover()) == []
    tasks = build_tasks(config.named_tasks, tmp_path, tmp_path / "data")
    with pytest.raises(UserError, match="no single token") as caught:
        starting_policy(config, tasks, tmp_path, None)
    assert caught.value.where == "stages.gfpo.sampling.ban"


def _is_one(policy: Policy, text: str) -> bool:
    try:
        Limits(policy, SamplingConfig(ban=[text]))
    except UserError:
        return False
    return True
