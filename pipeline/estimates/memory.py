"""Memory that a stage takes on a device, part by part, as a function of the model's size and the stage's options.

    held        weights, Adam's two moments, further policies (reference, start, one batch ahead, critic), and the
                products that the sampler fuses
    sampling    held + key-value cache + the drawing of tokens
    evaluating  the same with one completion a prompt
    learning    held + gradients + activations of one pack + logits of one piece

The largest of the last three is the peak. Completions are taken to run to ``max_tokens``, so that it is an upper bound
where they are shorter. Left out: what Python and the libraries take, and attention scores, which are small beside what
they are made of. ``benchmarks/sizing.py`` holds all this against measured peaks; ``docs/scaling.md`` has the figures.

No torch here: the limits that the code works within are repeated, and a test holds them to the originals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradus.pipeline.config import PipelineConfig, StageConfig
from gradus.pipeline.estimates.model_size import HEAD_NORMS, SANDWICH, ModelSize
from gradus.pipeline.stage import Needs

FLOAT = 4
"""Bytes of float32."""
SHARE_FROM, CACHE_BLOCK = 48, 16
"""Prompt tokens from which a group's prompt is kept once, and columns that the cache grows by
(:mod:`gradus.pipeline.rollouts.builtin.lean_engine`)."""
CELLS, FEWEST = 2**22, 128
"""Logits of a head's piece, and its rows at least (:mod:`gradus.pipeline.policy.forward.lm_head`)."""
PARTS = 2
"""Parts that an evaluation is sampled in, at once where two threads have cores (:mod:`gradus.pipeline.training.evaluation`)."""
DRAWING, GREEDY, NUCLEUS = 4, 4, 9
"""float32 [rows, vocabulary] that exist at once where a token is drawn (logits, probabilities, a finite copy of the
logits and its product with them), is the most probable one, or is drawn from a top p, which sorts."""


