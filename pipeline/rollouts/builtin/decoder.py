"""A lean forward pass for sampling: the blocks of a Llama-like model, with fused weights.

transformers spends most of the decoding time of a small model between the matrix products: on masks, cache objects, and
norms in six passes. Here a block is four products and a few operations in place:

* query, key and value are one product, and so are gate and up; in float32 the weight of a norm is part of the product
  that follows it;
* the rotary embedding is one complex multiplication, because the rows of the query and key weights are reordered so
  that the two features that rotate into each other are neighbours. This does not change products of queries and keys.

The parts of a model are read from its modules, not from its name, and the result is *tested*: a decoder is used only
for a model whose logits it reproduces (:func:`gradus.pipeline.rollouts.builtin.engines.engine_of`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradus.pipeline.policy.forward.matmul import Packed
from gradus.pipeline.policy.lora import is_linear, merged_weight

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(block, queries [N, H, d], keys and values [N, 2, Hkv, d]) -> attended values [N, H * d]."""

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose angles do not depend on the length of the text."""


class Unsupported(Exception):
    """This decoder cannot run a model, for the reason given."""


@dataclass
class Norm:
    """An RMS norm with a factor per feature; the weight is None where it is part of the product that follows."""

    weight: Tensor | None
    eps: Tensor
    """float32 [1], or one per head. It is a tensor because adding a Python number costs twice as much."""

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * self._scale(wide)
        return (scaled if self.weight is None else scaled.mul_(self.weight)).to(x.dtype)

    def apply_to(self, x: Tensor) -> None:
        """Apply the norm in place."""
        if self.weight is None or x.dtype != torch.float32:
            x.copy_(self(x))
        else:
            x.mul_(self._scale(x)).mul_(self.weight)

    def _scale(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


@dataclass
class Block:
    """One block with fused weights."""

    before_attention: Norm
    qkv: Packed
    head_norm: Norm | None
    """The norm of queries and keys together."""
    out: Packed
    after_attention: Norm | None
    before_mlp: Norm
    gate_up: Packed
    down: Packed
    after_mlp: Norm | None
    activation: Callable[[Tensor], Tensor]
    window: int | None
    rope: str


class Decoder:
    """The forward pass of one model; :meth:`fused` copies its weights, again after each update.

    Raises: Unsupported where the model has other parts.
    """

    blocks: list[Block]
    final: Norm
    product: Packed
    """The product with the weight of the head."""

    def __init__(self, model: Any):
        self.model, self.base = model, model.base_model
        self.head = model.get_output_embeddings()
        layers = getattr(self.base, "layers", None)
        if type(self.head) is not torch.nn.Linear:
            raise Unsupported("its head is no plain linear layer")
        if layers is None or not hasattr(self.base, "rotary_emb") or not hasattr(self.base, "norm"):
            raise Unsupported("it is not a stack of `layers` with rotary embeddings and a final `norm`")
        for layer in layers:
            _check(layer)
        ropes = getattr(self.base.rotary_emb, "rope_type", "default")
        if not set(ropes.values() if isinstance(ropes, dict) else [ropes]) <= ROPES:
            raise Unsupported(f"its rotary embedding is of the kind {ropes}")
        first = layers[0].self_attn
        self.head_dim = int(first.head_dim)
        self.heads = first.q_proj.weight.shape[0] // self.head_dim
        self.kv_heads = first.k_proj.weight.shape[0] // self.head_dim
        self.scaling = float(first.scaling)
        config = model.config
        self.softcap = getattr(config, "attn_logit_softcapping", None)
        self.logit_softcap = getattr(config, "final_logit_softcapping", None)
        self.windows = [_window(layer.self_attn, config, i) for i, layer in enumerate(layers)]

    @torch.no_grad()
    def fused(self) -> Decoder:
        """A copy of this decoder with the present weights, whose memory is freed with the copy."""
        ready = copy.copy(self)
        ready.blocks = [self._fuse(i, layer) for i, layer in enumerate(self.base.layers)]
        ready.final = _norm(self.base.norm)
        ready.product = Packed(self.head.weight, self.head.bias)
        return ready

    @cached_property
    def _interleaved(self) -> Tensor:
        """The order of a head's features in which rotating pairs are neighbours."""
        half = torch.arange(self.head_dim // 2)
        return torch.stack([half, half + self.head_dim // 2], 1).flatten().to(self.base.norm.weight.device)

    def _fuse(self, index: int, layer: Any) -> Block:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)]
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        if sandwich:
            norms += [_norm(layer.pre_feedforward_layernorm), _norm(layer.post_feedforward_layernorm)]
        before_attention, before_mlp = norms[0], norms[2 if sandwich else 1]

        def turned(projection: Any, part: Tensor) -> Tensor:
            return part.unflatten(0, (-1, self.head_dim))[:, self._interleaved].flatten(0, 1)

        rotated = [(p, turned(p, merged_weight(p))) for p in (attention.q_proj, attention.k_proj)]
        qkv = torch.cat([weight for _, weight in rotated] + [merged_weight(attention.v_proj)])
        biases = None
        if attention.q_proj.bias is not None:
            turned_biases = [turned(p, p.bias) for p, _ in rotated]
            biases = torch.cat([*turned_biases, attention.v_proj.bias])
        gate_up = torch.cat([merged_weight(mlp.gate_proj), merged_weight(mlp.up_proj)])
        if qkv.dtype == torch.float32:  # in other types the product would be rounded differently from the model's own
            assert before_attention.weight is not None and before_mlp.weight is not None
            qkv, gate_up = qkv * before_attention.weight, gate_up * before_mlp.weight
            before_attention, before_mlp = Norm(None, before_attention.eps), Norm(None, before_mlp.eps)
        return Block(
            before_attention=before_attention,
            qkv=Packed(qkv, biases),
            head_norm=self._head_norm(attention) if hasattr(attention, "q_norm") else None,
            out=Packed(merged_weight(attention.o_proj), attention.o_proj.bias),
            after_attention=norms[1] if sandwich else None,
            before_mlp=before_mlp,
            gate_up=Packed(gate_up),
            down=Packed(merged_weight(mlp.down_proj)),
            after_mlp=norms[3] if sandwich else None,
            activation=mlp.act_fn,
            window=self.windows[index],
            rope=_rope_kind(self.base, attention, self.model.config, index),
        )

    def _head_norm(self, attention: Any) -> Norm:
        """The norms of queries and keys as one, with a weight per head, in the order of the reordered features."""
        weights, eps = list[Tensor](), list[Tensor]()
        for module, heads in ((attention.q_norm, self.heads), (attention.k_norm, self.kv_heads)):
            norm = _norm(module)
            assert norm.weight is not None
            weights.append(norm.weight[self._interleaved].expand(heads, -1))
            eps.append(norm.eps.expand(heads, 1))
        return Norm(torch.cat(weights), torch.cat(eps))

    def angles(self, length: int) -> dict[str, Tensor]:
        """kind of rotary embedding -> complex64 [length, head_dim / 2]: the rotation of each pair at each position."""
        positions = torch.arange(length, device=self.base.norm.weight.device)[None]
        like = torch.zeros(1, device=positions.device)
        half, result = self.head_dim // 2, dict[str, Tensor]()
        for kind in {block.rope for block in self.blocks}:
            cos, sin = self.base.rotary_emb(like, positions, *([kind] if kind else []))
            if cos.shape[-1] != self.head_dim:
                raise Unsupported("only a part of each head is rotated")
            result[kind] = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())
        return result

    def forward(self, ids: Tensor, angles: dict[str, Tensor], attend: Attend) -> Tensor:
        """Hidden states after the last norm; ``angles``: the rotations of each token, by kind.

        Shapes: ids int64 [N], angles complex64 [N, 1, head_dim / 2] -> [N, D].
        """
        x = self.base.embed_tokens(ids)
        for index, block in enumerate(self.blocks):
            qkv = block.qkv(block.before_attention(x))
            queries, keys_values = self._rotated(block, qkv, angles[block.rope])
            x = _added(x, attend(index, queries, keys_values), block.out, block.after_attention)
            gate, up = block.gate_up(block.before_mlp(x)).chunk(2, -1)
            x = _added(x, block.activation(gate).mul_(up), block.down, block.after_mlp)
        return self.final(x)

    def _rotated(self, block: Block, qkv: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [N, H, d], and keys and values [N, 2, Hkv, d], with their norms and rotations applied."""
        rows, turning = qkv.shape[0], self.heads + self.kv_heads
        heads = qkv.view(rows, turning + self.kv_heads, self.head_dim)
        if block.head_norm is not None:
            block.head_norm.apply_to(heads[:, :turning])
        pairs = heads[:, :turning].unflatten(-1, (-1, 2))
        if qkv.dtype == torch.float32:
            torch.view_as_complex(pairs).mul_(angles)
        else:
            pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()).mul_(angles)))
        return heads[:, : self.heads], heads[:, self.heads :].unflatten(1, (2, self.kv_heads))

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states, in the type of the weights.

        Shapes: [N, D] -> [N, V].
        """
        logits = self.product(hidden)
        return logits if self.logit_softcap is None else torch.tanh(logits / self.logit_softcap) * self.logit_softcap


def _added(x: Tensor, inner: Tensor, product: Packed, norm: Norm | None) -> Tensor:
    """x + norm(product(inner))."""
    return product.added(x, inner) if norm is None else x + norm(product(inner))


def _norm(module: Any) -> Norm:
    """The factors of an RMS norm, whether the module stores the factors or their difference from 1."""
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))
    ones = module.weight.new_ones(module.weight.shape, dtype=torch.float32)
    return Norm(module(ones).float() * (1 + eps) ** 0.5, ones.new_tensor([eps]))


