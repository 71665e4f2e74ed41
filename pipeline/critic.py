"""V(x): what a prompt usually scores. A linear head on the policy's hidden state at the prompt's last token."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training_state import State, optimizer_state, restore_optimizer


class PromptCritic:
    """A value head trained by squared error on the rewards of each batch, in reward units.

    Its bias starts at the first batch's mean reward, so that the first baselines are not far off; its slope starts at
    zero. The states are detached: training the critic never moves the policy.
    """

    def __init__(self, width: int, lr: float):
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr)
        self.fresh = True

    def predict(self, states_PD: Tensor, rewards_PK: Tensor) -> Tensor:
        """V of each prompt before this batch trains it; the first batch's rewards set the starting bias.

        Shapes: [P, D], [P, K] -> float32 [P].
        """
        if self.fresh:
            with torch.no_grad():
                self.head.bias.fill_(float(rewards_PK.mean()))
            self.fresh = False
        with torch.no_grad():
            return self.head(states_PD)[:, 0]

    def train(self, states_PD: Tensor, rewards_PK: Tensor) -> dict[str, float]:
        """One step of squared error against every reward of the batch.

        Shapes: [P, D], [P, K].
        """
        values_P = self.head(states_PD.detach())[:, 0]
        loss = (values_P[:, None] - rewards_PK).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        residual = (rewards_PK.mean(-1) - values_P.detach()).var(unbiased=False)
        spread = rewards_PK.mean(-1).var(unbiased=False).clamp(min=1e-8)
        return {"critic/loss": float(loss.detach()), "critic/explained_variance": float(1 - residual / spread)}

    def state(self) -> State:
        """Head, optimizer and whether it has seen a batch."""
        return {
            "head": dict(self.head.state_dict()),
            "optimizer": optimizer_state(self.optimizer, self.head),
            "fresh": self.fresh,
        }

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.head.load_state_dict(state["head"])
        restore_optimizer(self.optimizer, self.head, state["optimizer"])
        self.fresh = state["fresh"]
