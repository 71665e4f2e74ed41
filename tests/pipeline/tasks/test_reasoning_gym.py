"""The data sets of reasoning_gym: their scorers, reproducible problems, and problems with a wrong answer."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import REPOSITORY
from task_sources import gym

from gradus.pipeline.tasks.arithmetic import solve
from gradus.pipeline.tasks.reasoning_gym import gym_dataset, read_gym
from gradus.pipeline.tasks.task import build_task


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("basic_arithmetic", {"max_terms": 3}),
        ("arc_1d", {}),
        ("codeio", {}),
        ("countdown", {}),
        ("graph_color", {}),
        ("knights_knaves", {}),
        ("maze", {"max_dist": 6}),
        ("propositional_logic", {}),
        ("simple_geometry", {}),
        ("sudoku", {}),
        ("composite", {"datasets": [{"name": "leg_counting"}, {"name": "gcd", "weight": 2.0}]}),
    ],
)
def test_a_stored_prompt_is_scored_as_the_generated_one(name, params, tmp_path):
    """Tuples, sets, numbers as keys and numpy values are restored, so the data set's own scorer works."""
    task = gym(name, params=params, size=4, heldout=2, seed=3)
    data = build_task(task, tmp_path, tmp_path / "data")
    for prompt in data.prompts(data.train, range(len(data.train))):
        dataset = gym_dataset(prompt.metadata["gym_dataset"], prompt.metadata["gym_params"])
        best = prompt.answer or prompt.metadata.get("example_answer") or json.dumps(prompt.metadata["possible_answer"])
        entry = {"question": prompt.question, "answer": prompt.answer, "metadata": prompt.metadata}
        assert dataset.score_answer(best, entry) == 1.0
        assert dataset.score_answer("no answer at all", entry) < 1.0


def test_a_generator_that_depends_on_hash_order_is_reproducible():
    task = gym("ransom_note", size=3, heldout=1)
    with ThreadPoolExecutor() as pool:  # each generates in an interpreter of its own
        first, second = pool.map(lambda _: list(read_gym(task, [])), range(2))
    assert first == second and len(first[0]["question"]) == 4


def test_problems_whose_reference_answer_is_wrong_are_left_out(tmp_path):
    data = build_task(gym("basic_arithmetic", size=1000), tmp_path, tmp_path / "data")
    assert any("unusable" in note for note in data.notes)
    for prompt in data.prompts(data.train, range(len(data.train))):
        assert solve(prompt.metadata["expression"]).endswith(f"answer: {prompt.answer}")


def test_reasoning_gym_without_pycosat_lacks_one_data_set_only() -> None:
    script = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "pycosat": raise ModuleNotFoundError(name)
sys.modules.pop("pycosat", None)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "pycosat" else real(name, package)
sys.meta_path.insert(0, Without())
from gradus.pipeline.config.task import ReasoningGymTask
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.tasks.reasoning_gym import check_gym
check_gym(ReasoningGymTask(source="reasoning_gym", dataset="chain_sum"))
try:
    check_gym(ReasoningGymTask(source="reasoning_gym", dataset="zebra_puzzles"))
except UserError as error:
    assert "pip install pycosat" in str(error), error
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "told", done.stderr
