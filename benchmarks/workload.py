"""The work that is measured: models with random weights, prompts, and the length of every completion.

Lengths are set in advance from a seed, for each step, prompt and completion: ``fixed`` ones run to the limit;
``variable`` ones end at each token with a probability for which their mean is about half the limit (1/32 where that is
48). The systems
that are measured need no change for this. gradus draws its tokens by inverting the cumulative distribution at numbers
from a :class:`DrawKey`; :class:`Scheduled` gives it numbers that select the end-of-sequence token (id 0, at the start
of the distribution) exactly when it is due and never before. `generate` gets a logits processor that writes one
column, to the same effect (:class:`EndOnSchedule`). So every system computes completions of the same lengths at the
same step, and each of them checks this.

Rewards are 0 or 1, alternating within a group. Where half of the groups are to be uniform, every second group has only
rewards of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from benchmarks.measuring import Clock, peak_memory
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor, PreTrainedTokenizerFast

from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.policy.loading import ready
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.prompts import Template
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

END, PAD = 0, 1
END_RATE = 1.5
"""Divided by the limit, the probability that a completion of varying length ends at a token."""
Device = Literal["cpu", "cuda"]
EDGE = 0.5
"""Draws stay above this, so that the end-of-sequence token, always less probable, is drawn only where it is due."""

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "qwen3",
        "vocab_size": 64,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 512,
        "tie_word_embeddings": True,
    },
    "small": {
        "model_type": "qwen3",
        "vocab_size": 2000,
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 64,
        "intermediate_size": 1024,
        "tie_word_embeddings": True,
    },
    # The shapes of google/gemma-3-270m, whose vocabulary holds nearly two thirds of its parameters.
    "gemma": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 2048,
        "sliding_window": 512,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Case:
    """One kind of work."""

    name: str
    model: dict[str, Any]
    variable: bool
    prompts: int = 8
    group_size: int = 8
    prompt_tokens: int = 16
    new_tokens: int = 48
    uniform_groups: bool = False
    """Every second group has equal rewards."""
    steps_a_turn: int = 1
    """Steps between two changes of turn."""

    def lengths(self, step: int) -> np.ndarray:
        """Tokens of each completion, its end included; ``new_tokens + 1`` where it runs to the limit.

        Shapes: -> int [P, K].
        """
        shape, limit = (self.prompts, self.group_size), self.new_tokens + 1
        if not self.variable:
            return np.full(shape, limit)
        return np.minimum(np.random.default_rng([1, step]).geometric(END_RATE / self.new_tokens, shape), limit)

    def rewards(self) -> Tensor:
        """Shapes: -> float32 [P, K]."""
        rewards_PK = (torch.arange(self.group_size) % 2).float().repeat(self.prompts, 1)
        if self.uniform_groups:
            rewards_PK[::2] = 0.0
        return rewards_PK

    def questions(self, step: int) -> list[Prompt]:
        """P prompts of ``prompt_tokens`` random words."""
        words = np.random.default_rng([2, step]).integers(
            2, self.model["vocab_size"], (self.prompts, self.prompt_tokens)
        )
        texts = [" ".join(f"w{word}" for word in row) for row in words]
        return [Prompt(id=f"{step}-{p}", question=text, answer="") for p, text in enumerate(texts)]


def _cases() -> dict[str, Case]:
    cases = []
    for name, turn in (("tiny", 3), ("small", 1)):
        model = MODELS[name]
        base = Case(f"{name} fixed", model, variable=False, steps_a_turn=turn)
        variable = replace(base, name=f"{name} variable", variable=True)
        uniform = replace(variable, name=f"{name} uniform", uniform_groups=True)
        long = replace(variable, name=f"{name} long", prompts=4, group_size=16, prompt_tokens=256, steps_a_turn=1)
        cases += [base, variable, long, uniform]
    cases.append(Case("gemma variable", MODELS["gemma"], variable=True, prompts=2, group_size=4))
    return {case.name: case for case in cases}


CASES = _cases()
"""By name; `long` has prompts of 256 tokens and K = 16, in `uniform` half of the groups have equal rewards."""


def make_policy(
    model: dict[str, Any], seed: int = 0, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> Policy:
    """Random weights, the same for the same seed, and a tokenizer with a word for each number of the vocabulary.

    The weights are drawn on ``device``, which gives other ones on another kind of device.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<end>": END, "<pad>": PAD} | {f"w{number}": number for number in range(2, model["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    options = {name: value for name, value in model.items() if name != "model_type"}
    config = AutoConfig.for_model(model["model_type"], bos_token_id=None, eos_token_id=END, pad_token_id=PAD, **options)
    torch.manual_seed(seed)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    template = Template("plain", "{question}", (END,), PAD)
    return ready(network, wrapped, template, PolicyConfig(architecture=model, device=device))


