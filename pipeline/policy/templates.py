"""The template that a policy gets when it enters the pipeline: what wraps a question, and what ends an answer."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from gradus.pipeline.common.errors import UserError, closest
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.checks import no_embedding
from gradus.pipeline.policy.prompts import PromptEncoder, Template
from gradus.pipeline.policy.thoughts import thoughts_of

ANSWER = "answer-0815"
"""A text that no template contains, to find again what a template makes of an answer."""


def new_template(tokenizer: Any, listed: Sequence[int], rows: int | None, config: PolicyConfig) -> Template:
    """The template of a model without a saved one: its chat template if it has one, otherwise the plain template.

    ``listed``: the tokens that the model's own files say end a text. ``rows``: for how many tokens the model has
    embeddings, where that is known. Raises: UserError.
    """
    if config.template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template",
            where="policy.template",
            got="chat",
            expected="plain, or a model with a chat template",
            fix="set policy.template to auto or plain",
        )
    chat = tokenizer.chat_template if config.template != "plain" else None
    kind: Literal["chat", "plain"] = "chat" if chat else "plain"
    text = chat if isinstance(chat, str) else json.dumps(chat) if chat else config.plain_template
    if kind == "plain" and (config.system is not None or config.template_args):
        option = "system" if config.system is not None else "template_args"
        got, expected = "no chat template", f"a model with a chat template, which `{option}` is for"
        raise UserError("a plain template has no turns", where=f"policy.{option}", got=got, expected=expected,
                        fix=f"leave policy.{option} out, and write the text into policy.plain_template")  # fmt: skip
    check_arguments(text, config.template_args, "policy")
    day = datetime.date.today().isoformat() if kind == "chat" and "strftime_now" in text else ""
    special = config.special_tokens_in_questions
    template = Template(kind, text, (), 0, special, config.system, config.template_args, day=day)
    encoder = PromptEncoder(tokenizer, template)
    ends, pad = _ends(encoder, listed, config), tokenizer.pad_token_id
    if rows is not None:
        _check_vocabulary(encoder, ends, rows)
    thoughts = thoughts_of(tokenizer, text, tokenizer.decode(encoder.encode("1 + 1 = ?")))
    usable = pad is not None and (rows is None or pad < rows)  # it is always masked, so that any token will do
    return replace(template, eos_ids=ends, pad_id=pad if usable else ends[0], thoughts=thoughts)


def _check_vocabulary(encoder: PromptEncoder, ends: Sequence[int], rows: int) -> None:
    """The model has embeddings for all tokens that can come to it. Raises: UserError.

    A special token without one, as some published models have, hurts nobody as long as no prompt contains it.
    """
    vocabulary, template = encoder.tokenizer.get_vocab(), encoder.template
    needed = {*ends, *encoder.encode("1 + 1 = ?")}
    if without := [
        text
        for text, number in sorted(vocabulary.items(), key=lambda entry: entry[1])
        if number >= rows and (template.special_tokens or number in needed or number not in encoder.special)
    ]:
        got = f"{len(without):,} such tokens, for example {without[0]!r}; embeddings for the first {rows:,}"
        raise no_embedding(got, "policy.path")


def _ends(encoder: PromptEncoder, listed: Sequence[int], config: PolicyConfig) -> tuple[int, ...]:
    """The tokens that end a completion, first the one that ends a turn in the template. Raises: UserError.

    Tokenizers and models name other tokens: a base model's ``<|endoftext|>`` remains after training on chats whose
    turns end with ``<|im_end|>``.
    """
    if config.eos is not None:
        names = [config.eos] if isinstance(config.eos, str) else config.eos
        return tuple(dict.fromkeys(_named_token(encoder.tokenizer, name) for name in names))
    found = dict.fromkeys([encoder.turn_end(ANSWER), encoder.tokenizer.eos_token_id, *listed])
    ends = tuple(token for token in found if token is not None)
    if not ends:
        fix = "name one in policy.eos, or set the tokenizer's eos_token"
        raise UserError("the tokenizer has no end-of-sequence token", where="policy.eos", fix=fix)
    return ends


def _named_token(tokenizer: Any, name: str) -> int:
    """The number of a token of the vocabulary. Raises: UserError."""
    known = tokenizer.get_vocab()
    if name in known:
        return known[name]
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values()]
    raise UserError(
        "the tokenizer has no such token",
        where="policy.eos",
        got=name,
        expected=f"one of its tokens, such as {', '.join(special[:8])}" if special else "one of its tokens",
        fix=closest(name, special) or "correct it, or leave it out: the template shows what ends a turn",
    )


def check_arguments(text: str, arguments: Iterable[str], where: str) -> None:
    """The chat template of this text reads these arguments. Raises: UserError; ``where``: the key that holds them."""
    if unread := [name for name in arguments if name != "tools" and not re.search(rf"\b{name}\b", text)]:
        raise UserError(
            "the chat template does not read this argument",
            where=f"{where}.template_args.{unread[0]}",
            expected="a name that occurs in the template",
            fix="correct the name, or leave it out",
        )
