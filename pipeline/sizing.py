"""Memory that a stage takes, part by part, as a function of the model's size and the stage's options.

    held       weights, Adam's two moments, further copies (reference, start, one batch ahead, critic), the decoder's
               fused products
    sampling   held + key-value cache + the drawing of tokens
    learning   held + gradients + activations of one pack + the head's pieces

The larger one of the last two is the peak. Lengths are those of the configuration, every completion running to
``max_tokens``, so the peak is an upper bound where completions are shorter. ``benchmarks/sizing.py`` holds these
formulas against measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config import PipelineConfig, StageConfig
from pipeline.model_size import ModelSize
from pipeline.stage import Needs

FLOAT = 4
"""Bytes of float32."""
SHARE_FROM = 48
"""Prompt tokens from which the cache keeps a group's prompt once (:mod:`pipeline.sampler.lean`)."""
CACHE_BLOCK = 16
"""Columns by which the cache grows; old and new exist together at that moment."""
CELLS, FEWEST = 2**22, 128
"""Logits of a head's piece, and its rows at least (:mod:`pipeline.head`)."""
DRAWING = 4
"""Tensors [rows, vocabulary] while tokens are drawn: logits, probabilities, their finite copy, their running sum."""


@dataclass(frozen=True)
class Load:
    """What one stage asks of the machine, on one device."""

    label: str
    steps: int
    prompts: int
    """P, of a batch."""
    group: int
    """K; 1 for demonstrations."""
    prompt_tokens: int
    new_tokens: int
    sampled: bool = True
    """Whether completions are sampled."""
    reference: bool = False
    """Whether a frozen copy of the weights is held."""
    reference_sampled: bool = False
    start: bool = False
    """Whether the stage's start is held, to measure the distance from it."""
    ahead: bool = False
    """Whether a copy samples the next batch meanwhile."""
    token_critic: bool = False
    passes: float = 0.0
    """Forward passes a batch for log-probabilities of other policies, besides the update's own."""
    updates: int = 1
    pack_tokens: int = 16_384
    cache_tokens: int = 65_536
    weight_bytes: int = FLOAT
    autocast: bool = False
    """Whether products are taken in bfloat16."""
    checkpointing: bool = False
    evaluations: int = 2
    """Evaluations on ``evaluated`` prompts in the whole stage."""
    evaluated: int = 0

    @classmethod
    def of(cls, config: PipelineConfig, stage: StageConfig, needs: Needs, prompt_tokens: int, cuda: bool) -> Load:
        """A stage of a pipeline on a device that autocasts by default (``cuda``) or not."""
        sampling = stage.sampling or config.sampling
        sampled, narrow = needs.completions == "policy", config.policy.dtype in ("bfloat16", "float16")
        every = stage.kl_every if sampled else 0
        passes = float(needs.log_ratio) * stage.updates_per_batch + (1 / every if every else 0.0)
        passes += float(stage.old_logprobs == "recompute") + float(needs.policy_scores) * stage.updates_per_batch
        return cls(
            label=stage.label,
            steps=stage.steps,
            prompts=stage.prompts_per_step,
            group=stage.group_size if sampled else 1,
            prompt_tokens=prompt_tokens,
            new_tokens=sampling.max_tokens,
            sampled=sampled,
            reference=needs.reference,
            reference_sampled=needs.reference_rewards,
            start=every > 0,
            ahead=bool(stage.async_),
            token_critic=needs.critic is not None and needs.critic.kind == "token",
            passes=passes,
            updates=stage.updates_per_batch,
            pack_tokens=stage.token_budget,
            cache_tokens=sampling.token_budget,
            weight_bytes=2 if narrow else FLOAT,
            autocast=config.policy.autocast == "bfloat16" or (config.policy.autocast == "auto" and cuda),
            checkpointing=stage.gradient_checkpointing,
            evaluations=2 + (stage.steps // stage.eval_every if stage.eval_every else 0),
            evaluated=config.task.heldout,
        )

    @property
    def rows(self) -> int:
        """Completions of a batch."""
        return self.prompts * self.group

    @property
    def tokens(self) -> int:
        """Tokens of a batch's passes: a group's prompt once, and every completion but its last token."""
        return self.prompts * self.prompt_tokens + self.rows * (self.new_tokens - 1)

    @property
    def packs(self) -> int:
        """Packs that a batch is cut into."""
        return max(1, math.ceil((self.tokens + self.rows) / self.pack_tokens))

    @property
    def shares(self) -> bool:
        """Whether the cache keeps a group's prompt once."""
        return self.group > 1 and self.prompt_tokens >= SHARE_FROM

    @property
    def growing(self) -> int:
        """Completions that grow at a time, as many whole groups as the cache may hold."""
        group = self.prompt_tokens * (1 if self.shares else self.group) + self.group * self.new_tokens
        return self.group * min(self.prompts, max(1, self.cache_tokens // group))

    @property
    def cached(self) -> float:
        """Tokens in the cache when completions are at their end."""
        prompt = self.growing // self.group if self.shares else self.growing
        return prompt * self.prompt_tokens + self.growing * self.new_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: float
    moments: float
    """Adam's."""
    copies: float
    """Further policies: frozen ones, and a token critic with its own gradients and moments."""
    decoder: float
    """Fused products of every policy that samples."""
    cache: float
    drawing: float
    gradients: float
    activations: float
    head: float
    """Logits of a piece, and what the head's gradient needs besides the gradients."""

    @property
    def held(self) -> float:
        return self.weights + self.moments + self.copies + self.decoder

    @property
    def sampling(self) -> float:
        return self.held + self.cache + self.drawing

    @property
    def learning(self) -> float:
        return self.held + self.gradients + self.activations + self.head

    @property
    def peak(self) -> float:
        return max(self.sampling, self.learning)


def memory(size: ModelSize, load: Load, devices: int = 1) -> Memory:
    """What a stage holds on each device; with several, what the learner holds is cut into equal shards (FSDP2).

    The sampler's copy is whole on every device, and so is the one layer that is being computed.
    """
    weights, wide = size.parameters * load.weight_bytes, 2 if load.autocast else load.weight_bytes
    frozen = load.reference + load.start + load.ahead
    critic = 4 if load.token_critic else 0
    samplers = load.sampled + load.reference_sampled
    fused = size.fused * load.weight_bytes if devices == 1 else size.parameters * wide
    layer = 0 if devices == 1 else 2 * (size.linear // size.layers) * wide + size.vocabulary * size.width * wide
    return Memory(
        weights=weights / devices + layer,
        moments=2 * weights / devices,
        copies=(frozen + critic) * weights / devices,
        decoder=samplers * fused,
        cache=_cache_bytes(size, load) if load.sampled else 0.0,
        drawing=DRAWING * FLOAT * load.growing * size.vocabulary if load.sampled else 0.0,
        gradients=_gradient_bytes(size, load) / devices,
        activations=activation_bytes(size, load),
        head=_head_bytes(size, load),
    )


def _cache_bytes(size: ModelSize, load: Load) -> float:
    """The cache as it grows for the last time: the rows' columns exist twice, a shared prompt once."""
    number = size.cache * load.weight_bytes
    own = load.new_tokens + (0 if load.shares else load.prompt_tokens)
    prompts = load.growing // load.group * load.prompt_tokens if load.shares else 0
    return number * (prompts + load.growing * (2 * own + CACHE_BLOCK))


def activation_bytes(size: ModelSize, load: Load) -> float:
    """What the layers keep of one pack for the backward pass.

    Of a token in a layer: six vectors of the width (two residuals, and around each norm its result before and after
    its weight), queries, attended values twice, keys and values of all that a completion sees, gathered row by row, and
    four vectors of the MLP (gate, activated gate, up, product). Layers that are computed again keep one vector each.
    """
    share = min(1.0, load.pack_tokens / (load.tokens + load.rows))
    tokens, heads = load.tokens * share, size.heads * size.head_dim
    completed = load.rows * share * (load.new_tokens - 1)
    seen = load.prompts * share * load.prompt_tokens + load.rows * share * (load.prompt_tokens + load.new_tokens - 1)
    inner = 2 if load.autocast else load.weight_bytes
    residual = tokens * 6 * size.width * load.weight_bytes
    attention = (tokens * 3 + seen * 2) * heads * inner
    mlp = tokens * (4 if size.gated else 2) * size.inner * inner
    layer = residual + attention + mlp
    ends = (3 * tokens + 2 * (completed + load.rows * share)) * size.width * load.weight_bytes
    if load.checkpointing:
        return layer + size.layers * tokens * size.width * load.weight_bytes + ends
    cast = 2 * size.linear if load.autocast and load.weight_bytes == FLOAT else 0
    return size.layers * layer + ends + cast


def _gradient_bytes(size: ModelSize, load: Load) -> float:
    """Gradients beside the activations of a pack.

    With several packs those of the packs before are there. With one they appear as activations go, so at the peak
    there is the head's alone.
    """
    everything = size.parameters * load.weight_bytes
    head = size.vocabulary * size.width * load.weight_bytes
    return everything + head if load.packs > 1 else max(head, everything - activation_bytes(size, load))


def _head_bytes(size: ModelSize, load: Load) -> float:
    """Logits of a piece twice: themselves, and their exponentials while these are added up."""
    rows = min(max(FEWEST, CELLS // size.vocabulary), load.rows * load.new_tokens)
    return 2 * FLOAT * rows * size.vocabulary
