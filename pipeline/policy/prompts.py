"""How a prompt becomes tokens: its template, and what is text in it and what a special token."""

from __future__ import annotations

import copy
import ctypes
import datetime
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.types import NO_THOUGHTS, Prompt, Thoughts, Turn, transcript, with_system

RENDER_SECONDS = 10.0
"""Time for one chat template and one question, which take a millisecond; a template is a program and may never end."""
DIRECTIVES = (*"aAbBcdefHIjmMpSUwWxXyYZ", "-d", "-m", "-H", "-I", "-j")
"""The letters of the parts that a date can be written with."""
PRIVATE = range(0xE000, 0xF900)
"""Code points without a meaning of their own, which stand for something while a template is applied."""


@dataclass(frozen=True)
class Template:
    """How a question becomes a prompt and where a completion ends."""

    kind: Literal["chat", "plain"]
    """Whether ``text`` is a chat template or a plain one."""
    text: str
    """The chat template itself (Jinja), or the plain text around ``{question}``."""
    eos_ids: tuple[int, ...]
    """Tokens that end a completion; the first is the one that training appends."""
    pad_id: int
    """Token that pads short rows; always masked."""
    special_tokens: bool = True
    """Whether the text of a special token in a question becomes that token. A template that was stored without this
    was made when it always did."""
    system: str | None = None
    """What the system turn says that is put before a conversation without one; None: no such turn."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, such as ``enable_thinking``."""
    thoughts: Thoughts = NO_THOUGHTS
    """How the policy marks its thoughts, by its tokens and its template."""
    day: str = ""
    """The day that a chat template which reads the clock is told, such as 2026-03-01. A template that was stored
    without this is told the time."""

    def record(self) -> dict[str, Any]:
        """The fields as they are stored; later ones only where they say something, so that earlier records remain."""
        stored = asdict(self)
        usual = {"special_tokens": True, "system": None, "arguments": {}, "thoughts": asdict(NO_THOUGHTS), "day": ""}
        return {name: value for name, value in stored.items() if name not in usual or value != usual[name]}

    @property
    def digest(self) -> str:
        """Hash of all fields: two stages with the same digest use the same prompts."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]


class PromptEncoder:
    """Turns prompts into tokens, with a tokenizer and a template."""

    def __init__(self, tokenizer: Any, template: Template):
        self.tokenizer, self.template = tokenizer, template

    def encode(self, prompt: Prompt | str) -> list[int]:
        """Tokens of a prompt, or of a question alone, in the template, up to where the completion begins.

        Unless the template says otherwise, the text of a special token in the prompt remains text: it is replaced by
        a mark while the template is applied, and encoded by itself afterwards. The special tokens of the template are
        encoded as such, and a prompt without any is encoded in one piece with its template.
        """
        asked = Prompt("", prompt, "") if isinstance(prompt, str) else prompt
        turns, tools, given = list(asked.conversation), list(asked.tools), asked.template_args
        texts = list(_strings([turns, tools]))
        if self.template.special_tokens or not any(self._special.search(text) for text in texts):
            return self._tokens(self._rendered(turns, tools, given), self.template.kind == "plain")
        used = {self.template.text, self.template.system or "", *texts}
        mark = next(c for c in map(chr, PRIVATE) if not any(c in text for text in used))
        hidden: list[str] = []

        def hide(found: re.Match[str]) -> str:
            hidden.append(found[0])
            return f"{mark}{len(hidden) - 1}{mark}"

        turns, tools = _with_strings([turns, tools], lambda text: self._special.sub(hide, text))
        first, *others = re.split(f"{mark}([0-9]+){mark}", self._rendered(turns, tools, given))
        tokens = self._tokens(first, self.template.kind == "plain")
        for place, text in zip(others[::2], others[1::2], strict=True):
            tokens += self._as_text(hidden[int(place)]) + self._tokens(text)
        return tokens

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """The texts of the special tokens, longer ones first, since one may begin with another."""
        added = self.tokenizer.added_tokens_decoder.values()
        texts = sorted({str(token.content) for token in added if token.special} - {""}, key=len, reverse=True)
        return re.compile("|".join(re.escape(text) for text in texts) or "(?!)")

    @cached_property
    def _splitting(self) -> Any:
        """A copy of the tokenizer to split special tokens: the option is a state, and threads share the tokenizer."""
        return copy.deepcopy(self.tokenizer)

    def _as_text(self, special: str) -> list[int]:
        return self._splitting(special, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _tokens(self, text: str, with_first: bool = False) -> list[int]:
        """Tokens of a text; ``with_first``: with those that the tokenizer puts before every text."""
        return self.tokenizer(text, add_special_tokens=with_first)["input_ids"]

    def _rendered(self, turns: list[Turn], tools: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
        """The turns in the template; what a plain one cannot say (roles, tools) is left out or written as text."""
        if self.template.kind == "plain":
            return self.template.text.replace("{question}", transcript(turns))
        return self._applied(turns, tools, {**given, "add_generation_prompt": True})

    def _applied(self, turns: list[Turn], tools: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
        """What the chat template makes of these turns, with the system turn where they have none. Raises: UserError."""
        turns = list(with_system(turns, self.template.system))
        options = {**self.template.arguments, **given, "tokenize": False}
        options |= {"tools": tools} if tools else {}
        if self.template.day:
            options["chat_template"] = frozen_clock(self.template.day) + self.tokenizer.get_chat_template(None, tools)
        apply = self.tokenizer.apply_chat_template
        try:
            return _within(RENDER_SECONDS, lambda: apply(turns, **options))
        except Exception as error:
            system = turns[0]["role"] == "system"
            got = f"no end within {RENDER_SECONDS:.0f} seconds" if isinstance(error, TimeoutError) else str(error)
            raise UserError(
                "the chat template cannot be applied to a prompt",
                where="policy.template, from chat_template.jinja or tokenizer_config.json in the model's folder",
                got=" ".join(got.split())[:300] or type(error).__name__,
                expected=f"a Jinja template for turns of the roles {', '.join(turn['role'] for turn in turns)}, "
                "and the prompt of a generation",
                fix=f"{'take the system turn out (policy.system, task.system or the rows), ' if system else ''}correct "
                "the template, or set policy.template=plain for a new run",
            ) from error

    def turns(self, prompt: Prompt) -> list[Turn]:
        """The turns that the chat template gets."""
        return list(with_system(prompt.conversation, self.template.system))

    def turn_end(self, answer: str) -> int | None:
        """The special token that the chat template writes behind an assistant's answer; None where it writes none."""
        if self.template.kind == "plain":
            return None
        turns = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": answer}]
        try:
            behind = self._applied(turns, [], {"add_generation_prompt": False}).rpartition(answer)[2]
        except UserError:  # a template for questions alone; one that cannot be applied to these either is found there
            return None
        special = self.special - {self.tokenizer.unk_token_id}
        return next((token for token in self._tokens(behind) if token in special), None)

    @cached_property
    def special(self) -> set[int]:
        """The numbers of the special tokens."""
        return {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}


def frozen_clock(day: str) -> str:
    """What makes a chat template that begins with it take this day for today, at midnight.

    It is a macro with the name of the function that reads the clock, since transformers lets no function through.
    """
    date = datetime.datetime.fromisoformat(day)
    told = "".join(f" | replace('%{letter}', '{date.strftime(f'%{letter}')}')" for letter in DIRECTIVES)
    return f'{{% macro strftime_now(form) %}}{{{{ form{told} }}}}{{% endmacro %}}{{{{ "" }}}}'


def _strings(value: Any) -> Iterator[str]:
    """All texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Nested lists and mappings with every text in them changed."""
    if isinstance(value, dict):
        return {key: _with_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_strings(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _within(seconds: float, work: Callable[[], str]) -> str:
    """What ``work`` returns; after that many seconds it is ended where it is. Raises: TimeoutError.

    It runs in a thread, since only a thread can be ended from outside without a signal, which the main thread alone
    could get. That ends code in Python, such as the loops of a template, and no call into a library.
    """
    outcome: list[tuple[str, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append(("", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeoutError))
        thread.join(1.0)
        raise TimeoutError
    ((result, error),) = outcome
    if error is not None:
        raise error
    return result
