"""What a stage depends on. Identity, order, plan, forks and pictures go by these functions alone.

A stage starts from the checkpoint of its parent: the stage before it in the list, or the one that ``from`` names. Only
earlier stages can be named, so that the list is an order in which everything can be done. Places are counted from 0;
None is the pipeline's starting policy, which configurations call ``start``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradus.pipeline.common.errors import closest
from gradus.pipeline.config.training.objective import PREVIOUS, START

GOES_BY = ("prompts.from", "curriculum.from", "order.from", "demonstrations.from")
"""Options that name stages by whose other records a stage goes: what they remember of prompts, what they wrote."""


def named(stage: Any, options: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(option, name) of each stage that these options of a stage name, and of each model from elsewhere.

    Options that name stages whose checkpoints are read beside the parent's are those in ``stage.other_policies``.
    """
    for option in options:
        value = stage
        for part in option.split("."):
            value = getattr(value, "from_" if part == "from" else part, None)
        names = (value,) if isinstance(value, str) else value.values() if isinstance(value, dict) else value or ()
        for name in names:
            yield option, name


def _origin_options(stage: Any) -> tuple[str, ...]:
    """The options that say where the weights of a stage come from."""
    return ("from",) if stage.trains else ("from", *stage.other_policies)


def _places(stages: Sequence[Any], index: int, options: Iterable[str]) -> list[int]:
    """The places of the earlier stages that these options of a stage name."""
    earlier = [each.label for each in stages[:index]]
    return [earlier.index(name) for _, name in named(stages[index], options) if name in earlier]


def parent(stages: Sequence[Any], index: int) -> int | None:
    """The stage that a stage starts from: that of its ``from``, the first of which it is made, or the one before it."""
    earlier = [each.label for each in stages[:index]]
    for _, name in named(stages[index], _origin_options(stages[index])):
        if name in earlier:
            return earlier.index(name)
        if name == START:
            return None
    return index - 1 if index else None


def parent_label(stages: Sequence[Any], index: int) -> str:
    """The name of what a stage starts from."""
    place = parent(stages, index)
    return START if place is None else stages[place].label


def reads(stages: Sequence[Any], index: int) -> list[int]:
    """The stages whose checkpoints a stage reads: its parent, then those that its options name."""
    place, others = parent(stages, index), _places(stages, index, stages[index].other_policies)
    return list(dict.fromkeys(others if place is None else [place, *others]))


def origins(stages: Sequence[Any], index: int) -> list[str]:
    """The names of what a stage starts from, or of all that it is made of, models from elsewhere included."""
    return [*(getattr(stages[index], "of", None) or [parent_label(stages, index)])]


def inputs(stages: Sequence[Any], index: int) -> list[int]:
    """The stages that the result of a stage depends on directly."""
    return sorted({*reads(stages, index), *_places(stages, index, GOES_BY)})


def elsewhere(stages: Sequence[Any], index: int) -> list[str]:
    """The folders and Hub ids of the models that a stage reads and that no stage makes."""
    known = {START, PREVIOUS, *(each.label for each in stages)}
    return [name for _, name in named(stages[index], stages[index].other_policies) if name not in known]


def made_of(stages: Sequence[Any], stage: Any) -> list[Any]:
    """The stages out of whose weights alone a stage makes its own; none where it trains."""
    if stage.trains:
        return []
    index = [each.label for each in stages].index(stage.label)
    return [stages[place] for place in _places(stages, index, stage.other_policies)]


def lineage(stages: Sequence[Any], index: int) -> list[int]:
    """The parent of a stage and all before it, from the first one on."""
    place = parent(stages, index)
    return [] if place is None else [*lineage(stages, place), place]


def ancestors(stages: Sequence[Any], index: int) -> list[int]:
    """All stages that the weights of a stage come from: its parent's line, and what a merge in it is made of."""
    place = parent(stages, index)
    direct = {*(() if place is None else (place,)), *_places(stages, index, _origin_options(stages[index]))}
    return sorted({each for source in direct for each in (source, *ancestors(stages, source))})