@dataclass(frozen=True)
class Load:
    """What one stage asks of one device."""

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
    """Whether a frozen reference policy is held."""
    reference_sampled: bool = False
    start: bool = False
    """Whether the stage's start is held, to measure the distance from it."""
    ahead: bool = False
    """Whether a copy samples the next batch while this one trains."""
    token_critic: bool = False
    passes: float = 0.0
    """Forward passes a step for log-probabilities of other policies, besides the update's own."""
    updates: int = 1
    """Forward and backward passes of a batch."""
    pack_tokens: int = 16_384
    cache_tokens: int = 65_536
    drawing: int = DRAWING
    weight_bytes: int = FLOAT
    autocast: bool = False
    """Whether the learner's products are taken in bfloat16."""
    checkpointing: bool = False
    lora_rank: int = 0
    """0: the weights themselves train."""
    evaluated: int = 0
    """Prompts of an evaluation."""
    at_once: int = PARTS
    """Parts of an evaluation that grow at once."""
    external: bool = False
    """Whether another engine draws, with weights and a cache of its own."""
    engine_share: float = 0.0
    """Share of the device's memory that an engine in the training process takes."""

    @classmethod
    def of(
        cls, config: PipelineConfig, stage: StageConfig, needs: Needs, prompt_tokens: int, cuda: bool, devices: int = 1
    ) -> Load:
        """A stage of a pipeline on one of ``devices``, which share the prompts of a batch."""
        sampling, policy = stage.sampling or config.sampling, config.policy
        sampled = needs.completions == "policy"
        every = stage.kl_every if sampled else 0
        passes = float(needs.log_ratio) + (1 / every if every else 0.0) + float(stage.old_logprobs == "recompute")
        passes += float(needs.log_ratio or needs.policy_scores) * (stage.updates_per_batch - 1)
        drawing = (NUCLEUS if sampling.top_p < 1 else DRAWING) + (sampling.temperature != 1.0)
        return cls(
            label=stage.label,
            steps=stage.steps,
            prompts=math.ceil(stage.prompts_per_step / devices),
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
            drawing=drawing,
            weight_bytes=2 if policy.dtype in ("bfloat16", "float16") else FLOAT,
            autocast=policy.autocast == "bfloat16" or (policy.autocast == "auto" and cuda),
            checkpointing=stage.gradient_checkpointing,
            lora_rank=policy.lora.rank if policy.lora is not None else 0,
            evaluated=math.ceil(max(config.task.heldout, config.task.validation if stage.eval_every else 0) / devices),
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
        """Tokens of an update's passes: a group's prompt once, and every completion but its last token."""
        return self.prompts * self.prompt_tokens + self.rows * (self.new_tokens - 1)

    @property
    def packs(self) -> int:
        """Packs that a batch is cut into, at least."""
        return max(1, math.ceil((self.tokens + self.rows) / self.pack_tokens))

    def shares(self, group: int) -> bool:
        """Whether the sampler keeps a prompt once for a group of this size."""
        return group > 1 and self.prompt_tokens >= SHARE_FROM

    def growing(self, prompts: int, group: int) -> int:
        """Completions that grow at a time, as many whole groups as the cache may hold."""
        held = self.prompt_tokens * (1 if self.shares(group) else group) + group * self.new_tokens
        return group * min(prompts, max(1, self.cache_tokens // held))


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: float
    moments: float
    """Adam's."""
    copies: float
    """Further policies; a token critic with its moments."""
    decoder: float
    """Fused products of every policy that samples; with several devices the whole weights, gathered."""
    cache: float
    """Of keys and values as it grows; at least what the sampler fuses anew before it gives up what it had."""
    drawing: float
    gradients: float
    """Beside the activations of a pack."""
    activations: float
    logits: float
    """Of a piece of the learner's head."""
    evaluation: float
    """Cache and drawing of an evaluation."""
    overlapped: bool = False
    """Whether sampling and learning happen at once."""

    @property
    def held(self) -> float:
        return self.weights + self.moments + self.copies + self.decoder

    @property
    def sampling(self) -> float:
        return self.held + self.cache + self.drawing

    @property
    def evaluating(self) -> float:
        return self.held + self.evaluation

    @property
    def learning(self) -> float:
        beside = self.cache + self.drawing if self.overlapped else 0.0
        return self.held + self.gradients + self.activations + self.logits + beside

    @property
    def peak(self) -> float:
        return max(self.sampling, self.learning, self.evaluating)


def memory(size: ModelSize, load: Load, devices: int = 1) -> Memory:
    """What a stage holds on each of ``devices``. With several, what the learner and frozen policies hold is cut into
    equal shards, layer by layer (FSDP2), and each device samples with the weights gathered whole."""
    number = load.weight_bytes
    weights, trained = size.parameters * number, trained_parameters(size, load) * number
    adapted = load.lora_rank > 0
    copy = trained if adapted else weights  # the base is shared
    copies = copy * (load.reference + load.start + load.ahead + load.token_critic) + 2 * trained * load.token_critic
    samplers = 1 + (load.sampled and load.reference_sampled) + load.ahead
    fused = (size.linear if adapted else size.fused) * number
    own = not load.external  # whether it is the policy itself that draws
    gathered = (weights if devices > 1 else 0) + fused * own
    layer = 0 if devices == 1 else 2 * (size.linear // size.layers) * number + size.words * number
    kept, logits = activation_bytes(size, load), _logits_bytes(size, load)
    return Memory(
        weights=weights / devices + layer,
        moments=2 * trained / devices,
        copies=copies / devices,
        decoder=samplers * gathered,
        cache=max(fused, _cache_bytes(size, load, load.prompts, load.group)) if load.sampled and own else 0.0,
        drawing=load.drawing * FLOAT * load.growing(load.prompts, load.group) * size.vocabulary * load.sampled * own,
        gradients=_gradient_bytes(size, load, trained, kept + logits, devices),
        activations=kept,
        logits=logits,
        evaluation=load.at_once * max(fused, _evaluation_bytes(size, load)) if load.evaluated and own else 0.0,
        overlapped=load.ahead,
    )


def trained_parameters(size: ModelSize, load: Load) -> int:
    """All of them, or those of the adapters."""
    return size.adapters(load.lora_rank) if load.lora_rank else size.parameters


def _cache_bytes(size: ModelSize, load: Load, prompts: int, group: int) -> float:
    """The cache as it grows for the last time, a block at a time: two blocks' old columns are still there. A shared
    prompt exists once.

    It begins with room for ``CACHE_BLOCK`` columns behind the prompt, and a completion's last token is never read.
    """
    growing = load.growing(prompts, group)
    own, once = (0, growing // group * load.prompt_tokens) if load.shares(group) else (load.prompt_tokens, 0)
    old = own + CACHE_BLOCK * max(0, math.ceil((load.new_tokens - 1 - CACHE_BLOCK) / CACHE_BLOCK))
    twice = min(1.0, 2 / size.layers) * old
    return size.cache * load.weight_bytes * (once + growing * (old + CACHE_BLOCK + twice))


def _evaluation_bytes(size: ModelSize, load: Load) -> float:
    """Greedy completions of a part of the held-out prompts."""
    part = math.ceil(load.evaluated / PARTS)
    return _cache_bytes(size, load, part, 1) + GREEDY * FLOAT * load.growing(part, 1) * size.vocabulary


def activation_bytes(size: ModelSize, load: Load) -> float:
    """What autograd keeps of one pack for the backward pass.

    Of a token in a layer: what each norm has scaled, and in other types than float32 its input; what the products take;
    queries, and attended values before and after they are put in order; keys and values of all that a completion sees,
    gathered row by row; and gate, activated gate, up and their product. With autocast also the weights in bfloat16.
    Layers that are computed again keep one vector a token each, and all of one layer.
    """
    share = min(1.0, load.pack_tokens / (load.tokens + load.rows))
    tokens, completed = load.tokens * share, load.rows * share * (load.new_tokens - 1)
    seen = load.prompts * share * load.prompt_tokens + load.rows * share * (load.prompt_tokens + load.new_tokens - 1)
    autocast = load.autocast and not load.token_critic  # a token critic learns without
    inner = 2 if autocast else load.weight_bytes
    sandwich, normed = size.model_type in SANDWICH, size.model_type in HEAD_NORMS
    of_stream, of_product = 1 if load.weight_bytes == FLOAT else 2, 1 if inner == FLOAT else 2
    norms = 2 * (of_stream + (of_product if sandwich else 0)) * FLOAT
    residual = (norms + (5 if inner < FLOAT else 2) * inner) * size.width
    attention = 3 * inner * size.heads * size.head_dim
    if normed:
        both = FLOAT + (FLOAT if sandwich else inner)
        attention += (FLOAT if inner == FLOAT else both) * (size.heads + size.kv_heads) * size.head_dim
    mlp = (4 if size.gated else 2) * size.inner * inner
    layer = tokens * (residual + attention + mlp) + seen * 2 * size.heads * size.head_dim * inner
    layer += tokens * 7 * load.lora_rank * FLOAT
    ends = (3 * tokens + 2 * (completed + load.rows * share)) * size.width * load.weight_bytes
    if load.checkpointing:
        return layer + size.layers * tokens * size.width * load.weight_bytes + ends
    cast = 2 * size.linear if autocast and load.weight_bytes == FLOAT else 0
    return size.layers * layer + ends + cast


def _gradient_bytes(size: ModelSize, load: Load, trained: int, beside: float, devices: int) -> float:
    """Gradients beside ``beside``, the activations of a pack and a piece's logits, at whichever end of the backward
    pass takes more.

    At its beginning there is the head's, and with several packs those of the packs before. At its end all are there,
    an embedding that is also the head a second time, and activations are not.
    """
    head = 0 if load.lora_rank else size.words * load.weight_bytes
    before = trained / devices if load.packs > 1 else 0.0
    end = trained / devices + (head * (2 if load.packs > 1 else 1) if size.tied else 0)
    return max(before + head, end - beside)


def _logits_bytes(size: ModelSize, load: Load) -> float:
    """Logits of a piece twice: themselves, and their exponentials while these are added up."""
    rows = min(max(FEWEST, CELLS // size.vocabulary), load.rows * load.new_tokens)
    return 2 * FLOAT * rows * size.vocabulary
