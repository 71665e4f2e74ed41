"""Damage to the small records of a run is noticed by every command that reads them, which says what to do."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_pipeline import STAGE_CONFIGS
from trained_chain import Chain

from gradus.pipeline.common import records, yaml_text
from gradus.pipeline.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")
FILES = ["config.yaml", "run.json", "start.json", "summary.json", "data/data.json", "stages/01-sft/result.json"]
FILES += ["stages/03-gfpo/result.json", "stages/02-dapo/stage.json"]
COMMANDS = [["verify", "chain"], ["plan", "--name", "chain"], ["fork", "chain", "--from", "gfpo", "--no-run"]]
COMMANDS += [["status", "chain"], ["resume", "chain"]]


def flips(content: bytes, count: int) -> Iterator[bytes]:
    """The content with one byte changed, so that it no longer says the same."""
    while count:
        altered = bytearray(content)
        altered[random.randrange(len(content))] ^= 1 << random.randrange(8)
        if meaning(bytes(altered)) != meaning(content):
            count -= 1
            yield bytes(altered)


def meaning(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content


@pytest.mark.parametrize("file", FILES)
def test_damage_is_told_by_whoever_reads_the_record(chain: Chain, file: str) -> None:
    shutil.copytree(chain.runs / "chain", chain.folder / "kept")
    path, name = chain.runs / "chain" / file, Path(file).name
    content = path.read_bytes()
    undamaged = {tuple(command): chain.tell(*command) for command in COMMANDS[:1] + COMMANDS[3:]}
    random.seed(seed := random.randrange(10**6))
    print("seed:", seed)
    told = set[str]()
    for altered in [content[: len(content) // 2], b"", *flips(content, 2)]:
        for command in COMMANDS:
            shutil.rmtree(chain.runs)
            shutil.copytree(chain.folder / "kept", chain.runs / "chain")
            path.write_bytes(altered)
            said, case = chain.tell(*command, code=None), (command, altered)
            assert "error in gradus" not in said, case
            if command[0] == "verify":
                assert chain.code == 1 and re.search(rf"{name}.* (damaged|altered|cannot be read)", said), case
                assert "Everything is as it was written" not in said
            elif chain.code == 2:
                told.add(command[0])
                assert f"/{name} is damaged" in said.splitlines()[0] or "data" in said.splitlines()[0], case
                assert "\n  do:       " in said, case
                assert sorted(each.name for each in chain.runs.iterdir()) == ["chain"], case
            else:
                assert chain.code == 0, (case, said)
                assert file == "summary.json" or undamaged.get(tuple(command), said) == said, case
    expected = {
        "summary.json": {"plan", "status"},
        "stage.json": {"plan", "fork", "resume"},
        "data.json": {"plan", "fork"},
    }
    assert told == expected.get(name, {"plan", "fork", "status", "resume"})


def test_the_list_of_runs_says_it_in_the_line_of_the_run(chain: Chain) -> None:
    shutil.copytree(chain.runs / "chain", chain.runs / "whole")
    path = chain.run().path / "stages" / "02-dapo" / "result.json"
    path.write_text(path.read_text().replace('"accuracy_after": 0.0', '"accuracy_after": 0.9'))
    said = chain.tell("status")
    assert "unreadable: 02-dapo/result.json is damaged" in said and re.search(r"whole +3/3 .* done\n", said)
    assert "0.9" not in said


REMOVE: Callable[[Path], None] = Path.unlink


@pytest.mark.parametrize(
    ("file", "first", "command"),
    [
        ("config.yaml", None, ["run", "chain.yaml", "--name", "chain"]),
        ("run.json", REMOVE, ["run", "chain.yaml", "--name", "chain"]),
        ("start.json", REMOVE, ["resume", "chain"]),
        ("summary.json", None, ["resume", "chain"]),
        ("stages/01-sft/result.json", REMOVE, ["resume", "chain"]),
        ("stages/03-gfpo/result.json", REMOVE, ["resume", "chain"]),
        ("stages/02-dapo/stage.json", REMOVE, ["resume", "chain"]),
    ],
)
def test_the_way_on_that_is_told_leads_to_the_same_result(
    chain: Chain, file: str, first: Callable[[Path], None] | None, command: list[str]
) -> None:
    undisturbed, path = chain.contents(), chain.run().path / file
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    said = chain.tell("verify", "chain", code=1)
    remedy = next(line for line in said.splitlines() if re.match(rf"  \S*{re.escape(path.name)}: ", line))
    assert f"`gradus {' '.join(command[:2]).replace('chain.yaml', 'CONFIG')}" in remedy
    if first is not None:
        assert "remove it" in remedy
        first(path)
    said = chain.tell(*command)
    assert "nothing to resume" in said or "What was learned" in said
    assert "Everything is as it was written" in chain.tell("verify", "chain")
    assert chain.contents() == undisturbed and chain.run().state() == "done"
    if first is None:
        assert path.read_text() == before


def test_records_of_an_earlier_version_have_no_hash_and_are_read(chain: Chain) -> None:
    undisturbed = chain.contents()
    chain.stop_after(2, 1)
    said = [chain.tell("plan", "--name", "chain"), chain.tell("status", "chain")]
    for file in (file for name in ("*.json", "data/*.json", "stages/*/*.json") for file in chain.run().path.glob(name)):
        fields = json.loads(file.read_text())
        if fields.pop("record", None):
            file.write_text(json.dumps({k: v for k, v in fields.items() if (k, file.name) != ("config", "run.json")}))
    assert [chain.tell("plan", "--name", "chain"), chain.tell("status", "chain")] == said
    chain.tell("run", "chain.yaml", "--name", "chain", "--set", "checkpoints.keep=8")
    assert chain.contents() == undisturbed


def test_a_kill_between_the_configuration_and_its_hash_damages_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.stop_after(2, 1)
    run, written = chain.run(), list[str]()
    changed = run.config.model_copy(update={"checkpoints": run.config.checkpoints.model_copy(update={"keep": 7})})
    monkeypatch.setattr("gradus.pipeline.runs.run_folder.write_text", lambda path, text: written.append(text))
    run.adopt(changed)
    monkeypatch.undo()
    (text,) = written
    for content in (yaml_text.dump(run.config.model_dump(mode="json")), text):
        (run.path / "config.yaml").write_text(content)
        assert RunFolder(run.path, STAGE_CONFIGS).config_text() == content
    chain.tell("resume", "chain")


def test_a_hash_is_of_the_fields_and_survives_the_loss_of_its_name(tmp_path: Path) -> None:
    fields = {"a": [1, 2.5e-7, None], "ä": {"b": "\x1b\ud7ff"}, "pair": (1, 2)}
    records.write_sealed(tmp_path / "x.json", fields)
    assert records.read_sealed(tmp_path / "x.json") == {**fields, "pair": [1, 2]}
    text = (tmp_path / "x.json").read_text()
    for altered in (text.replace('"record"', '"recorb"'), text.replace("2.5e-07", "2.5e-06"), "[]", '"x"', "[" * 99999):
        (tmp_path / "x.json").write_text(altered)
        with pytest.raises(ValueError, match=r"x\.json is damaged"):
            records.read_sealed(tmp_path / "x.json", "a way on")
    assert records.read_sealed(tmp_path / "none.json") is None
