"""Value functions: the expected reward of a prompt, or of a completion so far, trained by squared error.

They learn from what the policy samples and never change it. Both start at the mean reward of the first batch, so that
the first baselines are not far off.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradus.pipeline.advantages import group_mean, valid
from gradus.pipeline.config import StageConfig
from gradus.pipeline.policy.devices import sent
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.forward.packing import computing, hidden_states
from gradus.pipeline.policy.forward.padded import completion_states
from gradus.pipeline.policy.forward.rows import CompletionRows
from gradus.pipeline.policy.policy import Policy, copied
from gradus.pipeline.stage import Critic
from gradus.pipeline.training.learner.optimizer_state import optimizer_state, restore_optimizer
from gradus.pipeline.types import Rollouts, State


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half of the squared error; with a clip the larger one of that and of the value held within ``old`` +- clip.

    Shapes: all alike. Units: reward squared. Source: PPO's implementation, as VAPO (arXiv 2504.05118) uses it.

    >>> round(float(value_loss(torch.tensor([0.9]), torch.tensor([0.5]), torch.tensor([1.0]), clip=0.1)), 4)
    0.08
    """
    loss = 0.5 * (values - returns).square()
    if clip is None:
        return loss
    held = old + (values - old).clamp(-clip, clip)
    return torch.maximum(loss, 0.5 * (held - returns).square())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that knows only the mean."""
    spread = returns.var(unbiased=False).clamp(min=1e-8)
    return float(1 - (returns - values).var(unbiased=False) / spread)


class PromptCritic:
    """V(x), the expected reward of a prompt: a linear head on the policy's hidden state at the prompt's last token.

    Its slope starts at zero. The states are detached: training the critic never moves the policy.
    """

    def __init__(self, width: int, lr: float):
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr)
        self.fresh = True

    def predict(self, states_PD: Tensor, rewards_PK: Tensor, valid_PK: Tensor | None = None) -> Tensor:
        """V of each prompt before this batch trains it; the first valid rewards set the starting bias.

        Shapes: [P, D], [P, K], bool [P, K] -> float32 [P].
        """
        valid_PK = valid(rewards_PK, valid_PK)
        if self.fresh and valid_PK.any():
            with torch.no_grad():
                self.head.bias.fill_(float(rewards_PK[valid_PK].mean()))
            self.fresh = False
        with torch.no_grad():
            return self.head(states_PD)[:, 0]

    def train(self, states_PD: Tensor, rewards_PK: Tensor, valid_PK: Tensor | None = None) -> dict[str, float]:
        """One step of squared error against every valid reward of the batch; none without any.

        Shapes: [P, D], [P, K], bool [P, K].
        """
        valid_PK = valid(rewards_PK, valid_PK)
        if not valid_PK.any():
            return {}
        values_P, known_P = self.head(states_PD.detach())[:, 0], valid_PK.any(-1)
        loss = (values_P[:, None] - rewards_PK)[valid_PK].square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        means_P = group_mean(rewards_PK, valid_PK)[:, 0]
        explained = explained_variance(values_P.detach()[known_P], means_P[known_P])
        return {"critic/loss": float(loss.detach()), "critic/explained_variance": explained}

    def state(self) -> State:
        """Head, optimizer and whether it has seen a batch."""
        return {
            "head": dict(self.head.state_dict()),
            "optimizer": optimizer_state(self.optimizer, self.head),
            "fresh": self.fresh,
        }

    def restore(self, state: State) -> None:
        """Continue from :meth:`state`."""
        self.head.load_state_dict(state["head"])
        restore_optimizer(self.optimizer, self.head, state["optimizer"])
        self.fresh = state["fresh"]


class TokenCritic:
    """V(x, y before t), the expected reward of a completion before each of its tokens: a network of its own.

    It begins as a copy of the policy with a linear head of zeros on its hidden states. Its targets are the Monte-Carlo
    returns, which are the reward everywhere: lambda = 1 without discount, the critic's half of VAPO's decoupled GAE.
    """

    def __init__(self, policy: Policy, needs: Critic, config: StageConfig):
        self.network = Policy(copied(policy), policy.tokenizer, policy.template, policy.adapters)
        self.head = torch.nn.Linear(policy.width, 1).to(policy.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.module = torch.nn.ModuleDict({"network": self.network.model.base_model, "head": self.head})
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=needs.lr, weight_decay=0.0)
        self.needs, self.config = needs, config
        self.fresh = True

    def predict(self, rollouts: Rollouts) -> Tensor:
        """Values before this batch trains it; the first valid rewards set the starting bias.

        Shapes: -> float32 [P, K, T] on the CPU, 0 outside the mask. Units: reward.
        """
        assert rollouts.rewards_PK is not None
        if self.fresh and rollouts.scored_PK.any():
            with torch.no_grad():
                self.head.bias.fill_(float(rollouts.rewards_PK[rollouts.scored_PK].mean()))
            self.fresh = False
        rows = CompletionRows.of(rollouts)
        values_RT = torch.zeros(rows.tokens_RT.shape)
        with torch.no_grad():
            computed = [*self._values(rows, list(range(len(rows.prompts))))]
            for batch, values in computed:
                part = torch.zeros(len(batch), values_RT.shape[1])
                part[rows.mask_RT[batch]] = values.cpu()
                values_RT[batch] = part
        return values_RT.view_as(rollouts.rollout_logprobs_PKT)

    def train(self, rollouts: Rollouts, old_PKT: Tensor) -> dict[str, float]:
        """As many updates as the policy gets, on the same parts of the batch, every token of a valid completion
        counting the same; none on a part where no completion is valid.

        Shapes: ``old_PKT`` [P, K, T], what :meth:`predict` gave for the batch.
        """
        assert rollouts.rewards_PK is not None
        valid_R = rollouts.scored_PK.flatten()
        if not valid_R.any():
            return {}
        rows, old_RT = CompletionRows.of(rollouts), old_PKT.flatten(0, 1)
        returns_RT = rollouts.rewards_PK.flatten()[:, None].expand_as(old_RT)
        mask_RT, losses = rows.mask_RT, list[Tensor]()
        parts = torch.arange(len(valid_R)).view_as(rollouts.scored_PK).tensor_split(self.config.minibatches)
        chosen = [[row for row in part.flatten().tolist() if valid_R[row]] for part in parts]
        for part in filter(None, chosen * self.config.updates_per_batch):
            losses, tokens = [], int(mask_RT[part].sum())
            for batch, values in self._values(rows, part):
                old, returns = (sent(each[batch][mask_RT[batch]], values.device) for each in (old_RT, returns_RT))
                objective = value_loss(values, old, returns, self.needs.clip).sum() / tokens
                objective.backward()
                losses.append(objective.detach())
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        counted_RT = mask_RT & valid_R[:, None]
        explained = explained_variance(old_RT[counted_RT], returns_RT[counted_RT])
        loss = sum(torch.stack(losses).tolist())
        return {"critic/loss": loss, "critic/explained_variance": explained}

    def _values(self, rows: CompletionRows, chosen: list[int]) -> Iterator[tuple[list[int], Tensor]]:
        """The chosen rows in micro-batches, with the value before each of their tokens, in the context of the pass."""
        budget = self.config.token_budget
        if can_pack(self.network):
            for batch, pack in rows.packs(chosen, budget, self.network.device):
                with computing(self.network, pack):
                    yield batch, self.head(hidden_states(self.network, pack).float())[:, 0]
            return
        for batch in rows.micro_batches(chosen, budget):
            width = max(rows.lengths[row] for row in batch)
            states = completion_states(self.network, [rows.prompts[r] for r in batch], rows.tokens_RT[batch, :width])
            yield batch, self.head(states.float())[..., 0][rows.mask_RT[batch, :width].to(states.device)]

    def state(self) -> State:
        """Network, head, optimizer and whether it has seen a batch."""
        optimizer = optimizer_state(self.optimizer, self.module)
        return {"weights": self._trained(), "optimizer": optimizer, "fresh": self.fresh}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Continue from :meth:`state`."""
        for name, parameter in self._trained().items():
            parameter.copy_(state["weights"][name])
        restore_optimizer(self.optimizer, self.module, state["optimizer"])
        self.fresh = state["fresh"]

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}