@dataclass(frozen=True)
class Scheduled(DrawKey):
    """Random numbers of which the one at a completion's last token selects its end; see the module."""

    lengths: np.ndarray | None = None

    def uniforms(self, prompt_id: str, index: int, count: int) -> np.ndarray:
        """``count`` numbers in [EDGE, 1), with a 0 where the completion ends."""
        numbers = EDGE + (1 - EDGE) * super().uniforms(prompt_id, index, count)
        assert self.lengths is not None
        last = int(self.lengths[int(prompt_id.partition("-")[2]), index]) - 1
        if last < count:
            numbers[last] = 0.0
        return numbers


class EndOnSchedule(LogitsProcessor):
    """Makes each row of `generate` end exactly where it is due."""

    def __init__(self, lengths: np.ndarray, prompt_tokens: int):
        self.lengths, self.prompt_tokens = torch.from_numpy(lengths.reshape(-1)), prompt_tokens

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Write the column of the end-of-sequence token: certain where it is due, impossible elsewhere."""
        due = self.lengths == input_ids.shape[1] - self.prompt_tokens + 1
        scores[:, END] = torch.where(due, 1e9, -torch.inf)
        return scores


class Gradus:
    """The trainer's loop without its journal: sample, score, weigh, update; seconds and tokens go to ``clock``."""

    def __init__(
        self, case: Case, policy: Policy | None = None, lr: float = 1e-4, autocast: bool = False, **stage_options: Any
    ):
        stage = discover()["dapo"]
        self.policy = policy or make_policy(case.model)
        self.case, self.clock, self.stage = case, Clock(waiting(self.policy.device)), stage
        options: dict[str, Any] = {"steps": 10**6, "lr": lr, "warmup": 0, "group_size": case.group_size}
        self.config = stage.config(stage="dapo", **options | stage_options)
        self.options = SamplingConfig(max_tokens=case.new_tokens)
        self.learner = Learner(self.policy, self.config, self.options.temperature, autocast)

    def step(self, number: int) -> Rollouts:
        """One whole step."""
        with self.clock("step"):
            with self.clock("sample"):
                rollouts = self.sample(number)
            rollouts = self.score(rollouts)
            with self.clock("learn"):
                self.update(rollouts, number)
        self.clock.add("tokens", float(rollouts.mask_PKT.sum()))
        assert rollouts.lengths_PK.tolist() == expected(self.case, number), (
            "a completion ended before or after its time"
        )
        return rollouts

    def sample(self, number: int) -> Rollouts:
        """K completions of each prompt of a step."""
        draw = Scheduled(0, "benchmark", number, lengths=self.case.lengths(number))
        return sample(self.policy, self.case.questions(number), self.case.group_size, self.options, draw)

    def score(self, rollouts: Rollouts) -> Rollouts:
        """The case's rewards, every completion valid."""
        rewards_PK = self.case.rewards()
        return rollouts.with_rewards(rewards_PK=rewards_PK, valid_PK=torch.ones_like(rollouts.truncated_PK))

    def update(self, rollouts: Rollouts, number: int) -> dict[str, float]:
        """One optimizer step."""
        assert rollouts.rewards_PK is not None
        signals = Signals(rewards_PK=rollouts.rewards_PK, lengths_PK=rollouts.lengths_PK)
        metrics, _ = self.learner.update(rollouts, number, lambda _, groups: self.stage.weigh(signals, self.config))
        return metrics


def waiting(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done everything that it was asked for."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def peak(device: torch.device) -> float:
    """Bytes: the most that tensors have held on a GPU since the last reset, or else that this process has held."""
    return float(torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory())


def expected(case: Case, step: int) -> list[list[int]]:
    """What the completions' lengths must be, P x K."""
    return np.minimum(case.lengths(step), case.new_tokens).tolist()
