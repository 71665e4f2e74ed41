"""The registry of rewards and their one interface.

A reward is a function ``(prompt, completion, *, options) -> float`` inside a documented range. It raises where it can't
score: an error is counted apart and never becomes a silent 0. Its options are its keyword-only parameters, and their
annotations are what a configuration is checked against.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, Union

from annotated_types import Ge

from gradus.pipeline.common import user_code
from gradus.pipeline.common.errors import UserError, closest
from gradus.pipeline.rewards.extraction import DECLARED
from gradus.pipeline.types import NO_THOUGHTS, Thoughts

GROUP = "gradus.rewards"
"""The entry points by which installed packages publish rewards."""

RewardFunction = Callable[..., float]
Function = TypeVar("Function", bound=RewardFunction)


@dataclass(frozen=True)
class Option:
    """One option of a reward."""

    annotation: Any
    """The type a value must have: str, int, float, bool, a Literal, or a union of these with None. Numbers are finite.
    """
    default: Any = inspect.Parameter.empty
    """Its value where the configuration gives none."""
    least: float | None = None
    """The smallest number it may be; its annotation says it: ``Annotated[float, Ge(0)]``."""

    @property
    def required(self) -> bool:
        """Whether the configuration must give it."""
        return self.default is inspect.Parameter.empty

    @property
    def kind(self) -> str:
        """The type in words."""
        return _in_words(self.annotation)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        kinds = {float: "a finite number", int: "a whole number"}
        bound = "" if self.least is None else f" >= {self.least:g}"
        return kinds.get(self.annotation, self.kind) + bound

    def takes(self, value: Any) -> bool:
        """Whether a value has its type and is within its bound."""
        return _fits(value, self.annotation) and (self.least is None or value >= self.least)


@dataclass(frozen=True)
class Reward:
    """A reward: its function, its range, and where it must run."""

    name: str
    """Its name in configurations."""
    function: RewardFunction
    """(prompt, completion, **options) -> score."""
    low: float
    """Lowest score it may give."""
    high: float
    """Highest score it may give."""
    isolated: bool | Callable[[Mapping[str, Any]], bool] = False
    """Whether it must run in a worker that can be killed; a function decides it from the options."""
    packages: tuple[str, ...] = ()
    """Packages it imports when it first scores; a worker imports them before the clock of the first score starts."""
    check: Callable[..., None] | None = None
    """Takes the options, raises ValueError for values that have the right type but no meaning."""

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0].replace("``", "`")

    @cached_property
    def options(self) -> dict[str, Option]:
        """Its keyword-only parameters."""
        types, annotated = (typing.get_type_hints(self.function, include_extras=extras) for extras in (False, True))
        parameters = inspect.signature(self.function).parameters.values()
        return {
            p.name: Option(types.get(p.name, Any), p.default, _least(annotated.get(p.name)))
            for p in parameters
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        }

    def is_isolated(self, options: Mapping[str, Any]) -> bool:
        """Whether it must run in a worker, given these options."""
        return self.isolated(options) if callable(self.isolated) else self.isolated

    def score(
        self, prompt: Any, completion: str, options: Mapping[str, Any], thoughts: Thoughts = NO_THOUGHTS
    ) -> float:
        """One completion's score; where the prompt has several reference answers, the best that one of them gives.

        An answer that the reward cannot read (a ValueError) is passed over where there is another that it can.
        ``thoughts``: how the policy that wrote it marks what it thinks.

        Raises: whatever the reward raises; TypeError or ValueError where it gives no finite number inside its range.
        """
        told = DECLARED.set(thoughts.of(getattr(prompt, "template_args", None)))
        try:
            return self._best(prompt, completion, options)
        finally:
            DECLARED.reset(told)

    def _best(self, prompt: Any, completion: str, options: Mapping[str, Any]) -> float:
        alternatives = getattr(prompt, "alternatives", ())
        scores, unreadable = [], None
        for each in (prompt, *(replace(prompt, answer=answer) for answer in alternatives)):
            try:
                scores.append(self._score(each, completion, options))
            except ValueError as error:
                unreadable = unreadable or error
        if unreadable is not None and not scores:
            raise unreadable
        return max(scores)

    def _score(self, prompt: Any, completion: str, options: Mapping[str, Any]) -> float:
        value = self.function(prompt, completion, **options)
        if not hasattr(type(value), "__float__"):
            raise TypeError(f"{self.name} gave {_short(value)}, not a number")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{self.name} gave {number}, not a finite number")
        if not self.low <= number <= self.high:
            raise ValueError(f"{self.name} gave {number}, outside its range [{self.low:g}, {self.high:g}]")
        return number


_REWARDS: dict[str, Reward] = {}


def reward(
    name: str,
    *,
    range: tuple[float, float] = (0.0, 1.0),
    isolated: bool | Callable[[Mapping[str, Any]], bool] = False,
    packages: tuple[str, ...] = (),
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function; see the fields of :class:`Reward`."""

    def register(function: Function) -> Function:
        assert name not in _REWARDS, f"two rewards are called {name}"
        assert inspect.getdoc(function), f"the reward {name} needs a docstring: its first line is its summary"
        _REWARDS[name] = Reward(name, function, *range, isolated, packages, check)
        return function

    return register


