"""A data set's first rows: their form, the columns that matter, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradus.flows.init.guesses import Guesses, as_written, given_as
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.task import HubTask, ReasoningGymTask, TableOptions
from gradus.pipeline.rewards.extraction import extract_answer
from gradus.pipeline.tasks.files import SEVERAL_SPLITS, count_rows, files_of, kind_of, rows_of
from gradus.pipeline.tasks.formats import ANSWERS, QUESTIONS, SHOWN, Form, Row, at, form_of
from gradus.pipeline.tasks.hub import head_of_hub, splits_of, subsets_of
from gradus.pipeline.tasks.reasoning_gym import read_gym, solvable
from gradus.pipeline.tasks.tables import normalised

MOST = 20_000
"""Rows that are counted; the sizes of the splits depend on no more."""
GENERATED = 200
"""Problems of reasoning_gym that are looked at."""
OTHER_QUESTIONS = (*QUESTIONS, "input", "text", "instruction", "user", "task")
OTHER_ANSWERS = (*ANSWERS, "label", "target", "gold", "correct_answer", "answer_key", "answerkey", "output", "result")
"""Names of columns that are guessed where none has a usual one, whatever their case."""
SOLUTIONS = ("solution", "rationale", "reasoning", "explanation", "cot", "generated_solution")
"""Names of columns with worked solutions, beside the usual ones of demonstrations."""
TESTS = ("tests", "test_cases", "unit_tests", "test_list", "input_output", "public_tests", "private_tests", "test")
"""Names of columns with a program's tests."""
CHOICES = ("choices", "options")
"""Names of columns with the choices of a question."""
LISTED = 8
"""Subsets or splits that are named."""
MARKED = 0.9
"""The share of texts with an answer marked in them from which all are read that way."""


@dataclass
class Data:
    """What the first rows say."""

    name: str
    task: dict[str, Any]
    """The section ``task`` of the configuration, without what depends on the model."""
    rows: int
    """How many rows there are, as far as they were counted."""
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    demonstrations: list[str] = field(default_factory=list)
    demonstrated: bool = False
    """Whether stages can learn from demonstrations."""
    same: bool = False
    """Whether the answers are the demonstrations."""
    pairs: bool = False
    """Whether rows are preference pairs."""
    choices: str | None = None
    """A column of choices, which prompts do not show."""
    tests: str | None = None
    """The column of a program's tests."""
    system: bool = False
    """Whether rows bring a system turn."""


def look_at(given: str, folder: Path, guesses: Guesses) -> Data:
    """The data that ``--data`` names: files, or a data set of the Hub. Raises: UserError."""
    place = Path(given).expanduser()
    if _is_described(place):
        return _data_set(given, as_written(given, folder), folder, guesses)
    local = place.exists() or kind_of(place) is not None or given.startswith((".", "/", "~"))
    if local or any(sign in given for sign in "*?["):
        try:
            files = files_of(given, Path.cwd(), "--data")
        except UserError as error:
            if error.what != SEVERAL_SPLITS or (place / "dataset_dict.json").exists():
                raise
            return _data_set(given, as_written(given, folder), folder, guesses)
        count, notes = 0, list[str]()
        rows = next((rows for file in files for rows in rows_of(file, "--data", notes)), [])
        for note in notes:
            guesses.add("task", note)
        for file in files:
            count += count_rows(file, "--data", max(1, MOST - count))
        name, task = files[0].name.split(".")[0], {"source": "file", "path": as_written(given, folder)}
        return _read(rows, Data(name, task, count), files[0].name, guesses)
    return _data_set(given, given, folder, guesses)


