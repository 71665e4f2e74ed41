"""The sources of a run, gone or altered: it has copies of what it read, and so have its forks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from small_pipeline import pipeline, write_task
from tiny_policies import tiny_policy
from trained_chain import Chain, keep_curves

import gradus
from gradus.flows.compare.run import launch as comparisons
from gradus.flows.compare.run.request import ComparisonRequest, run_comparison
from gradus.pipeline.common import sources, yaml_text

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")
CHANGED = " has changed since it was read"
KEEPS = "the run keeps the copy of that time, and a run under a new name takes what is there now"


class FromFiles(Chain):
    """The command on a run that reads a data file and a model's folder, both beside the runs folder."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        stages = [{"stage": "sft"}, {"stage": "dapo", "group_size": 2}]
        policy = {"path": str(folder / "model"), "device": "cpu"}
        task = {"source": "file", "path": str(folder / "task.jsonl"), "heldout": 12, "demonstrations": "column"}
        task |= {"columns": {"demonstration": "solution"}}
        config = pipeline(stages, name="chain", policy=policy, task=task, checkpoints={"every_steps": 1, "keep": 9})
        self.config.write_text(yaml_text.dump(config.model_dump(mode="json", exclude_unset=True)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_task(folder)
    (folder / "model").mkdir()
    tiny_policy().save(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        keep_curves(patch)
        FromFiles(folder).tell("run", str(folder / "chain.yaml"), "--name", "chain")
    return folder


@pytest.fixture
def chain(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """The run anew in the folder that its configuration names, with its sources."""
    kept = trained.with_name(f"{trained.name}-kept")
    if not kept.exists():
        shutil.copytree(trained, kept)
    shutil.rmtree(trained)
    shutil.copytree(kept, trained)
    monkeypatch.chdir(trained)
    return FromFiles(trained)


def test_without_its_sources_a_run_goes_on_forks_and_is_planned(chain: Chain) -> None:
    undisturbed = chain.contents()
    shutil.rmtree(chain.folder / "model")
    (chain.folder / "task.jsonl").unlink()
    assert "no such file" in chain.tell("run", "chain.yaml", code=2), "a new run needs them"
    chain.stop_after(1, 1)
    assert CHANGED not in chain.tell("plan", "--name", "chain")
    said = chain.tell("fork", "chain", "--from", "dapo", "--set", "stages.dapo.lr=3e-4", "--no-run")
    assert CHANGED not in said and "to train it: gradus resume chain-fork" in said
    chain.tell("resume", "chain-fork")
    chain.tell("fork", "chain-fork", "--from", "sft", "--no-run", "--name", "again")
    made = gradus.fork("chain", "sft", {"stages.sft.lr": 1e-3}, train=False, runs=chain.runs, engine="none")
    assert made.name == "chain-fork-2" and gradus.resume(made.name, runs=chain.runs, engine="none").state == "done"
    chain.tell("run", "chain.yaml", "--name", "chain")
    assert chain.contents() == undisturbed and chain.contents("chain-fork")[0] == undisturbed[0]
    said = chain.tell("fork", "chain", "--from", "sft", "--set", "policy.path=x", code=2)
    assert "`policy.path` changes that" in said


def test_a_run_that_has_its_data_and_no_policy_needs_the_model_alone(chain: Chain) -> None:
    chain.stop_after(0, 0)
    (chain.runs / "chain" / "start.json").unlink()
    (chain.folder / "task.jsonl").unlink()
    chain.tell("resume", "chain")
    (chain.runs / "chain" / "start.json").unlink()
    shutil.rmtree(chain.folder / "model")
    said = chain.tell("resume", "chain", code=2)
    assert "there is no such model folder" in said and "task.path" not in said


def test_a_comparison_goes_on_from_what_its_arms_share(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = list[int]()
    monkeypatch.setattr(comparisons, "launch", lambda comparison, *_: launched.append(len(comparison.jobs)))
    (chain.runs / "chain-compare").mkdir()
    shutil.copytree(chain.runs / "chain", chain.runs / "chain-compare" / "base-seed-0")
    (chain.folder / "task.jsonl").unlink()

    def compare(seeds: list[int]) -> None:
        run_comparison("chain.yaml", [], ComparisonRequest("gfpo,staged", seeds, "60"), chain.runs, "none", Console())

    with pytest.raises(gradus.UserError, match="no such file"):
        compare([0, 1])
    with pytest.raises(gradus.UserError, match="begun with other options"):  # it went as far as the base run itself
        compare([0])
    assert not launched


def rewrite(path: Path) -> None:
    """Other content of the same length."""
    path.write_bytes(path.read_bytes().replace(b"+", b"-"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def add_beside(path: Path) -> None:
    (path.parent / "added_tokens.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "file", "told"),
    [
        (rewrite, "task.jsonl", "task.path: {folder}/task.jsonl{CHANGED}; {KEEPS}"),
        (cut, "model/model.safetensors", "policy.path: {folder}/model{CHANGED} (model.safetensors); {KEEPS}"),
        (add_beside, "model/config.json", "policy.path: {folder}/model{CHANGED} (added_tokens.json); {KEEPS}"),
        (Path.unlink, "model/template.json", "policy.path: {folder}/model{CHANGED} (template.json); {KEEPS}"),
    ],
)
def test_a_changed_source_is_told_in_one_line(
    chain: Chain, change: Callable[[Path], None], file: str, told: str
) -> None:
    undisturbed = chain.contents()
    chain.stop_after(1, 1)
    change(chain.folder / file)
    ways = [["plan", "--name", "chain"], ["fork", "chain", "--from", "dapo", "--no-run"]]
    ways += [["plan", "--name", "chain-fork"], ["fork", "chain-fork", "--from", "sft", "--no-run"]]
    ways += [["run", "chain.yaml", "--name", "chain"], ["resume", "chain", "--from", "dapo"], ["resume", "chain-fork"]]
    for way in ways:
        lines = [line for line in chain.tell(*way).splitlines() if CHANGED in line]
        assert lines == [told.format(folder=chain.folder, CHANGED=CHANGED, KEEPS=KEEPS)], way
    assert chain.contents() == chain.contents("chain-fork") == undisturbed


def test_what_is_the_same_is_not_told_of(chain: Chain) -> None:
    for path in (chain.folder / "task.jsonl", *(chain.folder / "model").iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, (1, 1))
    (chain.folder / "model" / ".DS_Store").write_text("a view")
    (chain.folder / "model" / "other").mkdir()
    (chain.folder / "model" / "other" / "notes.txt").write_text("of the user")
    assert CHANGED not in chain.tell("plan", "--name", "chain")
    data = chain.runs / "chain" / "data" / "data.json"
    data.write_text(
        json.dumps({k: v for k, v in json.loads(data.read_text()).items() if k not in ("sources", "record")})
    )
    rewrite(chain.folder / "task.jsonl")
    assert CHANGED not in chain.tell("plan", "--name", "chain"), "an earlier version has not recorded what it read"


def test_of_big_files_pieces_are_read_and_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", 10)
    file, moment = tmp_path / "weights", (5, 5)
    file.write_bytes(bytes(range(250)) * 40)
    os.utime(file, moment)
    known = sources.look_at(tmp_path)
    file.write_bytes(bytes(10_000))
    os.utime(file, moment)
    assert sources.altered_since(tmp_path, known) == [], "same size, same time: nothing is read"
    os.utime(file, (6, 6))
    assert sources.altered_since(tmp_path, known) == ["weights"]
    for place in (0, 9_999):
        file.write_bytes(bytes(range(250)) * 40)
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        assert sources.altered_since(tmp_path, known) == ["weights"]
