"""Whether a policy that was loaded can do the task: its positions, its outputs, and what its template makes of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.policy.forward.padded import completion_logits
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.policy.prompts import PromptEncoder
from gradus.pipeline.types import Prompt

SHOWN_TOKENS = 400
"""Tokens of a prompt that are shown at each of its ends."""


def position_limit(policy: Policy) -> int | None:
    """How many tokens the model takes; None where it has no such limit, as those that read one after the other."""
    positions = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


@torch.no_grad()
def check_finite(policy: Policy, prompts: Sequence[Prompt]) -> None:
    """The policy gives a distribution over next tokens after each of these prompts. Raises: UserError."""
    any_token = torch.tensor([[policy.template.eos_ids[0]]], device=policy.device)
    for prompt in prompts:
        logits = completion_logits(policy, [policy.encode_prompt(prompt)], any_token, 1.0)
        if logits.log_softmax(-1).isnan().any():
            raise _not_finite(policy)


def _not_finite(policy: Policy) -> UserError:
    """The cause: weights that are not numbers, or numbers that are too large for their type."""
    weights = [name for name, weight in policy.model.named_parameters() if not weight.isfinite().all()]
    dtype = str(policy.model.dtype).removeprefix("torch.")
    if weights:
        got = f"weights that are no finite numbers: {', '.join(weights[:3])}{' ...' if len(weights) > 3 else ''}"
        where, fix = "policy.path", "copy or download the model again, or take an earlier checkpoint of it"
    elif policy.model.dtype == torch.float16:
        got, where = "numbers beyond 65,504, the largest of float16, though all weights are finite", "policy.dtype"
        fix = "set policy.dtype to bfloat16 or float32"
    else:
        got, where = f"infinite or undefined numbers in {dtype}, though all weights are finite", "policy.path"
        fix = "check how the model's files were made: its description or the scale of its weights is wrong"
    expected = "a finite number for every token"
    return UserError("the model's outputs are not finite", where=where, got=got, expected=expected, fix=fix)


def shown_prompt(encoder: PromptEncoder, prompt: Prompt) -> str:
    """A prompt as the policy gets it, its special tokens between « and », for a person."""
    tokens, special = encoder.encode(prompt), encoder.special

    def text(part: list[int]) -> str:
        marked, plain = "", list[int]()
        for token in [*part, None]:
            if token is not None and token not in special:
                plain.append(token)
                continue
            marked += encoder.tokenizer.decode(plain, clean_up_tokenization_spaces=False) if plain else ""
            marked += f"«{encoder.tokenizer.convert_ids_to_tokens(token)}»" if token is not None else ""
            plain = []
        return marked

    if len(tokens) <= 2 * SHOWN_TOKENS:
        return text(tokens)
    left_out = f" ... {len(tokens) - 2 * SHOWN_TOKENS:,} tokens ... "
    return text(tokens[:SHOWN_TOKENS]) + left_out + text(tokens[-SHOWN_TOKENS:])


def template_notes(encoder: PromptEncoder, prompt: Prompt) -> list[str]:
    """What the user should know of the template: nothing where all is as it should be."""
    notes, tokens, tokenizer = list[str](), encoder.encode(prompt), encoder.tokenizer
    first = tokenizer.bos_token_id
    if first is not None and tokens[:2] == [first, first]:
        notes.append(f"the prompt begins with two beginning-of-sequence tokens ({tokenizer.bos_token}): the template "
                     "writes one, and the tokenizer puts another before it")  # fmt: skip
    turns = [turn for turn in encoder.turns(prompt) if turn["role"] == "system"]
    written = _folded(tokenizer.decode(tokens))
    if encoder.template.kind == "chat" and any(_folded(str(turn.get("content"))) not in written for turn in turns):
        notes.append("the chat template drops the system turn: the policy never sees what it says")
    if (opened := encoder.template.thoughts.opened) and not prompt.template_args:
        notes.append(f"prompts end in an open thought ({opened}): rewards look for answers behind its end, and find "
                     "none in a completion that does not end it")  # fmt: skip
    return notes


def long_demonstrations(policy: Policy, prompts: Sequence[Prompt], max_tokens: int) -> str:
    """What the user should know of demonstrations that are longer than completions may be; empty where none is."""
    lengths = [len(policy.encode_completion(prompt.demonstration)) for prompt in prompts if prompt.demonstration]
    longer = sum(length > max_tokens for length in lengths)
    if not longer:
        return ""
    return (
        f"{longer / len(lengths):.0%} of the demonstrations have more than sampling.max_tokens ({max_tokens}) tokens, "
        f"the longest {max(lengths):,}: a policy that learns them is cut off before its answer, which counts as wrong; "
        "raise sampling.max_tokens"
    )


def _folded(text: str) -> str:
    """A text without white space, which templates trim and tokenizers normalise."""
    return re.sub(r"\s+", "", text)