def _data_set(given: str, dataset: str, folder: Path, guesses: Guesses) -> Data:
    """A data set of the Hub or in a folder: of several subsets the default or first one, of several splits `train`.

    Raises: UserError.
    """
    task = {"source": "hub", "dataset": dataset}
    with given_as("--data", "task.dataset"):
        subsets = subsets_of(HubTask.model_validate(task), folder)
        if len(subsets) > 1:
            task["subset"] = subsets[0]
            guesses.add("task", f"subset {subsets[0]} of {_listed(subsets)}: task.subset names another")
        splits = splits_of(HubTask.model_validate(task), folder)
        split = "train" if "train" in splits else splits[0]
        if split != "train":
            task["split"] = split
        others = f" of {_listed(splits)}: task.split names another, task.heldout_split one to hold out"
        guesses.add("task", f"split {split}{others if len(splits) > 1 else ', the only one'}")
        rows, count = head_of_hub(HubTask.model_validate(task), folder, MOST)
    if count is None:
        guesses.add("task", f"the rows of split {split} were not counted")
    return _read(rows, Data(Path(given).name, task, MOST if count is None else min(count, MOST)), given, guesses)


def _is_described(place: Path) -> bool:
    """Whether a folder is a data set as the Hub has them, whose page names its subsets or files."""
    page = place / "README.md"
    if not page.is_file():
        return False
    head = page.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
    return head.startswith("---") and re.search(r"^(configs|dataset_info):", head, re.MULTILINE) is not None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} others" if len(names) > LISTED else "")


def generated(given: str, guesses: Guesses) -> Data:
    """The data set that ``--task reasoning_gym:NAME`` names. Raises: UserError."""
    kind, _, name = given.partition(":")
    if kind != "reasoning_gym" or not name:
        raise UserError(
            "no task is known by this name",
            where="--task",
            got=given,
            expected="reasoning_gym:NAME, such as reasoning_gym:chain_sum",
            fix="correct it, or give rows of your own with --data",
        )
    solved = solvable(name)
    options = {"source": "reasoning_gym", "dataset": name, "demonstrations": "solver" if solved else "none"}
    task = ReasoningGymTask.model_validate({**options, "size": GENERATED, "heldout": 1})
    found = Data(name, {"source": "reasoning_gym", "dataset": name, "size": 5000}, 5000, demonstrated=solved)
    with given_as("--task", "task.dataset"):
        for batch in read_gym(task, []):
            _add(found, batch)
    if solved:
        found.task["demonstrations"] = "solver"
    worked = "gradus's solver writes them" if solved else "the solver cannot work this data set out"
    guesses.add("task", f"demonstrations {'solver' if solved else 'none'}: {worked}")
    return found


def _read(rows: Sequence[Row], found: Data, source: str, guesses: Guesses) -> Data:
    """Complete the data from their first rows. Raises: UserError."""
    if not rows or found.rows < 2:
        got, expected = f"{source} with {len(rows)} rows", "at least 2: one to train on and one to hold out"
        raise UserError("the data have too few rows", where="--data", got=got, expected=expected, fix="choose others")
    columns = _columns(rows, source, found, guesses)
    options = TableOptions.model_validate({"columns": columns})
    form = form_of(rows, options, source)
    demonstration = _demonstration(rows, form)
    if demonstration is not None:
        columns["demonstration"] = demonstration
        options = TableOptions.model_validate({"columns": columns, "demonstrations": "column"})
        form = form_of(rows, options, source)
    notes: list[str] = []
    for batch in normalised([(source, 1, [dict(row) for row in rows])], options, False, notes, form):
        _add(found, batch)
    if not found.questions:
        raise UserError(
            f"none of the first {len(rows):,} rows is a prompt", where="--data", got="; ".join(notes) or source,
            expected="rows with a question and an answer", fix="docs/data.md has the forms that are read",
        )  # fmt: skip
    shown = len(found.demonstrations)
    found.demonstrated = shown >= len(found.questions) / 2
    found.choices = next((name for name in CHOICES if any(row.get(name) for row in rows)), None)
    found.pairs = form.format == "preference"
    found.same = shown > 0 and (form.answer is None or form.answer == demonstration)
    told = form.told(options)
    guesses.add("task", f"{told}, found on the first {len(rows):,} rows of {source}")
    for note in (note for note in notes if told not in note):
        guesses.add("task", note)
    if found.demonstrated:
        found.task["demonstrations"] = "column"
        of = form.demonstration or SHOWN.get(form.format)
        guesses.add("task", f"demonstrations column: {of} shows how {shown:,} of {len(found.questions):,} are answered")
    if columns:
        found.task["columns"] = columns
    return found