def names() -> list[str]:
    """The registered rewards, in alphabetical order."""
    return sorted(_REWARDS)


def find(name: str, where: str = "") -> Reward:
    """The reward of the library of that name. Raises: UserError that lists the known ones."""
    if name not in _REWARDS:
        known = list(dict.fromkeys([*names(), *(point.name for point in user_code.published(GROUP))]))
        raise UserError(
            f"unknown reward {name!r}",
            where=where,
            got=name,
            expected="one of " + ", ".join(known) + ", or your own function as `package.module:function`",
            fix=closest(name, known) or "`gradus rewards` describes them",
        )
    return _REWARDS[name]


def check_options(reward: Reward, options: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError where an option is unknown, missing, of the wrong type or without meaning."""
    known = reward.options
    for key, value in options.items():
        place = f"{where}.{key}" if where else key
        if key not in known:
            raise UserError(
                f"reward {reward.name} has no option {key!r}",
                where=place,
                expected="one of " + ", ".join(known) if known else "no options",
                fix=closest(key, known),
            )
        if not known[key].takes(value):
            what = "cannot have this value" if _fits(value, known[key].annotation) else "has the wrong type"
            raise UserError(
                f"option {key!r} of reward {reward.name} {what}",
                where=place,
                got=_short(value),
                expected=known[key].expected,
            )
    missing = [key for key, option in known.items() if option.required and key not in options]
    if missing:
        raise UserError(
            f"reward {reward.name} needs the option {missing[0]!r}", where=where, expected=known[missing[0]].kind
        )
    if reward.check is not None:
        defaults = {key: option.default for key, option in known.items() if not option.required}
        try:
            reward.check(**{**defaults, **options})
        except ValueError as error:
            raise UserError(f"reward {reward.name}: {error}", where=where) from None


def numbers(name: str) -> dict[str, str]:
    """option -> what it must be, of those options of a reward that are numbers; none of a reward from outside."""
    options = _REWARDS[name].options if name in _REWARDS else {}
    return {key: option.expected for key, option in options.items() if option.annotation in (int, float)}


def describe_library() -> list[dict[str, str]]:
    """One row for each reward of the library: name, origin, range, options with types and defaults, place, summary."""
    rows = []
    for name in names():
        item = _REWARDS[name]
        options = [f"{k}: {o.kind}" + ("" if o.required else f" = {o.default!r}") for k, o in item.options.items()]
        runs = "worker if it matches your own pattern" if callable(item.isolated) else "worker"
        rows.append(
            {
                "name": name,
                "range": f"[{item.low:g}, {item.high:g}]",
                "options": ", ".join(options),
                "runs": runs if item.isolated else "in process",
                "summary": item.summary,
                "from": "gradus",
            }
        )
    return rows


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a configuration's value has this type; nothing is coerced but int to float."""
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(annotation))
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(annotation))
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    if annotation in (None, type(None)):
        return value is None
    return type(value) is annotation


def _least(annotation: Any) -> float | None:
    """The bound in an annotation."""
    bounds: list[Any] = [mark.ge for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Ge)]
    return bounds[0] if bounds else None


def _in_words(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join(_in_words(choice) for choice in typing.get_args(annotation))
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _short(value: Any) -> str:
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 120 else text[:117] + "..."
