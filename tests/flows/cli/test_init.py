"""`gradus init`: what it guesses from files of each form, that the result checks, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import data_rows
import datasets as library
import pytest
from chat_models import described, save_chat_model
from command_line import Gradus, quiet_process
from huggingface_hub import constants
from task_sources import write_jsonl

from gradus.flows.init.answers import CHOSEN
from gradus.flows.init.propose import SYSTEM
from gradus.pipeline.common import yaml_text
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.rewards.extraction import extract_answer
from gradus.pipeline.tasks.task import build_task
from gradus.stages import discover

__all__ = ["quiet_process"]
pytestmark = pytest.mark.usefixtures("quiet_process")

Row = dict[str, Any]
CHAIN = ["dapo", "gfpo", "srpo"]
FORMS: dict[str, tuple[Callable[[int], Row], str, dict[str, Any], list[str]]] = {
    "gsm8k": (data_rows.gsm8k, "numeric_answer", {"reference": "auto"}, ["sft", *CHAIN]),
    "verl": (data_rows.verl, "numeric_answer", {}, CHAIN),
    "tulu": (data_rows.tulu, "length", {"max": 1000}, ["sft"]),
    "ultrafeedback": (data_rows.ultrafeedback, "length", {"max": 1000}, ["sft"]),
    "alpaca": (data_rows.alpaca, "numeric_answer", {"extract": "whole"}, ["sft", *CHAIN]),
    "sharegpt": (data_rows.sharegpt, "numeric_answer", {"extract": "whole"}, ["sft", *CHAIN]),
    "rlvr": (data_rows.rlvr, "numeric_answer", {}, CHAIN),
    "latex": (lambda n: {"problem": f"Root of {n}?", "answer": rf"\sqrt{{{n}}}"}, "math_verify", {}, CHAIN),
    "worked": (
        lambda n: {"problem": f"Root of {n}?", "solution": rf"As $x^2={n}$, it is \boxed{{\sqrt{{{n}}}}}."},
        "math_verify",
        {"reference": "auto"},
        ["sft", *CHAIN],
    ),
    "choices": (
        lambda n: {"question": f"Is {n} A) even or B) odd?", "answer": "AB"[n % 2]},
        "exact_answer",
        {"extract": CHOSEN, "ignore_case": True},
        CHAIN,
    ),
    "words": (
        lambda n: {"Question": f"Is {n} even?", "label": ["yes", "no"][n % 2]},
        "exact_answer",
        {"ignore_case": True},
        CHAIN,
    ),
    "code": (
        lambda n: {"prompt": f"Write a function that adds {n}.", "tests": [f"assert f(1) == {n + 1}"]},
        "length",
        {"max": 1000},
        CHAIN,
    ),
    "unanswered": (lambda n: {"prompt": f"Say {n}."}, "length", {"max": 1000}, CHAIN),
}
"""name -> (a row, the first reward, its options, the stages)."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(gradus: Gradus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gradus]:
    monkeypatch.chdir(gradus.folder)
    yield gradus


def parsed(path: Path) -> Any:
    return yaml_text.parse(path.read_text(encoding="utf-8"), path.name).data


@pytest.mark.parametrize("name", FORMS)
def test_each_form_becomes_a_configuration_that_checks(name: str, here: Gradus, model: Path) -> None:
    row, reward, params, stages = FORMS[name]
    write_jsonl(Path(f"{name}.jsonl"), [row(n) for n in range(2, 60)])
    told = here("init", "--model", str(model), "--data", f"{name}.jsonl").output.splitlines()
    written = Path(f"{name}.yaml")
    made = parsed(written)
    assert (made["rewards"][0]["reward"], made["rewards"][0].get("params", {})) == (reward, params)
    assert [stage["stage"] for stage in made["stages"]] == stages
    assert made["task"]["path"] == f"{name}.jsonl"
    assert any("none fits" in line for line in told) == (reward == "length") == (made["rewards"][0].get("weight") == 0)
    comments = " ".join(line.strip("# ") for line in written.read_text().splitlines() if line[:1] == "#")
    guesses = [line.partition(": ")[2] for line in told if line.split(":")[0] in made]
    assert len(guesses) > 5 and all(guess in comments for guess in guesses)
    assert "is valid" in here("check", written.name).output


