"""The work that one stage gives to one device: what its memory and its time are estimated from.

This module does not import torch: it repeats the limits of the code that it describes, and a test keeps them equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.config.training.objective import PREVIOUS, START, chosen_policies
from gradus.pipeline.estimates.drawing import PLAIN, copies
from gradus.pipeline.estimates.model_size import model_size
from gradus.pipeline.stage import Needs

FLOAT = 4
"""Bytes of float32."""
SHARE_FROM, CACHE_BLOCK = 48, 16
"""The length from which a prompt is kept once per group, and the columns by which the cache grows
(:mod:`gradus.pipeline.rollouts.builtin.lean_engine`)."""
CELLS, CUDA_CELLS, FEWEST = 2**22, 2**26, 128
"""Logits of one piece of the head, and the fewest rows of a piece (:mod:`gradus.pipeline.policy.forward.lm_head`)."""
PARTS = 2
"""Parts in which an evaluation is sampled (:mod:`gradus.pipeline.training.evaluation`)."""


@dataclass(frozen=True)
class Load:
    """The work that one stage gives to one device."""

    label: str
    steps: int
    prompts: int
    """P, the prompts of a batch."""
    group: int
    """K; 1 for demonstrations."""
    prompt_tokens: int
    new_tokens: int
    sampled: bool = True
    """Whether completions are sampled."""
    reference: bool = False
    """Whether a frozen reference policy is held."""
    reference_sampled: bool = False
    others: int = 0
    """Further frozen policies of its size, references or teachers, that the stage's options choose."""
    other_parameters: int = 0
    """Weights of those that have a size of their own."""
    start: bool = False
    """Whether the policy at the start of the stage is held, to measure the distance from it."""
    ahead: bool = False
    """Whether a copy samples the next batch while this one trains."""
    token_critic: bool = False
    kl: bool = False
    """Whether the objective has a term of the divergence from a reference, whose log-probabilities it holds."""
    entropy: bool = False
    """Whether it has one of the entropy, whose gradient needs the probabilities of the whole vocabulary."""
    passes: float = 0.0
    """Forward passes of a step for log-probabilities of other policies, beside those of the updates."""
    updates: int = 1
    """Forward and backward passes of a batch."""
    pack_tokens: int = 16_384
    cache_tokens: int = 65_536
    head_cells: int = CELLS
    drawing: float = PLAIN
    greedy: float = PLAIN
    """Copies of the logits while tokens are drawn, and in an evaluation."""
    weight_bytes: int = FLOAT
    autocast: bool = False
    """Whether the learner computes its products in bfloat16."""
    checkpointing: bool = False
    lora_rank: int = 0
    """0 where the weights themselves are trained."""
    evaluated: int = 0
    """Prompts of an evaluation."""
    at_once: int = PARTS
    """Parts of an evaluation that are sampled at the same time."""
    external: bool = False
    """Whether another engine samples, with its own weights and cache."""
    engine_share: float = 0.0
    """Share of the device's memory that is reserved for an engine in the training process."""

    @classmethod
    def of(
        cls, config: PipelineConfig, stage: StageConfig, needs: Needs, prompt_tokens: int, cuda: bool, devices: int = 1
    ) -> Load:
        """The load of a stage on one of ``devices``, which share the prompts of a batch."""
        sampling, policy = stage.sampling or config.sampling, config.policy
        sampled = needs.completions == "policy"
        every = stage.kl_every if sampled else 0
        chosen = {option: set(by_task.values()) for option, by_task in chosen_policies(stage).items()}
        names, known = set().union(*chosen.values()) - {PREVIOUS}, {START, *(each.label for each in config.stages)}
        sizes = {name: size for name in names - known if (size := _parameters(config, name))}
        compares = needs.reference_reads(stage)
        passes = float(compares) + needs.teacher_logprobs + (1 / every if every else 0.0)
        passes += float(stage.old_logprobs == "recompute" or stage.masks or needs.completions == "pairs")
        again = needs.log_ratio or needs.policy_scores or needs.policy_logprobs
        passes += again * (stage.updates_per_batch * stage.minibatches - 1) / stage.minibatches
        return cls(
            label=stage.label,
            steps=stage.steps,
            prompts=math.ceil(stage.prompts_per_step / devices),
            group=stage.group_size,
            prompt_tokens=prompt_tokens,
            new_tokens=sampling.max_tokens,
            sampled=sampled,
            reference=(needs.reference or compares) and chosen.get("reference", {PREVIOUS}) == {PREVIOUS},
            others=len(names - sizes.keys()),
            other_parameters=sum(sizes.values()),
            reference_sampled=needs.reference_rewards,
            start=every > 0,
            ahead=bool(stage.async_),
            kl=bool(stage.kl),
            entropy=stage.entropy is not None,
            token_critic=needs.critic is not None and needs.critic.kind == "token",
            passes=passes,
            updates=stage.updates_per_batch,
            pack_tokens=stage.token_budget,
            cache_tokens=sampling.token_budget,
            head_cells=CUDA_CELLS if cuda else CELLS,
            drawing=copies(sampling, cuda),
            greedy=copies(config.sampling, cuda, greedy=True),
            weight_bytes=2 if policy.dtype in ("bfloat16", "float16") else FLOAT,
            autocast=policy.autocast == "bfloat16" or (policy.autocast == "auto" and cuda),
            checkpointing=stage.gradient_checkpointing,
            lora_rank=policy.lora.rank if policy.lora is not None else 0,
            evaluated=math.ceil(config.evaluated(stage) / devices),
            at_once=1 if cuda else PARTS,
            external=config.rollouts.external,
            engine_share=config.rollouts.memory if config.rollouts.engine == "vllm" and cuda else 0.0,
        )

    @property
    def rows(self) -> int:
        """Completions of a batch."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Tokens in the passes of an update: each prompt once per group, and each completion without its last token."""
        return self.prompts * self.prompt_tokens + self.rows * (self.new_tokens - 1)

    @property
    def packs(self) -> int:
        """The smallest number of packs that a batch is cut into."""
        return max(1, math.ceil((self.tokens + self.rows) / self.pack_tokens))

    def shares(self, group: int) -> bool:
        """Whether the sampler keeps a prompt once for a group of this size."""
        return group > 1 and self.prompt_tokens >= SHARE_FROM

    def growing(self, prompts: int, group: int) -> int:
        """Completions that grow at the same time: as many whole groups as the cache may hold."""
        held = self.prompt_tokens * (1 if self.shares(group) else group) + group * self.new_tokens
        return group * min(prompts, max(1, self.cache_tokens // held))


def _parameters(config: PipelineConfig, name: str) -> int:
    """The weights of a model in a folder or on the Hub; 0 where its description is not on this machine."""
    try:
        return model_size(config.policy.model_copy(update={"path": name, "architecture": None})).parameters
    except UserError:
        return 0
