"""Where a stage's batches come from: groups that a policy samples, or the task's demonstrations. One interface."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from pipeline.config import PipelineConfig, SamplingConfig, StageConfig
from pipeline.policy import Policy
from pipeline.rewards import RewardSuite
from pipeline.sampler import DrawKey, sample
from pipeline.scoring import rewarded, unscored
from pipeline.tasks import PromptStream
from pipeline.training_state import State
from pipeline.types import Prompt, Rollouts


@dataclass
class Source:
    """Gives scored batches."""

    metrics: dict[str, float] = field(default_factory=dict, init=False)
    """Seconds and errors of the last batch."""
    failures: dict[str, str] = field(default_factory=dict, init=False)
    """label of a reward -> what its first failure so far said."""

    def batch(self, step: int) -> Rollouts:
        """The batch of step ``step``: a function of the run's seed, the stage, the step and the policy alone."""
        raise NotImplementedError

    def state(self) -> State:
        """What the next batch depends on besides the policy as it is now."""
        return {}

    def restore(self, state: State, step: int) -> None:
        """Go on from :meth:`state`, ``step`` being the next."""

    def close(self) -> None:
        """Stop whatever goes on in the background."""


class GivenUp(Exception):
    """Nobody wants the batch that is being sampled."""


@dataclass
class SampledGroups(Source):
    """K completions a prompt, sampled from a policy and scored."""

    policy: Policy
    stream: PromptStream
    suite: RewardSuite
    pipeline: PipelineConfig
    stage: StageConfig
    salt: str = ""
    """Sets the draws of a second source apart from those of the first, for the same prompts and step."""
    want_states: bool = False
    """Record the hidden state at each prompt's end."""
    given_up: bool = False
    """Set by another thread to end the sampling at the next group."""

    def batch(self, step: int) -> Rollouts:
        """Sample and score; ``time/reward`` is what scoring added, ``time/reward_hidden`` what it did meanwhile."""
        began = time.perf_counter()
        prompts = self.stream.batch(step - 1, self.stage.prompts_per_step)
        draw = DrawKey(self.pipeline.seed, self.stage.label + self.salt, step)
        size, options = self.stage.group_size, sampling_of(self.pipeline, self.stage)
        with self.suite.begin() as scoring:

            def on_group(index: int, texts: list[str]) -> None:
                if self.given_up:
                    raise GivenUp
                scoring.add(prompts[index], texts)

            rollouts = sample(self.policy, prompts, size, options, draw, self.want_states, on_group)
            scores = scoring.join(prompts, rollouts.texts)
        self.metrics = {
            "time/sample": time.perf_counter() - began - scores.seconds,
            "time/reward": scores.seconds,
            "time/reward_hidden": scores.hidden,
        }
        self.metrics |= {f"reward_errors/{label}": float(count) for label, count in scores.errors.items()}
        self.failures = scores.examples | self.failures
        return rewarded(rollouts, scores, self.pipeline.rewards)


@dataclass
class Demonstrations(Source):
    """One worked completion a prompt, written by the task."""

    policy: Policy
    stream: PromptStream
    stage: StageConfig

    def batch(self, step: int) -> Rollouts:
        """Tokenise the demonstrations."""
        prompts = self.stream.batch(step - 1, self.stage.prompts_per_step)
        return unscored(demonstrated(self.policy, prompts))


def demonstrated(policy: Policy, prompts: list[Prompt]) -> Rollouts:
    """Rollouts [P, 1] whose completions are the prompts' demonstrations; their sampling log-probability counts as 0."""
    texts = [prompt.demonstration or "" for prompt in prompts]
    completions = [policy.encode_completion(text) for text in texts]
    longest = max(map(len, completions))
    tokens = torch.tensor([c + [policy.template.pad_id] * (longest - len(c)) for c in completions])[:, None]
    mask_PKT = torch.arange(longest) < torch.tensor([len(c) for c in completions])[:, None, None]
    return Rollouts(
        prompts=prompts,
        prompt_tokens=[policy.encode_prompt(prompt.question) for prompt in prompts],
        tokens_PKT=tokens,
        mask_PKT=mask_PKT,
        rollout_logprobs_PKT=torch.zeros(tokens.shape),
        truncated_PK=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        texts=[[text] for text in texts],
    )


def sampling_of(pipeline: PipelineConfig, stage: StageConfig) -> SamplingConfig:
    """The stage's own sampling options, or the pipeline's."""
    return stage.sampling or pipeline.sampling
