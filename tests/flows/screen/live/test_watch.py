"""``gradus status --watch`` beside real launches and processes at work, in terminals and pipes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import Gradus
from terminals import Terminal
from trained_chain import Chain
from watched_runs import at_work

from gradus.flows.screen.live.tail import FIRST_BYTES, JournalTail
from gradus.pipeline.common.files import write_json
from gradus.pipeline.tracking.journal import Journal

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")
WATCH = ("status", "chain", "--watch")


def lines_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """The lines of a process up to the first that has this pattern."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no {pattern} in {lines}")


def rest(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and remaining output."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


# --- the tail of a journal --------------------------------------------------------------------------------------------


def test_each_event_is_read_once_and_at_first_only_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    tail = JournalTail(path)
    assert tail.new() == []
    with Journal(path) as journal:
        for step in range(1, 10_001):
            journal.metrics(step, {f"metric/{place}": float(step) for place in range(20)})
        first = [event["step"] for event in tail.new()]
        line = path.stat().st_size / 10_000
        assert first == list(range(first[0], 10_001)) and abs(len(first) - FIRST_BYTES / line) < 100
        assert tail.new() == []
        journal.metrics(10_001, {"metric/0": 1.0})
    with path.open("a") as file:
        file.write('{"kind":"metrics","st')
        file.flush()
        assert [event["step"] for event in tail.new()] == [10_001], "an incomplete line waits"
        file.write('ep":10002,"values":{}}\nno JSON\n')
    assert [event["step"] for event in tail.new()] == [10_002]


def test_a_stage_that_is_trained_again_has_another_journal(tmp_path: Path) -> None:
    path, tail = tmp_path / "journal.jsonl", JournalTail(tmp_path / "journal.jsonl")
    for steps in (5, 9, 2):  # of another file, longer and shorter
        with Journal(path) as journal:
            for step in range(steps):
                journal.metrics(step, {"reward/mean": 0.5})
        assert len(tail.new()) == steps
        path.rename(path.with_name(f"journal-{steps}"))


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_launch_is_watched_to_its_end_in_a_pipe_and_a_terminal(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    launch = chain.process("run", "chain.yaml", "--engine", "none", "--set", "stages.dapo.steps=400")
    lines_until(launch, "start: held-out")
    with chain.process(*WATCH) as piped, Terminal(tmp_path, *WATCH, columns=80, lines=24) as terminal:
        assert launch.wait(120) == 0
        code, said = rest(piped)
        assert code == 0, said
        assert terminal.ended() == 0
    launch.communicate()
    assert "\x1b" not in said and said.startswith("chain: running")
    assert "gfpo: held-out accuracy 0.000 -> 0.000" in said
    assert said.count("chain: done (3 of 3 stages) in runs/chain\n") == 1 and "step-000002 (handed over)" in said
    assert re.search(r"dapo: step \d+/400, reward \d\.\d{3}, [\d,]+ tokens/s", said)
    screens = terminal.screens()
    running = next(screen for screen in screens if any("2/3 dapo" in line for line in screen))
    assert len(running) == 24 and max(map(len, running)) <= 80
    assert any("Ctrl-C ends the watch, not the run" in line for line in running)
    assert any(re.match(r"dapo +400  running at step \d+", line) for line in running)
    assert terminal.seen.count(b"\x1b[?1049h") == terminal.seen.count(b"\x1b[?1049l") == 1, "its own screen is left"
    assert "chain: done (3 of 3 stages)" in terminal.plain().rpartition("Ctrl-C ends")[2]


def test_a_run_that_is_killed_and_one_that_is_resumed_in_time(chain: Chain) -> None:
    chain.stop_after(1, 1)
    run = chain.run()
    with at_work(run.path, "02-dapo") as worker:
        watch = chain.process(*WATCH)
        assert lines_until(watch, r"dapo: stage 2 of 3 runs, \d+ of 2 steps done")[0].startswith("chain: running: dapo")
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        lines_until(watch, "^chain: stopped at dapo step 1/2")
    with at_work(run.path, "02-dapo"):
        lines_until(watch, "^chain: running: dapo")
    code, said = rest(watch)
    assert code == 3 and re.search(r"^chain: stopped at dapo step 1/2 \(1 of 3 stages\)", said, re.MULTILINE)


def test_exit_codes_of_runs_that_do_not_run(chain: Chain, tmp_path: Path) -> None:
    code, done, _ = chain.finished(*WATCH)
    assert code == 0 and done == chain.tell("status", "chain").partition("\nCheckpoints")[0]
    chain.stop_after(1, 1)
    write_json(chain.run().stage_dir(1) / "failure.json", {"error": "no reward could be computed", "time": ""})
    code, said, _ = chain.finished(*WATCH)
    assert code == 1 and said.startswith("chain: failed: no reward could be computed (1 of 3 stages)")
    code, said, errors = chain.finished("status", "nobody", "--watch")
    assert (code, said) == (2, "") and "there is no run called 'nobody'" in errors
    code, said, errors = chain.finished(*WATCH, "--json")
    assert (code, said) == (2, "") and "--json is for programs" in errors


def test_a_run_that_is_removed(chain: Chain) -> None:
    chain.stop_after(1, 1)
    with at_work(chain.run().path, "02-dapo"):
        watch = chain.process(*WATCH)
        lines_until(watch, "dapo: stage 2 of 3 runs")
        shutil.rmtree(chain.runs / "chain", ignore_errors=True)
    shutil.rmtree(chain.runs / "chain", ignore_errors=True)
    code, said = rest(watch)
    assert code == 2 and "there is no run called 'chain'" in said and "Traceback" not in said


def test_stages_side_by_side_and_ctrl_c_and_another_size(chain: Chain) -> None:
    chain.stop_after(1, 1)
    run = chain.run()
    run.stage_dir(2).mkdir()
    with at_work(run.path, "02-dapo", "03-gfpo") as worker, Terminal(chain.folder, *WATCH, columns=100) as terminal:
        terminal.read(lambda: re.search(r"gfpo +2  running at step \d+", terminal.plain()) is not None)
        screen = next(screen for screen in terminal.screens() if any(line.startswith("gfpo ") for line in screen))
        bars = [line for line in screen if re.search(r"[23]/3 (dapo|gfpo)", line)]
        assert len(bars) == 2 and sum("  0.000 to 0.900, steps 1 to" in line for line in screen) == 2
        drawn = len(terminal.screens())
        terminal.resize(50, 10)
        # The last screen may be half drawn.
        terminal.read(lambda: len(terminal.screens()) >= drawn + 3 and len(terminal.screens()[-1]) == 10)
        screen = terminal.screens()[-1]
        assert len(screen) == 10 and max(map(len, screen)) <= 50 and not any("▁" in line for line in screen)
        terminal.key(b"\x03")
        assert terminal.ended() == 130
        assert worker.poll() is None, "the run goes on"
        both = r"chain: running: dapo step \d+/2, gfpo step \d+/2 \(1 of 3 stages\)"
        assert re.search(both, terminal.plain().rpartition("Ctrl-C")[2])


def test_a_stage_that_failed_beside_one_that_runs(chain: Chain) -> None:
    chain.stop_after(1, 1)
    run = chain.run()
    run.stage_dir(2).mkdir()
    write_json(run.stage_dir(1) / "failure.json", {"error": "no reward could be computed", "time": ""})
    with at_work(run.path, "03-gfpo"):
        told = chain.tell("status", "chain")
    assert re.match(r"chain: running: gfpo step \d+/2 \(1 of 3 stages\)", told)
    assert re.search(r"^dapo +2  failed at step 1", told, re.MULTILINE)


def test_a_dumb_terminal_and_a_reader_that_has_gone(chain: Chain) -> None:
    with Terminal(chain.folder, *WATCH, TERM="dumb") as terminal:
        assert terminal.ended() == 0
    assert b"\x1b" not in terminal.seen and "chain: done (3 of 3 stages)" in terminal.plain()
    chain.stop_after(1, 1)
    with at_work(chain.run().path, "02-dapo"):
        watch = chain.process(*WATCH)
        lines_until(watch, "^stage ")
        assert watch.stdout is not None
        watch.stdout.close()
        assert watch.wait(60) == 1
        assert watch.stderr is not None and watch.stderr.read() == ""
        watch.stderr.close()


# --- all runs ---------------------------------------------------------------------------------------------------------


def test_all_runs_are_watched_until_none_is_worked_on(chain: Chain) -> None:
    shutil.copytree(chain.runs / "chain", chain.runs / "other")
    chain.stop_after(1, 1)
    with at_work(chain.run().path, "02-dapo") as worker:
        watch = chain.process("status", "--watch")
        said = lines_until(watch, "chain dapo: stage 2 of 3 runs")
        assert re.match(r"run +stages", said[0]) and any(re.match(r"other +3/3 .* done", line) for line in said)
        shutil.rmtree(chain.runs / "other")
        lines_until(watch, "^other: removed")
        worker.kill()
        worker.wait()
        code, rest_said = rest(watch)
    assert code == 3 and "chain: stopped at dapo step 1/2" in rest_said
    chain.tell("resume", "chain")
    code, done, _ = chain.finished("status", "--watch")
    assert code == 0 and re.search(r"chain +3/3 .* done", done)


def test_a_folder_of_more_runs_than_lines(chain: Chain) -> None:
    chain.stop_after(1, 1)
    for number in range(30):
        shutil.copytree(chain.runs / "chain", chain.runs / f"copy-{number:02}")
        file = chain.runs / f"copy-{number:02}" / "run.json"
        assert json.loads(file.read_text())["created"]
    with at_work(chain.run().path, "02-dapo"), Terminal(chain.folder, "status", "--watch", lines=20) as terminal:
        terminal.read(lambda: "earlier ones" in terminal.plain() and "copy-29" in terminal.plain())
        terminal.key(b"\x03")
        assert terminal.ended() == 130
    screen = next(screen for screen in terminal.screens() if any("earlier ones" in line for line in screen))
    assert len(screen) == 20 and any("running: dapo step" in line for line in screen)
    assert any("copy-29" in line for line in screen) and not any("copy-00" in line for line in screen)


def test_an_empty_folder(gradus: Gradus) -> None:
    code, said, _ = gradus.finished("status", "--watch")
    assert code == 0 and said.startswith("There are no runs in ")
