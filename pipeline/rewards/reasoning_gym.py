"""reasoning_gym's own scorers, called with the entry that the prompt came from."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal

from gradus.pipeline.types import Prompt


def score_answer(prompt: Prompt, answer: str, unreadable: Literal["error", "zero"] = "error") -> float:
    """What the prompt's data set gives to an answer, in [0, 1].

    Some scorers read their data set's options (word lists, precision, limits): the data set is built as it was for the
    prompt, from ``gym_dataset`` and ``gym_params`` in the metadata.

    Departure: game_of_life_halting compares ``bool(answer)``, which is true of any text; here the texts are compared.

    Raises: ValueError where the prompt is not from reasoning_gym; whatever the scorer raises, unless ``unreadable`` is
    ``zero`` and the scorer gets through the reference answer.
    """
    metadata = prompt.metadata
    if "source_dataset" not in metadata:
        raise ValueError(f"prompt {prompt.id} is not from reasoning_gym: its metadata has no source_dataset")
    if metadata["source_dataset"] == "game_of_life_halting":
        return float(answer == prompt.answer)
    params = metadata.get("gym_params") or {}
    name = metadata.get("gym_dataset") or ("composite" if "datasets" in params else metadata["source_dataset"])
    scorer = _dataset(name, json.dumps(params, sort_keys=True, default=repr), _Holder(params)).score_answer
    entry = {"question": prompt.question, "answer": prompt.answer, "metadata": metadata}
    try:
        return float(scorer(answer, entry))
    except Exception:
        if unreadable == "error":
            raise
    scorer(prompt.answer, entry)  # a scorer that fails on the reference too is broken, and says so
    return 0.0


class _Holder:
    """Carries the options past the cache, whose key is their JSON text beside it."""

    def __init__(self, params: dict[str, Any]):
        self.params = params

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=16)
def _dataset(name: str, key: str, holder: _Holder) -> Any:
    """A data set to score with; building one can read word lists, so it is kept."""
    from gradus.pipeline.tasks.reasoning_gym import gym_dataset

    return gym_dataset(name, holder.params)