def beside(stages: Sequence[Any], index: int) -> list[int]:
    """The stages that a stage depends on, but for those that its parent comes from, whose content vouches for them."""
    place = parent(stages, index)
    vouched = [] if place is None else [place, *ancestors(stages, place)]
    return [each for each in inputs(stages, index) if each not in vouched]


def needed(stages: Sequence[Any], index: int) -> set[int]:
    """All stages that the result of a stage depends on."""
    found = inputs(stages, index)
    return {each for place in found for each in (place, *needed(stages, place))}


def dependents(stages: Sequence[Any], index: int) -> list[int]:
    """All stages whose results depend on that of a stage."""
    return [later for later in range(index + 1, len(stages)) if index in needed(stages, later)]


def readers(stages: Sequence[Any], index: int) -> list[int]:
    """The stages that read the checkpoint of a stage; none where it is an end of the graph."""
    return [later for later in range(index + 1, len(stages)) if index in reads(stages, later)]


def starts(stages: Sequence[Any]) -> list[int]:
    """The stages that read the policy before any stage."""
    reading = [[name for _, name in named(stage, stage.other_policies)] for stage in stages]
    return [index for index, names in enumerate(reading) if START in names or parent(stages, index) is None]


def is_chain(stages: Sequence[Any]) -> bool:
    """Whether every stage starts from the one before it, and none is made of several."""
    line = [None, *range(len(stages) - 1)]
    return all(each.trains for each in stages) and [parent(stages, index) for index in range(len(stages))] == line


def check_graph(stages: Sequence[Any]) -> None:
    """Every stage that another one starts from, or is made of, is an earlier one. Raises: ValueError."""
    labels = [stage.label for stage in stages]
    for index, stage in enumerate(stages):
        for option, name in named(stage, _origin_options(stage)):
            key = f"stages.{stage.label}.{option}"
            if name == START and START in labels:
                raise ValueError(f"{key}: `{START}` is the policy before any stage here, and a stage's name: rename it")
            if name == START or name in labels[:index] or (option != "from" and is_model(name)):
                continue
            raise ValueError(f"{key}: {name} {_wrong(stages, index, name, models=option != 'from')}")


def is_model(name: str) -> bool:
    """Whether a name among ``of`` is that of a model from elsewhere: a folder, or an id of the Hub."""
    return "/" in name


def _wrong(stages: Sequence[Any], index: int, name: str, models: bool) -> str:
    """Why a stage cannot be named at another one, and which can."""
    labels = [stage.label for stage in stages]
    known = [START, *labels[:index]]
    if name in labels:
        if circle := _way(stages, labels.index(name), labels[index]):
            return (
                f"would be a cycle, {' -> '.join([labels[index], *circle])}: a stage can start from earlier ones only"
            )
        return f"comes later in the list: put it before {labels[index]}"
    meant = closest(name, known)
    expected = ", ".join(known) + (", or a model: a folder or an id of the Hub, with a slash in it" if models else "")
    return f"is no stage before it; expected one of {expected}" + (f"; {meant}" if meant else "")


def _way(stages: Sequence[Any], place: int, to: str, seen: tuple[int, ...] = ()) -> list[str]:
    """The names from a stage back to another one, along whatever they name or stand behind; empty: it leads not."""
    labels, label = [stage.label for stage in stages], stages[place].label
    if label == to:
        return [label]
    stage = stages[place]
    origins_ = [name for _, name in named(stage, _origin_options(stage))] or labels[:place][-1:]
    sources = [*origins_, *(name for _, name in named(stage, (*stage.other_policies, *GOES_BY)))]
    for name in sources:
        other = labels.index(name) if name in labels else place
        if other not in (*seen, place) and (way := _way(stages, other, to, (*seen, place))):
            return [label, *way]
    return []
