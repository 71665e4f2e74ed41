"""A fork shares what its origin did, by reference, and goes its own way: by the command and from process to result."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from faults import Faults, Killed
from trained_chain import DONE, Chain, flip, table

from gradus.flows.open_run import reserve
from gradus.flows.resume_run import restart_from
from gradus.pipeline.common import locks
from gradus.pipeline.runs import fork as forking
from gradus.pipeline.runs.checkpoint import read_record
from gradus.pipeline.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")


def weights(folder: Path) -> list[str]:
    """Stage folders, or others, that hold weights."""
    return sorted({file.relative_to(folder).parts[-4] for file in folder.rglob("model.safetensors")})


def test_an_equal_fork_shares_by_reference_and_trains_to_the_same_bytes(chain: Chain) -> None:
    for place, tracked in ((".", "parent-id"), ("stages/01-sft", "sft-id")):
        (chain.runs / "chain" / place / "mlflow.json").write_text(json.dumps({"run_id": tracked}))
    said = chain.tell("fork", "chain", "--from", "dapo")
    assert "run chain-fork in " in said and "\nfork of chain before dapo, which changes nothing\n" in said
    assert "dapo: stage 2 of 3, 2 steps\n" in said and "sft: stage" not in said
    assert "sft: runs/chain/stages/01-sft/checkpoints/step-000004 (shared with chain)" in said
    fork, origin = chain.run("chain-fork"), chain.run()
    assert chain.contents("chain-fork") == chain.contents() and len(set(chain.contents())) == 3
    assert weights(fork.path) == ["02-dapo", "03-gfpo"] and not (fork.path / "data").exists()
    assert [path.name for path in fork.stage_dir(0).iterdir()] == ["result.json"]
    assert json.loads((fork.path / "run.json").read_text())["fork"] == {
        "run": "chain",
        "stage": "dapo",
        "checkpoint": origin.result(0)["content"],
        "changes": [],
        "mlflow_run_id": "parent-id",
    }
    assert json.loads((fork.path / "run.json").read_text())["data"] == "../chain/data"
    shared = json.loads((fork.stage_dir(0) / "result.json").read_text())
    assert shared["checkpoint"] == "../../../chain/stages/01-sft/checkpoints/step-000004"
    assert (shared["shared"], shared["mlflow_run_id"]) == ("chain", "sft-id")
    assert table(chain.tell("plan", "--name", "chain-fork"))[0] == ["sft", "4", "reuse", "shared with chain"]
    assert table(chain.tell("plan", "--name", "chain-fork"))[1] == ["dapo", "2", "reuse", DONE]


def test_a_fork_with_changes_says_them_everywhere(chain: Chain) -> None:
    said = chain.tell("fork", "chain", "--from", "gfpo", "--set", "stages.gfpo.lr=5e-5", "--no-run")
    assert "which changes\n  stages.gfpo.lr: 0.0001 -> 5e-05\n" in said
    assert table(said)[1:3] == [["dapo", "2", "reuse", "shared with chain"], ["gfpo", "2", "run", "not begun"]]
    assert said.endswith("to train it: gradus resume chain-fork\n")
    assert re.search(r"chain-fork +2/3 .* fork of chain before gfpo +stopped before gfpo\n", chain.tell("status"))
    chain.tell("fork", "chain", "--from", "sft", "--no-run")
    told = chain.tell("status", "chain")
    assert "\nforked into chain-fork (before gfpo), chain-fork-2 (before sft)\n" in told
    told = chain.tell("status", "chain-fork")
    assert "fork of chain before gfpo, which changes\n  stages.gfpo.lr: 0.0001 -> 5e-05\n" in told
    assert "dapo: runs/chain/stages/02-dapo/checkpoints/step-000002 (shared with chain)" in told
    (status,) = (each for each in json.loads(chain.tell("status", "--json")) if each["name"] == "chain-fork")
    assert status["fork"]["run"] == "chain" and status["folders"][0]["shared"] == "chain"
    chain.tell("resume", "chain-fork")
    assert chain.run("chain-fork").state() == "done"
    assert chain.contents("chain-fork")[:2] == chain.contents()[:2]


def test_what_comes_after_may_be_added_removed_and_scored_otherwise(chain: Chain) -> None:
    stages = "[{stage: sft, steps: 4, prompts_per_step: 8}, {stage: vapo, steps: 1, prompts_per_step: 2}]"
    said = chain.tell("fork", "chain", "--from", "dapo", "--set", f"stages={stages}", "--no-run", code=2)
    assert "a fork shares what is before dapo, which therefore stays stage 2" in said and "sft, vapo" in said
    options = ["--set", f"stages={stages.replace('vapo', 'dapo')}", "--set", "seed=3", "--set", "sampling.max_tokens=8"]
    chain.tell("fork", "chain", "--from", "dapo", *options, "--name", "short")
    short = chain.run("short")
    assert [stage.label for stage in short.config.stages] == ["sft", "dapo"] and short.state() == "done"
    assert {change.partition(":")[0] for change in short.origin["changes"]} >= {"seed", "sampling.max_tokens"}


def test_a_fork_finds_what_its_origin_has_set_aside(chain: Chain) -> None:
    chain.tell("fork", "chain", "--from", "gfpo", "--no-run")
    undisturbed = chain.contents()
    origin = chain.run()
    with origin.lock():
        restart_from(origin, 0)
    said = chain.tell("verify", "chain-fork")
    assert "dapo (shared with chain)" in said and "Everything is as it was written" in said
    chain.tell("resume", "chain-fork")
    assert chain.contents("chain-fork") == undisturbed
    assert "held-out accuracy" in chain.tell("eval", "chain-fork")
    chain.tell("fork", "chain-fork", "--from", "gfpo", "--no-run", "--name", "again")
    assert ".attempt-1" in chain.run("again").result(1)["checkpoint"]


def test_a_fork_keeps_to_what_it_shares_when_its_origin_has_made_another_of_it(chain: Chain) -> None:
    chain.tell("fork", "chain", "--from", "gfpo")
    chain.tell("fork", "chain", "--from", "gfpo", "--no-run", "--name", "open")
    undisturbed = chain.contents()
    chain.tell("resume", "chain", "--from", "dapo")
    other = Path(chain.run().result(1)["checkpoint"])  # as if other code had made it
    shutil.rmtree(other)
    shutil.copytree(other.with_name("step-000001"), other)
    for name in ("chain-fork", "open"):
        assert "Everything is as it was written" in chain.tell("verify", name)
        assert "02-dapo.attempt-1" in chain.run(name).result(1)["checkpoint"]
    chain.tell("resume", "open")
    assert chain.contents("open") == undisturbed
    shutil.rmtree(chain.run().attempts(1)[0])
    assert "nothing to resume" in chain.tell("resume", "chain-fork"), "what it shares is not needed any more"
    assert "another checkpoint is in its place" in chain.tell("verify", "chain-fork", code=1)
    (chain.run("open").path / "summary.json").unlink()
    shutil.rmtree(chain.run("open").stage_dir(2))
    said = chain.tell("resume", "open", code=2)
    assert "the checkpoint that this run shares with chain is damaged" in said
    assert "another checkpoint is in its place" in said


def test_a_fork_of_a_fork_shares_with_the_run_that_owns_it(chain: Chain) -> None:
    chain.tell("fork", "chain", "--from", "dapo", "--set", "stages.dapo.lr=3e-4", "--name", "one")
    chain.tell("fork", "one", "--from", "gfpo", "--set", "stages.gfpo.lr=3e-4", "--name", "two")
    two = chain.run("two")
    assert [two.result(index).get("shared") for index in range(3)] == ["chain", "one", None]
    assert two.origin["run"] == "one" and two.origin["changes"] == ["stages.gfpo.lr: 0.0001 -> 0.0003"]
    assert (two.record["data"], two.data_dir.resolve()) == ("../chain/data", chain.run().data_dir.resolve())
    assert json.loads((two.path / "start.json").read_text())["checkpoint"] == "../chain/start"
    assert weights(two.path) == ["03-gfpo"]
    assert [row[3] for row in table(chain.tell("plan", "--name", "two"))][:2] == [
        "shared with chain",
        "shared with one",
    ]
    assert read_record(Path(two.result(2)["checkpoint"])).parent == chain.run("one").result(1)["content"]
    shutil.rmtree(chain.runs / "one")
    said = chain.tell("verify", "two", code=1)
    assert re.search(r"dapo \(shared with one\) +2 +0 bytes  missing", said) and "`gradus verify one`" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chain", "--from", "x"], "the run 'chain' has no stage `x`"),
        (["x", "--from", "sft"], "there is no run called 'x'"),
        (["chain", "--from", "dapo", "--name", "chain"], "there is a run called 'chain' already"),
        (["chain", "--from", "dapo", "--name", "../x"], "a run cannot have this name"),
        (["chain", "--from", "dapo", "--set", "stages.sft.lr=3e-4"], "`stages.sft.lr` changes that"),
        (
            ["chain", "--from", "dapo", "--set", "stages.sft.lr=3e-4"],
            "`gradus fork chain --from sft`, or start a new run",
        ),
        (["chain", "--from", "dapo", "--set", "policy.template=chat"], "`policy.template` changes that"),
        (["chain", "--from", "dapo", "--set", "task.size=160"], "task.size: 150 -> 160"),
        (["chain", "--from", "dapo", "--set", "stages.dapo.group_size=1"], "at least 2"),
        (["chain", "--from", "gfpo", "--set", "stages.gfpo.ranking=[nothing]"], "nothing"),
    ],
)
def test_refusals_are_words_and_leave_nothing(chain: Chain, arguments: list[str], words: str) -> None:
    before = sorted(chain.runs.iterdir())
    assert words in chain.tell("fork", *arguments, code=2)
    assert sorted(chain.runs.iterdir()) == before


def test_what_is_not_done_or_damaged_cannot_be_shared(chain: Chain) -> None:
    flip(Path(chain.run().result(1)["checkpoint"]) / "model.safetensors")
    said = chain.tell("fork", "chain", "--from", "gfpo", code=2)
    assert "the checkpoint that the fork would start from is damaged" in said and "altered: model.safetensors" in said
    chain.stop_after(1, 1)
    said = chain.tell("fork", "chain", "--from", "gfpo", code=2)
    assert "got:      the stage `dapo` has no result yet" in said and "expected: --from sft or --from dapo" in said
    with locks.hold(chain.run().path):  # the origin may be at work
        assert "to train it" in chain.tell("fork", "chain", "--from", "dapo", "--no-run")
    (chain.run().path / "start.json").unlink()
    assert "its data and policy are not ready" in chain.tell("fork", "chain", "--from", "sft", code=2)


def test_a_fork_appears_whole_or_not_at_all(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    real = forking.write_sealed

    def fail(path: Path, value: object) -> None:
        if path.name == "run.json":
            raise OSError(28, "No space left on device")
        real(path, value)

    monkeypatch.setattr(forking, "write_sealed", fail)
    before = sorted(chain.runs.iterdir())
    assert "there is no space left on the disk" in chain.tell("fork", "chain", "--from", "dapo", code=1)
    assert sorted(chain.runs.iterdir()) == before


def test_runtime_options_are_no_change(chain: Chain) -> None:
    chain.tell(
        "fork",
        "chain",
        "--from",
        "gfpo",
        "--set",
        "stages.sft.token_budget=99",
        "--set",
        "policy.threads=1",
        "--no-run",
    )
    fork: RunFolder = chain.run("chain-fork")
    assert fork.origin["changes"] == [] and fork.config.policy.threads == 1


def test_a_fork_that_was_killed_anywhere_blocks_no_name_and_leaves_nothing(chain: Chain, faults: Faults) -> None:
    command = ["fork", "chain", "--from", "dapo", "--no-run"]
    with faults.watching(chain.runs) as clean:
        chain.tell(*command, "--name", "clean")
    shutil.rmtree(chain.runs / "clean")
    expected = sorted([*chain.runs.iterdir(), chain.runs / "chain-fork"])
    assert clean.count > 15
    for moment in range(1, clean.count + 1):
        with contextlib.suppress(Killed), faults.watching(chain.runs, die_at=moment):
            chain.tell(*command)
        for left in chain.runs.glob(".chain-fork.*"):
            os.utime(left, (1, 1))
        if not (chain.runs / "chain-fork" / "run.json").exists():
            chain.tell(*command)
        assert sorted(chain.runs.iterdir()) == expected and chain.run("chain-fork").origin is not None, moment
        shutil.rmtree(chain.runs / "chain-fork")


def test_a_name_is_free_where_nothing_was_made(chain: Chain) -> None:
    reserved = chain.runs / "chain-fork"
    reserved.mkdir()
    (reserved / "lock").write_text("{}")
    (reserved / ".run.json.0a1b2c3d").write_text("half")
    with locks.hold(reserved):  # another launch is about to make a run there
        assert "run chain-fork-2 in" in chain.tell("fork", "chain", "--from", "dapo", "--no-run")
        said = chain.tell("fork", "chain", "--from", "dapo", "--no-run", "--name", "chain-fork", code=2)
        assert "there is a folder called 'chain-fork' already" in said
    assert "run chain-fork in" in chain.tell("fork", "chain", "--from", "dapo", "--no-run")
    (chain.runs / "chain-2").mkdir()
    assert "begins a new run, chain-3." in chain.tell("plan", "chain.yaml")
    os.utime(chain.runs / "chain-2", (1, 1))
    assert "begins a new run, chain-2." in chain.tell("plan", "chain.yaml")
    assert reserve(chain.runs, "chain") == "chain-2" and reserve(chain.runs, "chain-fork") == "chain-fork-3"
    theirs = chain.runs / "mine"
    theirs.mkdir()
    (theirs / "config.yaml").write_text("# of the user")
    assert "there is a folder called 'mine'" in chain.tell(
        "fork", "chain", "--from", "dapo", "--no-run", "--name", "mine", code=2
    )
    assert (theirs / "config.yaml").exists()
