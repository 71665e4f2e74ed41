"""The records that sampler, rewards, stages and learner exchange, and the one legend of shape letters.

Shape letters, used as suffixes of tensor names everywhere:
    P  prompts in a batch (= groups)
    K  completions of one prompt (= group size)
    T  completion tokens, right-padded to the longest completion of the batch
    D  width of the policy's hidden state
    V  vocabulary

Log-probabilities are in nats, and their names say what they are computed with: ``rollout_logprobs`` (the policy that
sampled), ``policy_logprobs`` (the current policy), ``reference_logprobs`` (the reference policy).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


Turn = dict[str, Any]
"""One turn of a conversation, as plain data: ``role`` and ``content``, and what else a chat template reads."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One checkable problem."""

    id: str
    """A hash of the question (with its turns) and the answer, and so the same in every run and order."""
    question: str
    """The problem as the task states it, without a template; of a conversation, the text of its turns."""
    answer: str
    """The reference answer, as text."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """All other columns of the source; for reasoning_gym, the whole entry, which its scorer needs."""
    demonstration: str | None = None
    """A worked completion for SFT, or None where the task has none; of a preference pair, the chosen one."""
    rejected: str | None = None
    """The completion of a preference pair that was not chosen."""
    alternatives: tuple[str, ...] = ()
    """Further reference answers; a completion is right where it agrees with any of them."""
    turns: tuple[Turn, ...] = ()
    """The conversation that asks the question, where it is more than ``question`` as the one turn of the user."""
    tools: tuple[dict[str, Any], ...] = ()
    """Descriptions of functions that the template shows to the model."""
    system: str | None = None
    """What the task says in the system turn of a conversation that has none of its own; no part of the id."""
    task: str = ""
    """The name of its task; empty where the pipeline has one task."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for this prompt, such as ``enable_thinking``, beside the policy's."""

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """The turns up to where the completion begins."""
        return with_system(self.turns or ({"role": "user", "content": self.question},), self.system)


def with_system(turns: Sequence[Turn], *said: str | None) -> tuple[Turn, ...]:
    """The turns, the first of them a system turn: their own, or else the first of these texts that is given.

    This is the one place that decides it, so whoever has a text for the system turn names it behind those that count
    more: the row's own turn, then what its task says, then what the policy says.

    >>> with_system([{"role": "user", "content": "1 + 1?"}], None, "Be brief.", "Think.")[0]
    {'role': 'system', 'content': 'Be brief.'}
    """
    text = next((text for text in said if text is not None), None)
    own = text is None or bool(turns and turns[0]["role"] == "system")
    return tuple(turns) if own else ({"role": "system", "content": text}, *turns)


def transcript(turns: Iterable[Turn], system: bool = True) -> str:
    """Turns as one text, for a person to read, to compare, and for a policy without a chat template.

    >>> transcript([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}])
    'Be brief.\\n\\n1 + 1?'
    """
    spoken = [turn for turn in turns if system or turn["role"] != "system"]
    alone = len(spoken) == 1 or sum(turn["role"] != "system" for turn in spoken) == 1
    return "\n\n".join(_said(turn, alone or turn["role"] == "system") for turn in spoken)


def _said(turn: Turn, alone: bool) -> str:
    calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""
    text = "\n".join(part for part in (turn.get("content"), calls) if part)
    return text if alone else f"{turn['role']}: {text}"


@dataclass(frozen=True)
class Thoughts:
    """How a policy marks what it thinks before it answers."""

    pairs: tuple[tuple[str, str], ...] = ()
    """The tags that begin and end a thought, beside those that all policies are known by."""
    opened: str = ""
    """The tag that its prompts end with, so that a completion goes on in a thought and shows only the end of it."""

    @classmethod
    def restored(cls, stored: Any) -> Thoughts:
        """The thoughts that were stored as JSON, or None by an earlier version."""
        return cls(tuple((begin, end) for begin, end in stored["pairs"]), stored["opened"]) if stored else cls()

    def of(self, arguments: Mapping[str, Any] | None) -> Thoughts:
        """The thoughts of a prompt with these template arguments, which may leave none open."""
        return replace(self, opened="") if arguments else self