def test_lengths_come_from_the_data_and_fit_the_model(here: Gradus, model: Path, tmp_path: Path) -> None:
    worked = [{"question": f"{n}?", "answer": str(n), "solution": "so " * (n % 30) + f"answer: {n}"} for n in range(90)]
    write_jsonl(Path("d.jsonl"), worked)
    here("init", "a.yaml", "--model", str(model), "--data", "d.jsonl")
    roomy = parsed(Path("a.yaml"))
    assert roomy["task"]["columns"] == {"demonstration": "solution"}
    assert "overlong_prompts" not in roomy["task"]
    narrow = Path(shutil.copytree(model, tmp_path / "narrow"))
    described(narrow, max_position_embeddings=roomy["sampling"]["max_tokens"] + 70)
    write_jsonl(Path("d.jsonl"), [*worked, *({"question": "why " * 300 + str(n), "answer": "1"} for n in range(5))])
    told = here("init", "b.yaml", "--model", str(narrow), "--data", "d.jsonl").output
    small = parsed(Path("b.yaml"))
    assert small["sampling"]["max_tokens"] < roomy["sampling"]["max_tokens"]
    assert small["task"]["overlong_prompts"] == "drop" and "5 of 95 prompts" in told


def test_many_files_without_a_model_and_in_another_folder(here: Gradus) -> None:
    Path("parts").mkdir()
    Path("made").mkdir()
    for part in range(2):
        rows = [data_rows.gsm8k(n) for n in range(600 * part, 600 * part + 600)]
        write_jsonl(Path("parts") / f"{part}.jsonl", rows)
    for number, given in enumerate(("parts", "parts/*.jsonl")):
        told = here("init", f"made/{number}.yaml", "--data", given).output
        made = parsed(Path(f"made/{number}.yaml"))
        assert made["policy"]["architecture"]["max_position_embeddings"] >= made["sampling"]["max_tokens"] + 60
        assert (made["task"]["heldout"], made["task"]["validation"]) == (120, 60)
        assert "a small new model" in told and "1,200 rows" in told
        assert [stage.get("guard") for stage in made["stages"]] == [None, {}, None, None]
        here("check", f"made/{number}.yaml")


@pytest.mark.parametrize(("name", "rewards"), [("chain_sum", ["exact_answer", "equation_steps"]),
                                               ("spell_backward", ["reasoning_gym"])])  # fmt: skip
def test_generated_problems_stand_in_place_of_data(name: str, rewards: list[str], here: Gradus) -> None:
    here("init", "--task", f"reasoning_gym:{name}")
    made = parsed(Path(f"{name}.yaml"))
    assert [each["reward"] for each in made["rewards"]] == rewards
    assert (made["stages"][0]["stage"] == "sft") == (name == "chain_sum")
    here("check", f"{name}.yaml")


