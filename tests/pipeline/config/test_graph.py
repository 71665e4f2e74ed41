"""Stages as a graph: what each depends on, how it is drawn, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small_pipeline import TASK, pipeline

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.graph import inputs as graph
from gradus.pipeline.config.graph.picture import entries, in_one_line, tree
from gradus.pipeline.config.options import identity
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.runs.identity import wanted
from gradus.stages import discover

SFT, MATH, CODE = {"stage": "sft"}, {"stage": "dapo", "name": "math"}, {"stage": "dapo", "name": "code", "from": "sft"}
SOUP = {"stage": "merge", "name": "soup", "of": ["math", "code"]}
LAST = {"stage": "gfpo", "name": "last", "prompts": {"pass_rate": [0, 0.9], "from": "code"}}
FORK = [SFT, MATH, CODE, SOUP, LAST]


def test_what_stages_depend_on() -> None:
    stages = pipeline([*FORK, {"stage": "dapo", "name": "fresh", "from": "start"}]).stages
    assert [graph.parent(stages, index) for index in range(6)] == [None, 0, 0, 1, 3, None]
    assert [graph.inputs(stages, index) for index in range(6)] == [[], [0], [0], [1, 2], [2, 3], []]
    assert [graph.reads(stages, index) for index in range(6)] == [[], [0], [0], [1, 2], [3], []]
    assert [graph.readers(stages, index) for index in range(6)] == [[1, 2], [3], [3], [4], [], []]
    assert [graph.dependents(stages, index) for index in range(6)] == [[1, 2, 3, 4], [3, 4], [3, 4], [4], [], []]
    assert [graph.lineage(stages, index) for index in range(6)] == [[], [0], [0], [0, 1], [0, 1, 3], []]
    assert [graph.ancestors(stages, index) for index in range(6)] == [[], [0], [0], [0, 1, 2], [0, 1, 2, 3], []]
    assert [graph.beside(stages, index) for index in range(6)] == [[], [], [], [2], [], []]
    assert graph.starts(stages) == [0, 5] and not graph.is_chain(stages)
    aside = pipeline([SFT, MATH, CODE, {**LAST, "from": "math"}]).stages
    assert graph.inputs(aside, 3) == [1, 2] and graph.beside(aside, 3) == [2] and graph.ancestors(aside, 3) == [0, 1]


def test_teachers_and_references_are_inputs() -> None:
    """One that is named for each task, one for all, and the starting policy."""
    tasks = {"sums": TASK, "more": TASK}
    teachers = {"sums": "math", "more": "code"}
    student = {"stage": "opd", "from": "sft", "group_size": 2, "teacher": teachers, "kl": 0.1, "reference": "start"}
    stages = pipeline([SFT, MATH, CODE, {**student, "task": {"sums": 1, "more": 1}}], task="sums", tasks=tasks).stages
    assert (graph.parent(stages, 3), graph.reads(stages, 3), graph.beside(stages, 3)) == (0, [0, 1, 2], [1, 2])
    assert graph.ancestors(stages, 3) == [0] and graph.readers(stages, 1) == [3] and graph.starts(stages) == [0, 3]
    chain = pipeline([SFT, MATH, {"stage": "opd", "group_size": 2, "teacher": "sft"}]).stages
    assert graph.is_chain(chain) and graph.beside(chain, 2) == [] and graph.readers(chain, 0) == [1, 2]


def test_a_merge_is_of_the_tasks_of_what_it_is_made_of() -> None:
    tasks = {"sums": TASK, "more": TASK}
    stages = [{**SFT, "task": "sums"}, {**MATH, "task": {"sums": 1, "more": 3}}, {**CODE, "task": "more"}, SOUP]
    config = pipeline(stages, task=None, tasks=tasks)
    assert config.shares(config.stages[3]) == {"sums": 0.125, "more": 0.875}
    assert config.used_tasks(config.stages[3]) == ["sums", "more"]
    own = pipeline([*stages[:3], {**SOUP, "task": "sums"}], task=None, tasks=tasks)
    assert own.shares(own.stages[3]) == {"sums": 1.0}
    assert config.stages[3].shares == [0.5, 0.5]
    assert pipeline([SFT, MATH, {**SOUP, "of": ["sft", "math"], "weights": [3, 1]}]).stages[2].shares == [0.75, 0.25]


def test_a_chain_is_what_it_was() -> None:
    """Naming the stage before it changes nothing, and no identity of a chain has a word of the graph."""
    plain, said = pipeline([SFT, MATH]), pipeline([SFT, {**MATH, "from": "sft"}])
    assert wanted(plain, 1) == wanted(said, 1) and "from" not in wanted(plain, 1)["stage"]
    assert wanted(pipeline([SFT, {**MATH, "from": "start"}]), 1)["stage"]["from"] == "start"
    assert "from" in identity(plain)["stages"][1], "but a configuration that says it is another one"
    assert in_one_line(plain.stages) == "sft -> math" and entries(plain.stages) == []


def test_the_graph_is_drawn() -> None:
    stages = pipeline(FORK).stages
    assert in_one_line(stages) == "start -> sft; sft -> math; sft -> code; math + code -> soup; soup -> last"
    assert tree(entries(stages)) == [
        "start",
        "└── sft",
        "    ├── math",
        "    │   └── soup = math + code",
        "    │       └── last",
        "    └── code",
    ]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([SFT, {**MATH, "from": "sfft"}], "stages.math.from: sfft is no stage before it; expected one of start, sft; "
                                          "did you mean `sft`?"),
        ([SFT, {**MATH, "from": "math"}], "would be a cycle, math -> math"),
        ([SFT, {**MATH, "from": "soup"}, CODE, SOUP], "would be a cycle, math -> soup -> math"),
        ([SFT, {**MATH, "from": "code"}, {**CODE, "from": "math"}], "would be a cycle, math -> code -> math"),
        ([SFT, {**MATH, "from": "last"}, {**LAST, "prompts": None}], "would be a cycle, math -> last -> math"),
        ([SFT, {**MATH, "from": "code"}, CODE], "stages.math.from: code comes later in the list: put it before math"),
        ([SFT, MATH, CODE, {**SOUP, "of": ["math", "cod"]}], "stages.soup.of: cod is no stage before it; expected one "
         "of start, sft, math, code, or a model: a folder or an id of the Hub, with a slash in it; did you mean"),
        ([SFT, MATH, {**SOUP, "of": ["math", "soup"]}], "stages.soup.of: soup would be a cycle, soup -> soup"),
        ([SFT, MATH, {**SOUP, "of": ["math"]}], "at least 2"),
        ([SFT, MATH, {**SOUP, "of": ["math", "math"]}], "`of` names one model twice"),
        ([SFT, MATH, CODE, {**SOUP, "weights": [1]}], "`weights` has 1 numbers for the 2 models of `of`"),
        ([SFT, MATH, CODE, {**SOUP, "weights": [1, 0]}], "greater than 0"),
        ([SFT, MATH, CODE, {**SOUP, "method": "slerp", "of": ["sft", "math", "code"]}], "arc between two models"),
        ([SFT, MATH, CODE, {**SOUP, "steps": 3}], "Extra inputs"),
        ([SFT, MATH, CODE, SOUP, {**MATH, "name": "on", "carry": ["optimizer"]}], "'soup', which does not train"),
        ([SFT, {**MATH, "from": "start", "carry": ["optimizer"]}], "starts from the policy before any stage"),
        ([SFT, {**MATH, "from": "start", "prompts": {"pass_rate": [0, 1]}}], "policy before any stage: name one"),
        ([{**SFT, "name": "start"}, {**MATH, "from": "start"}], "and a stage's name: rename it"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_cannot_be_is_refused(stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        pipeline(stages)
    assert said in str(caught.value)


def test_a_merge_with_models_from_elsewhere_is_checked_before_compute(tmp_path: Path) -> None:
    def problem(of: list[str], **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            preflight(pipeline([SFT, MATH, {**SOUP, "of": of}], **options), tmp_path, discover())
        return str(caught.value)

    (tmp_path / "task.jsonl").write_text("".join(f'{{"question": "{n}", "answer": "{n}", "solution": "s"}}\n'
                                                 for n in range(60)))  # fmt: skip
    assert "stages.soup.of.1" in (said := problem(["math", str(tmp_path / "gone")])) and "no such model folder" in said
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert "adapters alone cannot be merged" in problem(["math", str(tmp_path / "lora")])
    (tmp_path / "other").mkdir()
    assert "stages.soup.of.1" in (said := problem(["math", str(tmp_path / "other")])) and "config.json" in said


def test_pass_rates_are_by_default_those_of_ancestors(tmp_path: Path) -> None:
    """A sibling's count only where it is named."""
    asked = {"pass_rate": [0, 0.9]}
    (tmp_path / "task.jsonl").write_text("".join(f'{{"question": "{n}", "answer": "{n}", "solution": "s"}}\n'
                                                 for n in range(60)))  # fmt: skip
    fine = pipeline([SFT, MATH, {**CODE, "prompts": {**asked, "from": "math"}}])
    preflight(fine, tmp_path, discover())
    with pytest.raises(UserError) as caught:
        preflight(pipeline([SFT, MATH, {**CODE, "prompts": asked}]), tmp_path, discover())
    assert "stages.code.prompts" in str(caught.value) and "sft, which samples and scores nothing" in str(caught.value)
