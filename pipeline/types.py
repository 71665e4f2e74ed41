"""The records that travel between sampler, rewards, stages and learner, and the one legend of shape letters.

Shape letters, used as suffixes of tensor names everywhere:
    P  prompts in a batch (= groups)
    K  completions of one prompt (= group size)
    T  completion tokens, right-padded to the longest completion of the batch
    D  width of the policy's hidden state
    V  vocabulary

Log-probabilities are in nats and named by who computed them: ``rollout_logprobs`` (the sampler, while sampling),
``policy_logprobs`` (the policy as it is now), ``reference_logprobs`` (the reference policy).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """One checkable problem."""

    id: str
    """Stable across runs and orderings: a hash of the question and the answer."""
    question: str
    """The problem in the task's own words, before any template."""
    answer: str
    """The reference answer, as text."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Whatever the source says besides; for reasoning_gym its whole entry, so that its scorer can read it."""
    demonstration: str | None = None
    """A worked completion for SFT, or None where the task has none."""


@dataclass(frozen=True)
class Rollouts:
    """A batch of P groups of K completions, with what the sampler and the rewards recorded about them."""

    prompts: list[Prompt]
    """P prompts."""
    prompt_tokens: list[list[int]]
    """P token sequences, unpadded, as the policy saw them."""
    tokens_PKT: Tensor
    """int64, right-padded; a finished completion includes its end-of-sequence token."""
    mask_PKT: Tensor
    """bool, true on the completion's own tokens."""
    rollout_logprobs_PKT: Tensor
    """float32, nats, 0 outside the mask; of the temperature-scaled policy before top-k / top-p. The policy's own, also
    where another engine drew the tokens."""
    truncated_PK: Tensor
    """bool, true where max_tokens ended the completion instead of its end-of-sequence token."""
    texts: list[list[str]]
    """P x K decoded completions, special tokens removed."""
    entropy_PKT: Tensor | None = None
    """float32, nats, entropy of the distribution each token was drawn from; 0 outside the mask."""
    engine_logprobs_PKT: Tensor | None = None
    """float32, nats, 0 outside the mask: the same by the engine that drew the tokens, where it is another one."""
    prompt_states_PD: Tensor | None = None
    """float32, the policy's hidden state at each prompt's last token, where a critic asked for it."""
    rewards_PK: Tensor | None = None
    """float32 weighted sum of the reward components; a completion whose scoring failed holds its group's mean."""
    components: dict[str, Tensor] = field(default_factory=dict)
    """component name -> float32 [P, K], NaN where that component failed on that completion."""
    staleness: int = 0
    """Steps that the policy had gone since it sampled this batch, when training on it began."""
    valid_PK: Tensor | None = None
    """bool, false where any component failed; such a completion gets no weight."""
    correct_PK: Tensor | None = None
    """bool, whether the component that decides on correctness reaches its threshold; false where it failed."""

    @property
    def lengths_PK(self) -> Tensor:
        """int64 number of completion tokens."""
        return self.mask_PKT.sum(-1)

    def with_rewards(self, **scored: Any) -> Rollouts:
        """The same rollouts with the reward fields filled in."""
        return replace(self, **scored)


State = dict[str, Any]
"""Nested mappings of tensors and of values that JSON can hold; keys without a slash."""