@dataclass(frozen=True)
class AskedThoughts(Thoughts):
    """The same, where prompts are asked with template arguments of their own."""

    otherwise: tuple[tuple[str, str], ...] = ()
    """Those arguments, as JSON, and the tag that prompts with them end with."""

    def of(self, arguments: Mapping[str, Any] | None) -> Thoughts:
        """The thoughts of a prompt with these arguments."""
        if not arguments:
            return Thoughts(self.pairs, self.opened)
        return Thoughts(self.pairs, dict(self.otherwise).get(json.dumps(arguments, sort_keys=True), ""))


NO_THOUGHTS = Thoughts()
"""Of a policy that declares none."""


@dataclass(frozen=True)
class Rollouts:
    """A batch of P groups of K completions, with the records of the sampler and the rewards."""

    prompts: list[Prompt]
    """P prompts."""
    prompt_tokens: list[list[int]]
    """P token sequences, unpadded, template included."""
    tokens_PKT: Tensor
    """int64, right-padded; a finished completion includes its end-of-sequence token."""
    mask_PKT: Tensor
    """bool, true on the completion's own tokens."""
    rollout_logprobs_PKT: Tensor
    """float32, nats, 0 outside the mask; of the temperature-scaled policy before top-k, top-p and bans. They are
    computed by the policy itself even where another engine sampled the tokens."""
    truncated_PK: Tensor
    """bool, true where max_tokens ended the completion, and not an end-of-sequence token or a stop text."""
    texts: list[list[str]]
    """P x K decoded completions, without the tokens that begin, end or pad a text."""
    entropy_PKT: Tensor | None = None
    """float32, nats, entropy of the distribution that each token was sampled from; 0 outside the mask."""
    engine_logprobs_PKT: Tensor | None = None
    """float32, nats, 0 outside the mask: by what sampled the tokens, where that is not the policy itself but another
    engine, or the policy some steps ago."""
    reference_logprobs_PKT: Tensor | None = None
    """float32, nats, 0 outside the mask: by the reference policy, where the stage asks for it."""
    teacher_logprobs_PKT: Tensor | None = None
    """float32, nats, 0 outside the mask: by the teacher of each prompt, where the stage has one."""
    keep_PKT: Tensor | None = None
    """bool, false on tokens that the stage's masks leave out of the objective; None: all take part."""
    prompt_states_PD: Tensor | None = None
    """float32, the policy's hidden state at each prompt's last token, where a critic needs it."""
    rewards_PK: Tensor | None = None
    """float32 weighted sum of the reward components; without meaning where it is not valid."""
    components: dict[str, Tensor] = field(default_factory=dict)
    """component name -> float32 [P, K], NaN where that component failed on that completion."""
    staleness: int = 0
    """Number of steps by which the policy was updated between sampling this batch and training on it."""
    valid_PK: Tensor | None = None
    """bool, false where any component failed; such a completion gets weight 0."""
    correct_PK: Tensor | None = None
    """bool, whether the component that decides on correctness reaches its threshold; false where scoring failed."""

    @property
    def scored_PK(self) -> Tensor:
        """bool, whether a completion's reward counts: ``valid_PK``, or true where that is not known."""
        return self.truncated_PK == self.truncated_PK if self.valid_PK is None else self.valid_PK

    @property
    def lengths_PK(self) -> Tensor:
        """int64 number of completion tokens."""
        return self.mask_PKT.sum(-1)

    def with_rewards(self, **scored: Any) -> Rollouts:
        """The same rollouts with the reward fields filled in."""
        return replace(self, **scored)


State = dict[str, Any]
"""Nested mappings of tensors and of values that JSON can hold; keys without a slash."""
