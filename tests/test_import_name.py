"""The project takes one name, ``gradus``: a user's own ``pipeline``, ``stages``, ``flows`` and ``configs`` stay theirs.

Everything runs from the installed wheel, in folders that hold modules of these names, in every kind of process.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flow_runs import make_pool
from installed import Installed, install, write_users_folder
from paths import REPOSITORY
from prefect_home import end_servers

from gradus.pipeline.common.files import read_json
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.tracking.position import count_undelivered

pytestmark = pytest.mark.timeout(900)
UPLOADER, RANK, REWARDS = "tracking.uploader", "execution.rank_process", "rewards.workers.child"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    made = install(wheel, tmp_path_factory.mktemp("installed"))
    yield made
    end_servers(made.home)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, whose own folders are packages."""
    return write_users_folder(tmp_path_factory.mktemp("packages"), packages=True)


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, whose own folders are namespaces: they lose against a package of their name anywhere."""
    return write_users_folder(tmp_path_factory.mktemp("spaces"), packages=False)


def assert_each_finds_its_own(installed: Installed, folder: Path, *processes: str) -> None:
    """Ours for ours, theirs for theirs, in every process; among them must be these, each a part of its command."""
    found = installed.imports(folder)
    theirs = {"flows": folder / "flows", "stages": folder / "stages", "pipeline": folder / "pipeline.py"}
    for each in found:
        expected = installed.target / "gradus" if each["name"] == "gradus" else theirs.get(each["name"])
        assert {*each["places"]} == {str(expected)}, each
        assert each["name"] == "gradus" or REWARDS in each["command"], (
            "only the user's reward imports the user's modules"
        )
    for process in (REWARDS, *processes):
        names = {each["name"] for each in found if process in each["command"]}
        assert names == {"gradus", *theirs} if process == REWARDS else names == {"gradus"}, (process, names)


def assert_done(installed: Installed, folder: Path, run: str) -> None:
    """The run is complete, its curves are delivered, and the user's reward gave every score."""
    path = folder / "runs" / run
    (stage,) = read_json(path / "summary.json")["stages"]
    assert stage["steps"] == 1
    assert metric_history(path / "stages" / "01-dapo" / "journal.jsonl")["reward/score"]
    if count_undelivered(path):  # a launch waits for MLflow for a limited time, which a busy machine may exceed
        installed.gradus(folder, "sync")
    assert count_undelivered(path) == 0, (path / "tracking.log").read_text()


def test_the_wheel_brings_one_name(installed: Installed) -> None:
    names = {path.name for path in installed.target.iterdir()} - {"bin"}
    assert "gradus" in names and len(names) == 2
    assert re.fullmatch(r"gradus_rl-.*\.dist-info", next(iter(names - {"gradus"})))


def test_our_configurations_and_theirs_are_both_found(installed: Installed, spaces: Path, users: Path) -> None:
    ours = str(installed.target / "gradus" / "configs" / "quickstart.yaml")
    assert f"{ours} is valid" in installed.gradus(spaces, "check", "quickstart")
    assert "configs/tiny.yaml is valid" in installed.gradus(users, "check", "configs/tiny.yaml")


def test_a_run_in_two_processes(installed: Installed, spaces: Path) -> None:
    installed.gradus(spaces, "run", "configs/tiny.yaml", "--engine", "none", "--set", "launch.processes=2")
    assert_done(installed, spaces, "tiny")
    children = ("tasks.background", UPLOADER, "execution.torchrun", RANK)
    assert_each_finds_its_own(installed, spaces, "bin/gradus run", *children)


def test_a_flow_and_what_a_worker_starts(installed: Installed, users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.gradus(users, "run", "configs/tiny.yaml")
    assert_done(installed, users, "tiny")
    assert read_json(users / "runs" / "tiny" / "prefect.json")["state"] == "Completed"
    url = read_json(installed.home / "prefect" / "server.json")["url"]
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("GRADUS_HOME", str(installed.home))
    make_pool("gpus")
    with worker(installed, users, url, "gpus"):
        words = ["--on", "gpus", "--name", "second", "--job", f"working_dir={users}"]
        installed.gradus(users, "run", "configs/tiny.yaml", *words)
    assert_done(installed, users, "second")
    assert_each_finds_its_own(installed, users, "bin/gradus run", UPLOADER, "gradus deployed")


def test_a_comparison(installed: Installed, users: Path) -> None:
    options = ["--arms", "dapo,gfpo", "--seeds", "1", "--budget", "4", "--engine", "none"]
    installed.gradus(users, "compare", "configs/arms.yaml", *options)
    assert (users / "runs" / "arms-compare" / "report.html").is_file()
    assert_each_finds_its_own(installed, users, "bin/gradus compare", "flows.cli.arm", UPLOADER)


def test_a_fifth_algorithm_from_its_guide_alone(installed: Installed, tmp_path: Path) -> None:
    """What docs/own-stage.md has users save, and nothing else, outside of the package."""
    page = (REPOSITORY / "docs" / "own-stage.md").read_text()
    for language, name in (("python", "rloo.py"), ("yaml", "rloo.yaml")):
        block = re.search(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        assert block and f"`{name}`" in page[: block.start()]
        (tmp_path / name).write_text(block[1])
    assert "rloo.yaml is valid" in installed.gradus(tmp_path, "check", "rloo.yaml")
    installed.gradus(tmp_path, "run", "rloo.yaml", "--engine", "none")
    sft, rloo = read_json(tmp_path / "runs" / "rloo" / "summary.json")["stages"]
    assert (sft["name"], rloo["name"], rloo["steps"]) == ("sft", "rloo", 3)


@contextlib.contextmanager
def worker(installed: Installed, folder: Path, url: str, pool: str) -> Iterator[None]:
    """A process worker as Prefect's entry point starts it, in the user's folder."""
    command = [str(installed.python), "-P", "-m", "prefect", "worker", "start", "--pool", pool]
    password = (installed.home / "prefect" / "password").read_text().strip()
    settings = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment = installed.environment(folder, **settings)
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(process.pid), *family], 30)
        for each in alive:
            each.kill()
        process.wait()
