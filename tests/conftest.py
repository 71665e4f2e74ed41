"""Shared fixtures: a policy small enough that real sampling and training take milliseconds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from installed import build_wheel
from tiny_policies import tiny_policy

from gradus.pipeline.common.addresses import TRACKING_VARIABLES
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.types import Prompt

pytest_plugins = ["chat_models", "command_line", "faults", "flow_runs", "tracking_runs", "trained_chain"]
"""The helpers whose fixtures any test may ask for; a session's are then made once in each process."""


# Under nohup one is ignored, in a script's background both are, and they would be by what the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = [
    "pipeline/execution/test_launch.py",
    "flows/deploy/test_deploy.py",
    "flows/compare/test_compare.py",
    "pipeline/runs/test_resume.py",
    "flows/orchestrator/test_team_servers.py",
    "test_import_name.py",
    "flows/cli/test_cli_resume.py",
    "pipeline/tracking/test_tracking_deaths.py",
    "pipeline/execution/test_tracking_resume.py",
    "flows/test_flow_interrupted.py",
    "test_gpu_check.py",
    "flows/test_killed_launch.py",
]
"""The files that take longest, longest first: they begin first, so that no worker ends with one of them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(SLOW)}
    assert all(path.exists() for path in places), "a file of this list was moved"
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no GPU"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """MLflow sets these in a process that uses it; they are no part of the next test, nor is what the user has set."""
    for name in TRACKING_VARIABLES.values():
        os.environ.pop(name, None)


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def prompts() -> list[Prompt]:
    """Prompts of different lengths, so that padding is always in play."""
    questions = ["1 + 2 =", "Calculate 12 + 34 - 5 =", "7 * 8 =", "Calculate 9 - 12 + 3 - 4 + 8 ="]
    return [Prompt(id=f"p{i}", question=q, answer=str(i)) for i, q in enumerate(questions)]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side; more threads each would only get in each other's way."""
    torch.set_num_threads(1)
