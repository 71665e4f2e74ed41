"""Runs whose terminal, pipe or log goes away: training continues, signals are answered, exit codes are right."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from child_scripts import wait_for
from command_line import Gradus
from gone_outputs import closed_pipe, full_disk
from paths import search_path
from terminals import Terminal
from trained_chain import Chain

from gradus.flows.cli import app
from gradus.pipeline.runs.checkpoint import checkpoints_in
from gradus.pipeline.tracking.journal import metric_history

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")


def run_in_process(monkeypatch: pytest.MonkeyPatch, descriptor: int, *arguments: str) -> int:
    """Run the command in this process with these arguments, all output to the descriptor; returns the exit code."""
    with os.fdopen(descriptor, "w") as out, monkeypatch.context() as patch:
        for name in ("stdout", "__stdout__", "stderr", "__stderr__"):
            patch.setattr(sys, name, out)
        with pytest.raises(SystemExit) as ended:
            app.app(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("gone", [closed_pipe, full_disk])
def test_a_run_is_completed_where_nothing_can_be_printed(
    gone: Callable[[], int], chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.stop_after(1, 1)
    assert run_in_process(monkeypatch, gone(), "resume", "chain", "--engine", "none") == 0
    assert chain.run().state() == "done"
    assert run_in_process(monkeypatch, gone(), "fork", "chain", "--from", "gfpo", "--engine", "none") == 0
    assert chain.run("chain-fork").state() == "done"
    assert run_in_process(monkeypatch, gone(), "resume", "nobody") == 2, "the exit code says what no message can"


def test_a_listing_that_cannot_be_written_is_no_success(gradus: Gradus) -> None:
    command = [sys.executable, "-m", "gradus", "config", "quickstart"]
    environment = {**os.environ, "PYTHONPATH": search_path()}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr == "there is no space left on the disk: No space left on device\n"
    piped = f'"{sys.executable}" -m gradus config --schema | head -c 3; exit "${{PIPESTATUS[0]}}"'
    ended = subprocess.run(["bash", "-c", piped], env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "{\n ", "")


def steps_of(chain: Chain) -> int:
    """Training steps of the second stage that are in its journal."""
    journal = chain.run().stage_dir(1) / "journal.jsonl"
    return max(metric_history(journal).get("reward/mean", {0: 0})) if journal.exists() else 0


LAUNCH = ["run", "chain.yaml", "--engine", "none", "--set", "stages.dapo.steps=400"]


def stopped_with_every_step(chain: Chain) -> None:
    """The run was stopped in its second stage, and the last step that it made is in a checkpoint."""
    newest = checkpoints_in(chain.run().stage_dir(1))[0][0]
    assert 0 < newest == steps_of(chain) < 400
    assert f"stopped at dapo step {newest}/400" in chain.tell("status")
    assert chain.run().holder() is None


def test_ctrl_c_that_ends_tee_as_well_keeps_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chain = Chain(tmp_path)
    every = ["--set", "checkpoints.every_steps=100"]
    process = chain.process(*LAUNCH, *every)
    assert process.stdout is not None and process.stderr is not None
    assert any("dapo: step" in line for line in process.stdout)
    process.stdout.close(), process.stderr.close()  # what Ctrl-C does to `2>&1 | tee log`
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    stopped_with_every_step(chain)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed(ignored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sends SIGHUP, which is answered like SIGTERM, unless it is ignored; printing fails from then on."""
    monkeypatch.chdir(tmp_path)
    chain = Chain(tmp_path)
    words = [*LAUNCH[:-1], "stages.dapo.steps=20"] if ignored else [*LAUNCH, "--set", "checkpoints.every_steps=100"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = search_path()
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        os.execv(sys.executable, [sys.executable, "-m", "gradus", *words])
    seen = b""
    while not re.search(rb"\b[1-9]\d*/(400|20)\b", seen):
        seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    ended = [0, 0]

    def has_ended() -> bool:
        ended[:] = os.waitpid(pid, os.WNOHANG)
        return ended[0] == pid

    wait_for(has_ended)
    code = os.waitstatus_to_exitcode(ended[1])
    if ignored:
        assert code == 0 and chain.run().state() == "done"
    else:
        assert code == 129
        stopped_with_every_step(chain)


def test_a_launch_draws_charts_where_they_fit_and_goes_on_in_another_size(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    words = [*LAUNCH[:-1], "stages.dapo.steps=150"]
    with Terminal(tmp_path, *words, columns=80, lines=24) as terminal:
        terminal.read(
            lambda: re.search(r"2/3 dapo .* \d+/150 reward 0\.\d{3} .*tokens/s", terminal.plain()) is not None
        )
        terminal.read(
            lambda: re.search(r"reward 0\.\d{3} [ ▁▂▃▄▅▆▇█]+\n.*\n.*\n +steps 1 to \d+", terminal.plain()) is not None
        )
        terminal.resize(50, 24)
        before = len(terminal.plain())
        assert terminal.ended() == 0
    said = terminal.plain()[before:]
    narrow = said[said.index("dapo: held-out accuracy") :]
    assert "3/3 gfpo" in narrow and "steps 1 to" not in narrow
    assert chain.run().state() == "done" and "What was learned" in narrow