def _add(found: Data, batch: Mapping[str, Any]) -> None:
    found.questions += batch["question"]
    found.answers += [answer for answer in batch["answer"] if answer]
    found.demonstrations += [text for text in batch["demonstration"] if text]
    found.system |= any('"system"' in (more or "") for more in batch.get("more", ()))


def _columns(rows: Sequence[Row], source: str, found: Data, guesses: Guesses) -> dict[str, Any]:
    """The columns that have to be named, because their names are not the usual ones. Raises: UserError."""
    columns: dict[str, Any] = {}
    head = {"columns": {"answer": None}}
    try:
        question = form_of(rows, TableOptions.model_validate(head), source).question
    except UserError as error:
        question = _named(rows, OTHER_QUESTIONS)
        if question is None:
            raise UserError(
                f"no column of {source} has the name of a question", where="--data", got=error.expected,
                expected="question, prompt, problem, query, messages, conversations or instruction",
                fix="rename the column, or write the configuration by hand: task.columns.question names any column",
            ) from None  # fmt: skip
        columns["question"] = question
        guesses.add("task", f"the question is in {question!r}, by its name")
    found.tests = next((name for name in TESTS if any(row.get(name) for row in rows)), None)
    if found.tests is not None:
        return {**columns, "answer": None}
    try:
        answer = form_of(rows, TableOptions.model_validate({"columns": columns}), source).answer
    except UserError:
        answer = columns["answer"] = _named(rows, OTHER_ANSWERS)
        why = "no column has the name of one" if answer is None else f"it is in {answer!r}, by its name"
        guesses.add("task", f"the answer: {why}")
    values = (at(row, answer) for row in rows) if answer is not None else ()
    if answer is not None and any(isinstance(value, dict) or _is_tests(value) for value in values):
        found.tests = answer
        columns["answer"] = None
    return columns


def _is_tests(value: Any) -> bool:
    """Whether an answer is a program's tests: assertions, or JSON of inputs and outputs."""
    texts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(text, str) and ("assert " in text or '"inputs"' in text) for text in texts)


def _named(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    """The first column with one of these names, whatever its case."""
    known = {name.lower(): name for row in rows for name, value in row.items() if value is not None}
    return next((known[name] for name in names if name in known), None)


def _demonstration(rows: Sequence[Row], form: Form) -> str | None:
    """The column of worked solutions, where the form does not contain them; the answers may be worked ones."""
    if form.format in SHOWN:
        return None
    if form.demonstration is not None:
        return form.demonstration
    try:
        wanted = TableOptions.model_validate({"demonstrations": "column", "columns": {"answer": form.answer}})
        return form_of(rows, wanted, "").demonstration
    except UserError:
        pass
    other = _named(rows, SOLUTIONS)
    if other is not None and other != form.answer and any(isinstance(row.get(other), str) for row in rows):
        return other
    answers = list(_texts(rows, form.answer)) if form.answer else []
    return form.answer if answers and share_marked(answers) >= MARKED else None


def _texts(rows: Sequence[Row], column: str) -> Iterator[str]:
    return (value for row in rows if isinstance(value := at(row, column), str) and value.strip())


def share_marked(texts: Sequence[str]) -> float:
    """The share of texts in which an answer is marked, with more around it."""
    found = (extract_answer(text) is not None for text in texts)
    return sum(found) / max(1, len(texts))