@pytest.mark.parametrize(
    ("written", "instead", "policy", "params"),
    [
        ("assistant\n", "assistant\n<think>\n", {}, {"answer_after": "</think>"}),
        ("{% for", "{% if enable_thinking %}{% endif %}{% for", {"template_args": {"enable_thinking": False}}, {}),
        ("{% for", "{# a system turn is fine #}{% for", {"system": SYSTEM}, {}),
        ("{% for", "{% if false %}{{ raise_exception('no system turn') }}{% endif %}{% for", {}, {}),
    ],
    ids=["open thought", "may think", "system turn", "no system turn"],
)
def test_what_the_template_does_is_noticed(
    written: str, instead: str, policy: Row, params: Row, here: Gradus, model: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    template = (changed / "chat_template.jinja").read_text()
    (changed / "chat_template.jinja").write_text(template.replace(written, instead, 1))
    write_jsonl(Path("d.jsonl"), [data_rows.rlvr(n) for n in range(50)])
    here("init", "--model", "changed", "--data", "d.jsonl")
    made = parsed(Path("d.yaml"))
    assert made["policy"] == {"path": "changed", **policy}
    assert made["rewards"][0].get("params", {}) == params
    here("check", "d.yaml")


def test_batches_fit_the_hardware_that_is_named(here: Gradus, model: Path) -> None:
    write_jsonl(Path("d.jsonl"), [data_rows.gsm8k(n) for n in range(60)])
    here("init", "a.yaml", "--model", str(model), "--data", "d.jsonl", "--hardware", "L4")
    told = here("init", "b.yaml", "--model", str(model), "--data", "d.jsonl", "--hardware", "cpu:0.005GB").output
    roomy, tight = (parsed(Path(name))["stages"] for name in ("a.yaml", "b.yaml"))
    assert roomy[1]["prompts_per_step"] == 16 > tight[1]["prompts_per_step"]
    assert tight[1]["gradient_checkpointing"] and "with " in told


@pytest.mark.parametrize(
    ("completion", "chosen"),
    [("The answer is B.", "B"), ("answer: (c)", "c"), (r"so \boxed{A}", "A"), ("A is wrong.\n#### D", "D"),
     (r"**Answer:** **B**", "B"), (r"\boxed{\text{E}}", "E"), ("Answer is A. No, the answer is B", "B"),
     ("A is better than B", None), ("The answer is apples", None)],
)  # fmt: skip
def test_a_choice_is_found_where_a_model_says_it(completion: str, chosen: str | None) -> None:
    assert extract_answer(completion, CHOSEN) == chosen


def refused(here: Gradus, *words: str) -> str:
    before = {path.name: path.stat().st_mtime_ns for path in here.folder.iterdir()}
    result = here("init", *words, code=2)
    assert {path.name: path.stat().st_mtime_ns for path in here.folder.iterdir()} == before
    return result.stderr


def test_what_cannot_be_used_is_refused_and_nothing_is_written(here: Gradus, model: Path) -> None:
    good = Path("good.jsonl")
    write_jsonl(good, [data_rows.gsm8k(n) for n in range(50)])
    write_jsonl(Path("odd.jsonl"), [{"x": 1, "y": 2}] * 2)
    Path("empty.jsonl").write_text("")
    write_jsonl(Path("single.jsonl"), [data_rows.gsm8k(1)])
    Path("broken.jsonl").write_text(json.dumps(data_rows.gsm8k(1)) + "\n{nonsense\n")
    Path("nomodel").mkdir()
    data = ("--data", str(good))
    assert "did you mean `good.jsonl`" in refused(here, "--data", "god.jsonl")
    assert "matches the pattern" in refused(here, "--data", "nothing*.jsonl")
    assert "x, y" in refused(here, "--data", "odd.jsonl")
    assert "with 0 rows" in refused(here, "--data", "empty.jsonl")
    assert "with 1 rows" in refused(here, "--data", "single.jsonl")
    assert "line 2" in refused(here, "--data", "broken.jsonl")
    assert "--model" in (said := refused(here, "--model", "nomodel", *data)) and "config.json in it" in said
    assert "no such model folder" in refused(here, "--model", "./missing", *data)
    assert "either data or a task" in refused(here)
    assert "either data or a task" in refused(here, "--data", "")
    assert "either data or a task" in refused(here, *data, "--task", "reasoning_gym:chain_sum")
    assert "--task" in (said := refused(here, "--task", "reasoning_gym:chain_summ")) and "`chain_sum`" in said
    assert "reasoning_gym:NAME" in refused(here, "--task", "sums")
    assert "replaces none" in refused(here, here.config.name, *data)
    assert "name in .yaml" in refused(here, "new.txt", *data)
    assert "existing folder" in refused(here, "nowhere/new.yaml", *data)
    here("init", *data)
    assert "replaces none" in refused(here, *data)


def test_a_data_set_of_a_hub_that_cannot_be_reached(here: Gradus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused(here, "--data", "nobody/nothing")
    assert "where:    --data" in said and "cannot be reached" in said


def rows_in(file: Path, count: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(file, [data_rows.gsm8k(n) for n in range(count)])


def test_of_several_subsets_and_splits_one_is_taken_and_the_others_are_told(
    here: Gradus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(here.folder / "cache"))
    page = "---\nconfigs:\n"
    for subset, splits in {"easy": ("train", "test"), "hard": ("dev", "test")}.items():
        page += f"- config_name: {subset}\n  data_files:\n"
        for split in splits:
            rows_in(Path(f"set/{subset}/{split}-0.jsonl"), 40)
            page += f"  - split: {split}\n    path: {subset}/{split}-*\n"
    for default, subset, split in (("", "easy", "train"), ("  default: true\n", "hard", "dev")):
        Path("set/README.md").write_text(f"{page}{default}---\n# Sums\n")
        said = here("init", f"{subset}.yaml", "--data", "set").output
        splits = "train, test" if subset == "easy" else "dev, test"
        others = "easy, hard" if subset == "easy" else "hard, easy"
        assert f"subset {subset} of {others}: task.subset names another" in said
        assert f"split {split} of {splits}: task.split names another, task.heldout_split one to hold out" in said
        task = parsed(Path(f"{subset}.yaml"))["task"]
        wanted = {"source": "hub", "dataset": "set", "subset": subset}
        assert task.items() >= (wanted | ({"split": "dev"} if split == "dev" else {})).items()
        assert task["heldout"] == 4 and ("split" in task) is (split == "dev")
        loaded = load_config(f"{subset}.yaml", [], [stage.config for stage in discover().values()]).config
        assert build_task(loaded.task, Path(), here.folder / subset).sizes == {
            "train": 36,
            "validation": 0,
            "heldout": 4,
        }
    rows_in(Path("plain/train.jsonl"), 30)
    rows_in(Path("plain/test.jsonl"), 30)
    said = here("init", "plain.yaml", "--data", "plain").output
    assert "subset" not in said and "split train of train, test" in said
    assert parsed(Path("plain.yaml"))["task"].items() >= {"source": "hub", "dataset": "plain", "heldout": 3}.items()
    Path("set/README.md").write_text("---\nconfigs: 3\n---\n")
    assert "cannot be loaded" in refused(here, "--data", "set")
