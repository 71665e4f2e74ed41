"""A task's data as they are used: prompts by split and row, and the data of several tasks under their names."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gradus.pipeline.tasks.metadata import BATCH
from gradus.pipeline.tasks.prompt_order import read_prompts
from gradus.pipeline.tasks.splits import SPLITS, named
from gradus.pipeline.types import Prompt, transcript

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """A task's prompts and their splits, which never change during a run."""

    train: Dataset
    """Prompts to train on."""
    validation: Dataset
    """Prompts on which a stage's best checkpoint is selected; may be empty."""
    heldout: Dataset
    """Prompts that accuracy is reported on."""
    hashes: dict[str, str]
    """split -> sha256 over its rows."""
    sizes: dict[str, int]
    """split -> number of rows."""
    notes: list[str]
    """Lines for the user: duplicates, rows that were left out, leaks that were removed."""
    source: str
    """A description of the prompts' source."""
    has_demonstrations: bool
    """Whether every training prompt has a demonstration."""
    name: str = ""
    """The task's name; empty where the pipeline has one task."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """How a stage asks the task's prompts: fields that all of them get, such as ``system``."""

    def prompts(self, split: Dataset, indices: Iterable[int]) -> list[Prompt]:
        """The prompts at these rows of one of the splits."""
        return read_prompts(split, indices, self.given)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that every prompt is given beside its row."""
        return {**({"task": self.name} if self.name else {}), **self.asked}


class Tasks(dict[str, TaskData]):
    """name -> data, of some of the tasks of a pipeline; the only task of a pipeline has the empty name."""

    def only(self, names: Iterable[str]) -> Tasks:
        """Some of them."""
        return Tasks({name: self[name] for name in names})

    def asked(self, how: Mapping[str, Mapping[str, Any]]) -> Tasks:
        """These tasks as a stage asks them: ``how`` has the fields that the prompts of some of them get."""
        return Tasks({name: replace(task, asked=how.get(name, {})) for name, task in self.items()})

    @property
    def hashes(self) -> dict[str, str]:
        """split -> sha256 over its rows; where tasks have names, these go before: ``math.train``."""
        return {named(name, split): digest for name, task in self.items() for split, digest in task.hashes.items()}

    @property
    def notes(self) -> list[str]:
        """Lines for the user, about any of them."""
        return [f"{name}: {note}" if name else note for name, task in self.items() for note in task.notes]

    def prompts(self, split: str) -> list[Prompt]:
        """Every prompt of a split, task after task."""
        return [prompt for task in self.values() for prompt in all_prompts(task, split)]


def all_prompts(task: TaskData, split: str) -> list[Prompt]:
    """Every prompt of a split."""
    dataset = getattr(task, split)
    return task.prompts(dataset, range(len(dataset)))


def first_prompt(tasks: Tasks) -> Prompt:
    """A prompt to show: the first one to train on."""
    task = next(iter(tasks.values()))
    return task.prompts(task.train, [0])[0]


def longest_prompts(tasks: Tasks, count: int = 16) -> list[Prompt]:
    """Of each split of each task the prompts with the longest questions, the longest first."""
    found = list[Prompt]()
    for task, split in itertools.product(tasks.values(), SPLITS):
        dataset = getattr(task, split)
        questions: Any = dataset.select_columns(["question"])
        lengths = (len(text) for batch in questions.iter(BATCH) for text in batch["question"])
        longest = heapq.nlargest(count, ((length, row) for row, length in enumerate(lengths)))
        found += task.prompts(dataset, [row for _, row in longest])
    return sorted(found, key=lambda prompt: len(prompt.question), reverse=True)


def texts(tasks: Tasks) -> Iterator[str]:
    """Questions and demonstrations of the training splits, for training a tokenizer."""
    for data, start in ((task, start) for task in tasks.values() for start in range(0, len(task.train), BATCH)):
        for prompt in data.prompts(data.train, range(start, min(start + BATCH, len(data.train)))):
            yield transcript(prompt.conversation)
            if prompt.demonstration is not None:
                yield prompt.demonstration
