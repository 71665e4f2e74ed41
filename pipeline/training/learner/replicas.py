"""The model that the learner trains: the policy itself on every rank, or a copy that is sharded over the ranks.

With FSDP2 the weights, gradients and moments of every block are cut along their first dimension, one part per rank; a
block is whole only while it is computed. Embeddings, the last norm and the head stay whole on every rank: the head is
taken in pieces (:mod:`gradus.pipeline.policy.forward.lm_head`) and is often the embedding itself, and blocks are the
bulk of a large model. Sampling and evaluation use the ordinary policy, which is updated after each optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers.modeling_layers import GradientCheckpointingLayer

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.ranks import Ranks
from gradus.pipeline.policy.policy import Policy, copied, parameters

T = TypeVar("T")

BUCKET = 2**24
"""Numbers that are summed in one message."""


class ReplicatedPolicy:
    """Every rank trains the whole policy on rows of its own; gradients are summed, so that all stay alike."""

    def __init__(self, policy: Policy, ranks: Ranks):
        self.policy, self.ranks = policy, ranks
        """What is trained."""

    def alike(self, trained: list[Tensor]) -> list[list[Tensor]]:
        """Parameters in lists that one optimizer operation can take."""
        return [trained]

    def rounds(self, batches: Iterator[T]) -> Iterator[T | None]:
        """This rank's micro-batches; None is a pass that is made only because others make theirs."""
        return batches

    def reduce(self) -> None:
        """Add up the ranks' gradients. A parameter that has one nowhere keeps none."""
        self._reduce(self.policy.model.parameters())

    def _reduce(self, trained: Any) -> None:
        if self.ranks.size == 1:
            return
        wanted = [parameter for parameter in trained if parameter.requires_grad]
        has = self.ranks.sum(torch.tensor([parameter.grad is not None for parameter in wanted], dtype=torch.int32))
        gradients = list[Tensor]()
        for parameter, count in zip(wanted, has.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self.ranks.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def clip(self, most: float) -> float:
        """Scale the gradient so that its norm is at most this; returns the norm that it had."""
        return float(clip_grad_norm_(self.policy.model.parameters(), most))

    def updated(self) -> None:
        """The optimizer has taken a step."""

    def reload(self) -> None:
        """The policy's weights have been replaced."""


class ShardedPolicy(ReplicatedPolicy):
    """A copy of the policy whose blocks are spread over the ranks."""

    def __init__(self, policy: Policy, ranks: Ranks):
        super().__init__(Policy(copied(policy), policy.tokenizer, policy.template, policy.adapters), ranks)
        self.whole = policy
        self.blocks: dict[str, Any] = {}
        """The parts that are spread, by name."""
        self._spread(self.policy.model)

    def _spread(self, model: Any) -> None:
        """Raises: UserError where transformers does not say what the model's blocks are."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        named = model.named_modules()
        self.blocks = {name: module for name, module in named if isinstance(module, GradientCheckpointingLayer)}
        if not self.blocks or not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise UserError(
                f"{model.config.model_type} models cannot be spread over processes here",
                where="launch.shard",
                got="fsdp",
                expected="a model whose blocks transformers names, and a torch whose FSDP2 can add gradients up",
                fix="set it to none",
            )
        mesh = init_device_mesh(self.whole.device.type, (self.ranks.size,))
        for block in self.blocks.values():
            fully_shard(block, mesh=mesh)
        # The base model has nothing left to shard. As the root it lets a block's weights arrive while the one before
        # it is computed.
        fully_shard(model.base_model, mesh=mesh, ignored_params=set(self._kept()))
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # gradients are sums here, not means
                module.set_force_sum_reduction_for_comms(True)

    def _kept(self) -> list[torch.nn.Parameter]:
        """Parameters that are whole on every rank."""
        return [parameter for parameter in self.policy.model.parameters() if not is_spread(parameter)]

    def alike(self, trained: list[Tensor]) -> list[list[Tensor]]:
        spread = [parameter for parameter in trained if is_spread(parameter)]
        return [spread, [parameter for parameter in trained if not is_spread(parameter)]]

    def rounds(self, batches: Iterator[T]) -> Iterator[T | None]:
        """Blocks are gathered by all ranks together, so all make the same number of passes."""
        return self.ranks.rounds(batches)

    def reduce(self) -> None:
        self._reduce(self._kept())  # those of the blocks have been, in the backward pass

    def clip(self, most: float) -> float:
        parts = self.alike([parameter for parameter in self.policy.model.parameters() if parameter.grad is not None])
        squares = 0.0
        for part in parts:
            norm: Any = torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])
            squares += float(norm.full_tensor() if is_spread(norm) else norm) ** 2
        norm = math.sqrt(squares)
        for part in parts:
            torch.nn.utils.clip_grads_with_norm_(part, most, torch.tensor(norm, device=self.whole.device))
        return norm

    @torch.no_grad()
    def updated(self) -> None:
        """The whole policy takes over the weights."""
        whole = parameters(self.whole)

        def take(found: Iterator[tuple[str, Tensor]]) -> None:
            for name, value in found:
                if name in whole and not is_spread(value):
                    whole[name].copy_(value)

        take(self.policy.model.named_parameters())
        for name, block in self.blocks.items():
            block.unshard()
            take(block.named_parameters(name))
            block.reshard()

    @torch.no_grad()
    def reload(self) -> None:
        """Each rank takes its part of the whole policy's weights over."""
        whole = parameters(self.whole)
        for name, parameter in parameters(self.policy).items():
            parameter.copy_(laid_out(whole[name], parameter))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, in order, about BUCKET numbers at a time: a few long messages are faster than many short."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (sum(t.numel() for t in bucket) + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def is_spread(tensor: Any) -> bool:
    """Whether a tensor is spread over ranks; one that is has a ``device_mesh``."""
    return hasattr(tensor, "device_mesh")


def laid_out(whole: Tensor, like: Any) -> Tensor:
    """``whole``, which every rank has, as ``like`` lies: there, or this rank's part of it."""
    whole = whole.to(like.device)
    if not is_spread(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def trained_copy(policy: Policy, ranks: Ranks) -> ReplicatedPolicy:
    """What to train of a policy."""
    return ShardedPolicy(policy, ranks) if ranks.shard and ranks.size > 1 else ReplicatedPolicy(policy, ranks)