def _check(layer: Any) -> None:
    """Raises: Unsupported where a layer has other parts than those that are computed here."""
    sandwich = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
    wanted = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    parts = {name for name, _ in layer.named_children()}
    if parts not in (wanted, wanted | sandwich):
        raise Unsupported(f"a layer consists of {', '.join(sorted(parts))}")
    attention = {name for name, _ in layer.self_attn.named_children()}
    mlp = {name for name, _ in layer.mlp.named_children()} - {"act_fn"}
    if attention not in (ATTENTION, ATTENTION | {"q_norm", "k_norm"}) or mlp != MLP:
        raise Unsupported(f"attention consists of {', '.join(sorted(attention))}, the MLP of {', '.join(sorted(mlp))}")
    products = [getattr(layer.self_attn, name) for name in ATTENTION] + [getattr(layer.mlp, name) for name in MLP]
    if not all(map(is_linear, products)):
        raise Unsupported("its products are no plain linear layers")
    if any(getattr(layer.mlp, name).bias is not None for name in MLP):
        raise Unsupported("the products of its MLP have biases")


def _window(attention: Any, config: Any, index: int) -> int | None:
    """The number of positions that a layer attends to, with its own; None where it is all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] == "full_attention":
        return None
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(config, "sliding_window", None)


def _rope_kind(base: Any, attention: Any, config: Any, index: int) -> str:
    """The model's name for the rotary embedding of a layer; empty where the model has only one."""
    if "layer_type" not in inspect.signature(base.rotary_emb.forward).parameters:
        return ""
    return str(getattr(attention, "layer_type", None) or config.layer_types[index])
