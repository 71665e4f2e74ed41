"""The tasks of `docs/data.md`, as they stand there, on rows of their form: through SFT and DAPO with a small model."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import data_rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from paths import REPOSITORY
from tiny_policies import tiny_policy

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config.loading import load_config
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.stages import discover

PAGE = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
TASKS = re.findall(r"```yaml\ntask:\n(.*?)```", PAGE, re.DOTALL)
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}: {% endif %}"
NAMES = ("gsm8k", "tulu", "ultrafeedback", "verl")


class Notes(Observer):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, policy = tmp_path_factory.mktemp("model"), tiny_policy()
    policy.model.save_pretrained(folder)
    policy.tokenizer.chat_template = CHAT
    policy.tokenizer.save_pretrained(folder)
    return folder


def test_the_page_shows_four_short_tasks() -> None:
    assert [Path(yaml.safe_load(task)["path"]).name.split(".")[0] for task in TASKS] == list(NAMES)
    assert all(len(task.splitlines()) + 1 <= 6 for task in TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_as_it_stands(name: str, model: Path, tmp_path: Path) -> None:
    task = yaml.safe_load(TASKS[NAMES.index(name)])
    write(tmp_path / task["path"], [getattr(data_rows, name)(n) for n in range(2, 40)])
    stage = {"steps": 1, "prompts_per_step": 2, "warmup": 0}
    demonstrated = task.get("demonstrations") == "column"
    stages = [{"stage": "sft", **stage}] * demonstrated + [{"stage": "dapo", "group_size": 2, **stage}]
    reward = {"reward": "numeric_answer"} if name in ("gsm8k", "verl") else {"reward": "length", "params": {"max": 9}}
    config = {"name": name, "policy": {"path": str(model)}, "task": task, "rewards": [reward], "stages": stages}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "sampling": {"max_tokens": 4}}))
    kinds, observer = discover(), Notes()
    configs = [each.config for each in kinds.values()]
    loaded = load_config(str(tmp_path / "c.yaml"), [], configs)
    notes = preflight(loaded.config, tmp_path, kinds)
    assert any("format" in note for note in notes) == (name != "gsm8k")
    run = RunFolder.create(tmp_path / "runs", loaded.config, "run", tmp_path / "c.yaml", configs)
    parent = prepare(run, observer)["checkpoint"]
    assert [note for note in notes if "format" in note] == [note for note in observer.told if ": format " in note]
    for index, each in enumerate(loaded.config.stages):
        result = run_stage(run, index, parent, kinds[each.stage], observer)
        assert result["steps"] == 1
        parent = result["checkpoint"]
