"""Several launches under one name at once: one trains what it asked for, and the others are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from child_scripts import wait_for
from command_line import TINY

from gradus.pipeline.common import yaml_text

LAUNCH = """
import sys, time
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from gradus.flows import launch
from gradus.flows.open_run import load, open_run
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json
from gradus.pipeline.runs import run_folder
from gradus.pipeline.tracking import client

folder, change, window = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
write = run_folder.write_text

def slow_first_write(path, text):
    run_folder.write_text = write
    time.sleep(window)
    write(path, text)

def engine(run_dir, observer):
    sys.stdin.readline()  # until the others have been refused
    config = run_folder.RunFolder(run_dir, [type(stage) for stage in loaded.config.stages]).config
    write_json(run_dir / "summary.json", {"stages": [], "config": config.model_dump(mode="json")})
    print("trained", flush=True)
    return {"stages": []}

client.start_uploader = lambda run_dir: SimpleNamespace(finish=lambda timeout=0: SimpleNamespace(message=""))
loaded, stages = load(str(folder / "tiny.yaml"), [change])
print("ready", flush=True)
sys.stdin.readline()
run_folder.write_text = slow_first_write
try:
    run = open_run(loaded, folder / "runs", "one", stages, lambda line: None)
    launch.launch(run, engine, Console(quiet=True))
except UserError as refused:
    print(refused)
    sys.exit(2)
"""


@pytest.mark.parametrize(("key", "window"), [("seed", 0.0), ("seed", 1.5), ("checkpoints.keep", 1.5)])
def test_of_three_launches_one_trains_what_it_asked_for(tmp_path: Path, key: str, window: float) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    values, windows = [3, 4, 5], [0.0, window, 2 * window]
    pipe = subprocess.PIPE
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(tmp_path), f"{key}={value}", str(seconds)],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for value, seconds in zip(values, windows, strict=True)
    ]
    for process in launches:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in launches:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    wait_for(lambda: sum(process.poll() is not None for process in launches) >= 2)
    said = [process.communicate("end\n" if process.poll() is None else None)[0] for process in launches]
    codes = [process.returncode for process in launches]
    assert sorted(codes) == [0, 2, 2], said
    for text, code in zip(said, codes, strict=True):
        expected = ["trained"] if code == 0 else ["another process is working on", "with another configuration"]
        assert any(words in text for words in expected), text
    trained = values[codes.index(0)]
    outer, _, inner = key.rpartition(".")
    kept = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())["config"]
    written = yaml_text.parse((tmp_path / "runs" / "one" / "config.yaml").read_text(), "config.yaml").data
    for config in (kept, written):
        assert (config[outer] if outer else config)[inner] == trained
    assert not list((tmp_path / "runs" / "one").glob(".*"))
