"""The memory that a stage takes on a device, part by part, from the size of the model and the options of the stage.

    held        weights, Adam's two moments, further policies (reference, start, one batch ahead, critic), and the
                products that the sampler fuses
    sampling    held + key-value cache + the drawing of tokens
    evaluating  the same with one completion a prompt
    learning    held + gradients + activations of one pack + logits of one piece + the objective's terms

The largest of the last three is the peak. All completions are assumed to have ``max_tokens`` tokens, so the peak is an
upper bound where they are shorter. The memory of Python and the libraries is left out, and so are attention scores,
which are small beside queries and keys. ``benchmarks/sizing.py`` compares all this with measured peaks;
``docs/scaling.md`` has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradus.pipeline.estimates.load import CACHE_BLOCK, FEWEST, FLOAT, Load
from gradus.pipeline.estimates.model_size import HEAD_NORMS, SANDWICH, ModelSize


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: float
    moments: float
    """Adam's two moments."""
    copies: float
    """Further policies, and a token critic with its moments."""
    decoder: float
    """Fused weights of every policy that samples; with several devices also the gathered weights."""
    cache: float
    """Keys and values at their largest; at least the weights that the sampler fuses before it frees the old ones."""
    drawing: float
    gradients: float
    """Gradients that exist beside the activations of a pack."""
    activations: float
    logits: float
    """Logits of one piece of the learner's head, and what a term of their entropy makes of them."""
    terms: float
    """What the terms of the objective hold for each token of a batch: factors, and log-probabilities of a reference."""
    evaluation: float
    """Cache and drawing of an evaluation."""
    overlapped: bool = False
    """Whether sampling and learning happen at the same time."""

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
        return self.held + self.gradients + self.activations + self.logits + self.terms + beside

    @property
    def peak(self) -> float:
        return max(self.sampling, self.learning, self.evaluating)


def memory(size: ModelSize, load: Load, devices: int = 1) -> Memory:
    """The memory of a stage on each of ``devices``.

    With several devices the learner and the frozen policies are cut into equal shards, layer by layer (FSDP2), and each
    device samples with all weights gathered.
    """
    number = load.weight_bytes
    weights, trained = size.parameters * number, trained_parameters(size, load) * number
    adapted = load.lora_rank > 0
    copy = trained if adapted else weights  # the base is shared
    copies = copy * (load.reference + load.start + load.ahead + load.token_critic) + 2 * trained * load.token_critic
    copies += weights * load.others + load.other_parameters * number
    samplers = 1 + (load.sampled and load.reference_sampled) + load.ahead
    fused = (size.linear if adapted else size.fused) * number
    own = not load.external  # whether the policy itself is sampled from
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
        terms=FLOAT * (2 * load.kl + load.entropy) * load.rows * load.new_tokens,
        evaluation=load.at_once * max(fused, _evaluation_bytes(size, load)) if load.evaluated and own else 0.0,
        overlapped=load.ahead,
    )


def trained_parameters(size: ModelSize, load: Load) -> int:
    """The number of parameters that are trained: all, or those of the adapters."""
    return size.adapters(load.lora_rank) if load.lora_rank else size.parameters


def _cache_bytes(size: ModelSize, load: Load, prompts: int, group: int) -> float:
    """The cache at its last growth, which goes block by block: the old columns of two blocks still exist.

    A shared prompt is held once. The cache starts with room for ``CACHE_BLOCK`` columns after the prompt, and the last
    token of a completion is never read.
    """
    growing = load.growing(prompts, group)
    own, once = (0, growing // group * load.prompt_tokens) if load.shares(group) else (load.prompt_tokens, 0)
    old = own + CACHE_BLOCK * max(0, math.ceil((load.new_tokens - 1 - CACHE_BLOCK) / CACHE_BLOCK))
    twice = min(1.0, 2 / size.layers) * old
    return size.cache * load.weight_bytes * (once + growing * (old + CACHE_BLOCK + twice))


def _evaluation_bytes(size: ModelSize, load: Load) -> float:
    """Memory for the greedy completions of one part of the held-out prompts."""
    part = math.ceil(load.evaluated / load.at_once)
    return _cache_bytes(size, load, part, 1) + load.greedy * FLOAT * load.growing(part, 1) * size.vocabulary


def activation_bytes(size: ModelSize, load: Load) -> float:
    """The memory that autograd keeps of one pack for the backward pass.

    For each token in a layer these are: the scaled input of each norm, and its input too in types other than float32;
    the inputs of the products; queries, and attended values before and after they are reordered; the keys and values
    that a completion sees, gathered row by row; and gate, activated gate, up and their product. With autocast, the
    weights in bfloat16 come on top. With gradient checkpointing, each layer keeps one vector per token, and one layer
    keeps everything.
    """
    share = min(1.0, load.pack_tokens / (load.tokens + load.rows))
    tokens, completed = load.tokens * share, load.rows * share * (load.new_tokens - 1)
    seen = load.prompts * share * load.prompt_tokens + load.rows * share * (load.prompt_tokens + load.new_tokens - 1)
    autocast = load.autocast and not load.token_critic  # a token critic is trained without autocast
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
    """The gradients' part of the peak of the backward pass, which is reached at its start or at its end.

    ``beside``: the activations of a pack and the logits of a piece. At the start of the pass, the gradient of the head
    exists, and with several packs all gradients of the packs before. At its end all gradients exist, twice for an
    embedding that is also the head, but no activations.
    """
    head = 0 if load.lora_rank else size.words * load.weight_bytes
    before = trained / devices if load.packs > 1 else 0.0
    end = trained / devices + (head * (2 if load.packs > 1 else 1) if size.tied else 0)
    return max(before + head, end - beside)


def _logits_bytes(size: ModelSize, load: Load) -> float:
    """The logits of a piece, and their exponentials while they are summed; where they are soft-capped, their slope; for
    the gradient of their entropy also the log-probabilities, the probabilities and the products of both, and, with
    autocast, a result in bfloat16."""
    rows = min(max(FEWEST, load.head_cells // size.vocabulary), load.rows * load.new_tokens)
    copies = (4.5 if load.autocast else 4) if load.entropy else 2
    copies += size.capped
    return copies * FLOAT * rows * size.vocabulary
