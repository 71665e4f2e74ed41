"""The whole reinforcement learning loop on one page, on the parts of ``gradus.pipeline`` and without the pipeline.

    python examples/one_loop.py        # some ten seconds on two CPU cores

A policy with random weights is asked for sums. It is rewarded for an answer that is one number and nothing else, and
for a short one. At first that happens by chance, and what happens by chance is all that it learns from. Each step

    samples    a group of completions for every prompt,
    scores     each completion with the rewards,
    weighs     each completion with the pure function of a stage: the only line in which the algorithms differ,
    updates    the policy: log-probabilities are pushed up or down by these weights.

A pipeline adds what this page leaves out: data, evaluation, checkpoints that are resumed exactly, curves, several
stages, devices and processes.
"""

from __future__ import annotations

import argparse

import torch

from gradus.pipeline.config import PolicyConfig, RewardConfig, SamplingConfig
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.stage import Signals
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.types import Prompt
from gradus.stages import discover

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
REWARDS = [
    RewardConfig(reward="format", weight=0.5, params={"pattern": r"\s*[0-9]+\s*"}),
    RewardConfig(reward="length", weight=0.5, params={"min": 1, "max": 2, "falloff": 10}),
]
SAMPLING = SamplingConfig(max_tokens=12)
PROMPTS_PER_STEP, GROUP_SIZE = 4, 8
STAGE = discover()["dapo"]
"""An algorithm that needs rewards alone. Others declare in ``STAGE.needs`` which further signals must be filled in."""


def all_prompts() -> list[Prompt]:
    """Sums of two digits, each with its answer, which these rewards do not look at."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [Prompt(id=f"{a}+{b}", question=f"{a} + {b} =", answer=str(a + b)) for a, b in pairs]


def train(steps: int, seed: int = 0) -> tuple[list[float], float]:
    """Train a new policy; returns the mean reward of each step, and how far the weights have moved."""
    prompts = all_prompts()
    policy = create_policy(PolicyConfig(architecture=ARCHITECTURE, device="cpu"), [p.question for p in prompts], seed)
    config = STAGE.config(stage=STAGE.name, steps=steps, lr=1e-3, warmup=0)
    learner = Learner(policy, config, SAMPLING.temperature, needs=STAGE.needs(config))
    torch.set_num_threads(1)  # a model as small as this one is trained faster so
    before = torch.nn.utils.parameters_to_vector(policy.model.parameters()).detach().clone()
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    rewards = []
    with RewardSuite(REWARDS) as suite:
        for step in range(1, steps + 1):
            first = (step - 1) * PROMPTS_PER_STEP
            batch = [prompts[order[place % len(order)]] for place in range(first, first + PROMPTS_PER_STEP)]

            # Sample: the random numbers are a function of this key, so that the same step draws the same completions.
            rollouts = sample(policy, batch, GROUP_SIZE, SAMPLING, DrawKey(seed, STAGE.name, step))

            # Score: P lists of K scores for each reward.
            scores = suite.score(batch, rollouts.texts).components
            rewards_PK = torch.zeros(len(batch), GROUP_SIZE)
            for reward in REWARDS:
                rewards_PK += reward.weight * torch.tensor(scores[reward.label])

            # Weigh: what a stage sees, and the weights that it makes of it.
            signals = Signals(
                rewards_PK=rewards_PK,
                lengths_PK=rollouts.lengths_PK,
                mask_PKT=rollouts.mask_PKT,
                longest=SAMPLING.max_tokens,
            )
            weights_PK = STAGE.weigh(signals, config)

            # Update: weighted log-likelihood, backward, optimizer.
            metrics, _ = learner.update(rollouts, step, lambda update, groups, w=weights_PK: w[groups])

            rewards.append(float(rewards_PK.mean()))
            if step == 1 or step % 10 == 0:
                said = rollouts.texts[0][0].replace("\n", " ")
                norm = metrics["update/gradient_norm"]
                print(f"step {step:3}  reward {rewards[-1]:.3f}  gradient norm {norm:.2f}  {said!r}")
    after = torch.nn.utils.parameters_to_vector(policy.model.parameters()).detach()
    return rewards, float((after - before).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny policy with the function of one stage.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rewards, moved = train(given.steps, given.seed)
    print(f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}; the weights moved by {moved:.3f}")


if __name__ == "__main__":
    main()
