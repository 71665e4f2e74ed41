"""The tags between which a policy thinks, read off its tokenizer and its template: what follows them is the answer."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.types import AskedThoughts, Prompt, Thoughts

TAG = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{1,60}\]|\u25c1[^\u25b7\s]{1,60}\u25b7")
"""A tag, as a token or in a template's text; the last kind is written with triangles."""
THOUGHT = re.compile(r"think|thought|reason|scratchpad", re.IGNORECASE)
"""What the name of such a tag contains."""
BEGINS, ENDS = {"begin", "start", "open"}, {"end", "stop", "close"}


def thoughts_of(tokenizer: Any, template: str, prompt: str) -> Thoughts:
    """The tags that the tokenizer's added tokens and the template's text contain.

    ``prompt``: any prompt in that template, which shows whether it leaves a thought open for the completion to go on.
    """
    added = (str(token.content) for token in tokenizer.added_tokens_decoder.values())
    pairs = tag_pairs([*added, *TAG.findall(template)])
    return Thoughts(pairs, _opened(pairs, prompt))


def asked_thoughts(thoughts: Thoughts, encoder: Any, arguments: Iterable[Mapping[str, Any]]) -> Thoughts:
    """The thoughts of a policy whose prompts are also asked with these template arguments; ``encoder``: a
    PromptEncoder."""
    found = {}
    for given in arguments:
        tokens = encoder.encode(Prompt("", "1 + 1 = ?", "", template_args=given))
        found[json.dumps(given, sort_keys=True)] = _opened(thoughts.pairs, encoder.tokenizer.decode(tokens))
    return AskedThoughts(thoughts.pairs, thoughts.opened, tuple(found.items()))


def _opened(pairs: Iterable[tuple[str, str]], prompt: str) -> str:
    """The tag of the thought that a prompt leaves open; empty where it leaves none."""
    opened = [opening for opening, closing in pairs if prompt.rfind(opening) > prompt.rfind(closing)]
    return max(opened, key=prompt.rfind, default="")


def tag_pairs(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of tags among these texts that begin and end a thought.

    >>> tag_pairs(["<b>", "</think>", "<|end_of_thought|>", "<think>", "<|begin_of_thought|>", "<thinking>"])
    (('<think>', '</think>'), ('<|begin_of_thought|>', '<|end_of_thought|>'))
    """
    tags = [text for text in dict.fromkeys(texts) if TAG.fullmatch(text) and THOUGHT.search(text)]
    begun, ended = ([tag for tag in tags if _ends(tag) is which] for which in (False, True))
    return tuple(pair for pair in itertools.product(begun, ended) if _name(pair[0]) == _name(pair[1]))


def stored_thoughts(template: Path) -> Thoughts:
    """The thoughts of the policy that was saved with this template, which is read without loading the policy."""
    stored = json.loads(template.read_text(encoding="utf-8")) if template.is_file() else {}
    return Thoughts.restored(stored.get("thoughts"))


def _words(tag: str) -> list[str]:
    return re.findall(r"[^\W_]+", tag)


def _ends(tag: str) -> bool:
    """Whether a tag is the one that ends a thought."""
    return "/" in tag or any(word.casefold() in ENDS for word in _words(tag))


def _name(tag: str) -> tuple[str, ...]:
    """What the two tags of a pair have in common: their brackets and the name between them."""
    kept = [word for word in _words(tag) if word.casefold() not in BEGINS | ENDS]
    return (*re.findall(r"^\W+|\W+$", tag.replace("/", "")), *kept)
