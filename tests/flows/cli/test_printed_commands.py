"""Every command that is printed works when it is pasted into a shell, whatever folders and questions are called."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import Gradus
from trained_chain import CHAIN

from gradus.flows.cli.app import app

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")

RUNS = 'it\'s all "runs" $HOME'


class Pasted(Gradus):
    """The command in a folder whose runs have an awkward name, and what its output tells to type."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.commands: list[list[str]] = []

    def tell(self, *arguments: str, code: int = 0) -> str:
        result = self(*arguments, "--runs", RUNS, code=code)
        said = result.stdout + result.stderr
        found = re.findall(r"`(gradus [^`]*)`", said)
        found += re.findall(r"(?:^|: |  )(gradus (?!run\.).*)$", said, re.MULTILINE)
        self.commands += [shlex.split(re.split(r"  +(?=[a-z])", command)[0]) for command in found]
        return said


def parsed(words: list[str]) -> dict[str, object]:
    """The parameters of a command, as its own parser reads and checks them."""
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    name, *rest = words[1:]
    return {"command": name, **commands[name].make_context(name, rest).params}


@pytest.fixture
def pasted(trained_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pasted:
    shutil.copytree(trained_chain / "runs", tmp_path / RUNS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my chain.yaml").write_text(CHAIN)
    return Pasted(tmp_path)


def test_commands_are_quoted_complete_and_name_the_runs_folder(pasted: Pasted) -> None:
    run, none = pasted.folder / RUNS / "chain", ["--engine", "none"]
    pasted.tell("plan", "my chain.yaml")
    pasted.tell("plan", "my chain.yaml", "--set", "stages.dapo.steps=3")
    pasted.tell("plan", "other.yaml", code=2)
    pasted.tell("run", "my chain.yaml", "--name", "chain", "--set", "stages.dapo.steps=3", *none, code=2)
    pasted.tell("resume", "chain", *none)
    pasted.tell("fork", "chain", "--from", "gfpo", "--no-run")
    pasted.tell("fork", "chain", "--from", "gfpo", "--set", "stages.sft.steps=9", "--no-run", code=2)
    (run / "summary.json").unlink()
    result = json.loads((run / "stages" / "03-gfpo" / "result.json").read_text())
    (run / "stages" / "03-gfpo" / "result.json").unlink()
    pasted.tell("plan", "--name", "chain")
    pasted.tell("run", "my chain.yaml", *none)
    assert (pasted.folder / RUNS / "chain-2").exists()
    pasted.tell("resume", "chain", *none)
    weights = run / "stages" / "03-gfpo" / result["checkpoint"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    pasted.tell("verify", "chain", code=1)
    pasted.tell("verify", "nobody", code=2)
    pasted.tell("prompts", "chain", "--stage", "sft", code=2)
    pasted.tell("sample", "nobody", "1 + 1 =", code=2)
    pasted.tell("advise", "my chain.yaml", "--prompts", "8", "--write", "an advice.yaml")
    assert len(pasted.commands) > 15
    for words in pasted.commands:
        if words[1:2] == ["status"]:
            continue
        found = parsed(words)
        placeholders = [word for word in words if re.fullmatch(r"[A-Z]{3,}|<.*>", word)]
        assert not placeholders, words
        if found["command"] not in ("sample", "check"):  # these name the folder or the file itself
            assert found.get("runs", Path(RUNS)) == Path(RUNS), words
        for key in ("config", "checkpoint"):
            if isinstance(found.get(key), str):
                assert Path(str(found[key])).exists(), words
