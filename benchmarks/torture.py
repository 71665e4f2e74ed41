"""Interrupt a staged run again and again, in all ways that happen to people, and check that its result stays the same.

    python benchmarks/torture.py [--kills 20] [--hups 0] [--terminals 0] [--tees 0] [--moves 0] [--seconds 0] [--seed 0]

A small pipeline of all five stages runs once undisturbed. Then the same pipeline is launched as by a user, and ended at
a random moment, from start-up to the last line; `gradus resume` continues, and is ended too. The ways, mixed at random:

* kills: SIGKILL; hups: SIGHUP; terminals: its terminal is closed; tees: Ctrl-C that ends it and the `tee` it prints to;
* moves: it is ended by SIGTERM or SIGKILL, and the runs folder gets another name before the next life;
* seconds: another launch of the same run begins meanwhile, and must be refused; then SIGTERM or SIGKILL.

A run that completes is compared with the undisturbed one, and the next run starts, until all are used. Checked:

* weights, optimizer states and curves are the same bytes, and no curve contradicts itself;
* a life that a signal ended has the right exit code, and its last step is in a checkpoint;
* `gradus verify` finds no damage, and `gradus plan` finds nothing left to do;
* MLflow has one finished run per stage and every point of the journals exactly once; Prefect shows no run as running;
* no process is left but the one Prefect server, no temporary file, and nothing where the runs folder was before.

Everything happens in a temporary folder; the server is stopped at the end. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.delivered import tracking_faults  # noqa: E402
from benchmarks.lives import LONGEST_LIFE, PATIENCE, USUAL_LONGEST_LIFE, Cradle, Life, end, start  # noqa: E402

from gradus.pipeline.runs.run_folder import RunFolder  # noqa: E402
from gradus.pipeline.runs.same_outcome import outcome_differences  # noqa: E402
from gradus.pipeline.tracking.journal import metric_history  # noqa: E402
from gradus.stages import discover  # noqa: E402

CONFIG = """\
name: torture
policy:
  architecture: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
                 num_attention_heads: 4, num_key_value_heads: 4, tie_word_embeddings: false}
task:
  source: reasoning_gym
  dataset: chain_sum
  params: {min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 1}
  size: 600
  heldout: 100
  validation: 40
  demonstrations: solver
rewards:
  - reward: length # one that a new policy earns in part
    params: {max: 6, falloff: 20}
  - {reward: math_verify, weight: 0.5} # its verifier is a process of its own
  - {reward: equation_steps, weight: 0.0}
evaluation: {threshold: 0.5}
sampling: {max_tokens: 24}
tracking: {histogram_every: 10}
checkpoints: {every_seconds: 1}
stages:
  - {stage: sft, steps: 60, prompts_per_step: 32}
  - {stage: dapo, steps: 30, prompts_per_step: 8, group_size: 4, eval_every: 6, handover: best}
  - {stage: vapo, steps: 30, prompts_per_step: 8, group_size: 4}
  - {stage: gfpo, steps: 30, prompts_per_step: 8, group_size: 4, ranking: [reward, shorter], updates_per_batch: 2}
  - {stage: srpo, steps: 30, prompts_per_step: 8, group_size: 4, refresh: 7, advantage: combined}
"""
SERVER_STATUS = """\
import json
from gradus.flows.orchestrator.password import api_headers
from gradus.flows.orchestrator.server import server_status
status = server_status()
print(json.dumps(status | {"headers": api_headers(status["url"]) if status["healthy"] else {}}, default=str))
"""
"""A program that prints the state of the Prefect server, and how to ask it, in the environment that it runs in."""
KINDS = ("kill", "hup", "terminal", "tee", "move", "second")
"""The ways to end a life, as the module's docstring describes them."""


@dataclass
class Torture:
    """The folder that everything happens in, and what has been found."""

    folder: Path
    chance: random.Random
    left: Counter[str] = field(default_factory=Counter)
    """Kind -> how many lives are still to be ended in this way."""
    lives: int = 0
    used: Counter[str] = field(default_factory=Counter)
    """Kind -> how many lives it has ended."""
    struck: Counter[str] = field(default_factory=Counter)
    """What the run was doing when it was ended -> times."""
    mid_write: int = 0
    """Lives that left a half-written file or folder."""
    wrong: list[str] = field(default_factory=list)
    runs_name: str = "runs"

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
        own = {"GRADUS_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        self.environment = kept | own
        (self.folder / "torture.yaml").write_text(CONFIG)
        self.cradle = Cradle(self.folder, self.environment)

    @property
    def runs(self) -> Path:
        return self.folder / self.runs_name

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, with what it says."""
        command = [sys.executable, "-m", "gradus", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def opened(self, name: str) -> RunFolder:
        return RunFolder(self.runs / name, [stage.config for stage in discover().values()])

    def counted(self) -> str:
        """How many lives each way has ended."""
        return ", ".join(f"{self.used[kind]} {kind}s" for kind in KINDS if self.used[kind]) or "none"

    def launch(self, name: str, kind: str) -> Life:
        """Begin the run of that name, or go on with it."""
        self.lives += 1
        begun = (self.runs / name / "run.json").exists()
        words = ["resume", name] if begun else ["run", "torture.yaml", "--name", name]
        return start(self.cradle, kind, [*words, "--runs", self.runs_name])

    def one_run(self, name: str) -> None:
        """Launch, end and resume until the run is done or all ways to end it are used; then let it end in peace."""
        while self.left.total():
            kind = self.chance.choice(list(self.left.elements()))
            before, life = self.steps(name), self.launch(name, kind)
            code = life.ended(self.chance.uniform(0, LONGEST_LIFE.get(kind, USUAL_LONGEST_LIFE)))
            if code is None and kind == "second":
                life, code = self.rival(name, life)
            if code is not None:
                life.closing()
                if code != 0:
                    self.wrong.append(f"{name}: a life ended by itself with {code}")
                return
            code, right = end(life, kind, self.chance)
            self.left[kind] -= 1
            self.used[kind] += 1
            if code not in right:
                self.wrong.append(f"{name}: a life ended by {kind} with {code}, not one of {sorted(right)}")
            self.note_strike(name, before, polite=code is not None and code > 0)
            if kind == "move":
                self.move()
        life = self.launch(name, "kill")
        if (code := life.ended(600)) != 0:
            self.wrong.append(f"{name}: the last life ended with {code}")

    def rival(self, name: str, life: Life) -> tuple[Life, int | None]:
        """A second launch beside a life; returns the one that trains, and its exit code if it has ended."""
        other, deadline = self.launch(name, "second"), time.monotonic() + PATIENCE
        while life.ended(0.05) is None and other.ended(0.05) is None and time.monotonic() < deadline:
            pass
        refused, trains = (life, other) if life.ended(0) is not None else (other, life)
        code = refused.ended(0)
        # 0: the run had just been completed, so that the other has nothing to do either.
        rest = trains.ended(self.chance.uniform(0, 3) if code == 2 else PATIENCE)
        if code not in (0, 2) or (code == 0 and rest not in (0, 2)):
            self.wrong.append(f"{name}: of two launches, one ended with {code} and the other with {rest}")
        return trains, 0 if code == 0 else rest

    def move(self) -> None:
        """Give the runs folder another name, once nothing works in it any more."""
        server, deadline = self.server().get("pid"), time.monotonic() + 90
        while self.processes() - {server} and time.monotonic() < deadline:
            time.sleep(0.2)
        earlier, self.runs_name = self.runs, f"runs-{self.used['move']}"
        earlier.rename(self.runs)

    def steps(self, name: str) -> tuple[str, int]:
        """The last stage that has begun, and the last step in its journal."""
        found = sorted((self.runs / name).glob("stages/*/journal.jsonl"))
        if not found:
            return "", 0
        curves = metric_history(found[-1])
        return found[-1].parent.name, max((max(values) for values in curves.values() if values), default=0)

    def note_strike(self, name: str, before: tuple[str, int], polite: bool) -> None:
        """What the end interrupted; where a signal was answered, the last step that the life made must be kept."""
        path = self.runs / name
        stage, step = after = self.steps(name)
        if polite and after != before and step and not (path / "stages" / stage / "result.json").exists():
            kept = max((int(each.name[5:]) for each in (path / "stages" / stage).glob("checkpoints/step-*")), default=0)
            if kept != step:
                self.wrong.append(
                    f"{name}: step {step} of {stage} was made, and the newest checkpoint is that of {kept}"
                )
        self.mid_write += any(not entry.name.startswith(".mlflow") for entry in path.rglob(".*"))
        if not (path / "start.json").exists():
            self.struck["before the first stage"] += 1
            return
        begun = sorted(stage.parent for stage in path.glob("stages/*/stage.json"))
        open_stage = [stage.name[3:] for stage in begun if not (stage / "result.json").exists()]
        done = (path / "summary.json").exists()
        self.struck[open_stage[0] if open_stage else "after the last stage" if done else "between stages"] += 1

    def check(self, name: str, undisturbed: RunFolder) -> None:
        """Everything that must be as if nothing had happened."""
        run = self.opened(name)
        self.wrong += [f"{name}: {text}" for text in outcome_differences(undisturbed, run)]
        if run.state() != "done":
            self.wrong.append(f"{name}: its state is {run.state()}")
        verified = self.ask("verify", name, "--runs", self.runs_name)
        if verified.returncode:
            self.wrong.append(f"{name}: verify says {verified.stdout} {verified.stderr}")
        planned = json.loads(self.ask("plan", "--name", name, "--json", "--runs", self.runs_name).stdout)
        self.wrong += [
            f"{name}: plan would {p['action']} {p['label']}" for p in planned["stages"] if p["action"] != "reuse"
        ]
        self.wrong += [f"{name}: left over: {p}" for p in run.path.rglob(".*")]
        self.wrong += [f"{name}: {p} is there again" for p in self.folder.glob("runs*") if p != self.runs]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:  # MLflow stays out of this process
            self.wrong += apart.submit(tracking_faults, run.path, len(run.config.stages)).result()

    def check_processes(self) -> None:
        """Only the Prefect server lives on, and it shows nothing as running."""
        server = self.server()
        deadline = time.monotonic() + 90  # an uploader whose trainer died delivers what is left
        while (left := self.processes() - {server.get("pid")}) and time.monotonic() < deadline:
            time.sleep(1)
        self.wrong += [f"process {pid} was left over" for pid in left]
        if hung := self.cradle.log.read_bytes().count(b"did not end within"):
            self.wrong.append(f"{hung} lives hung after a signal, and ended themselves")
        if server["healthy"]:
            asked = urllib.request.Request(f"{server['url']}/flow_runs/filter", b"{}", server["headers"])
            with urllib.request.urlopen(asked, timeout=30) as answer:
                states = Counter(flow["state_name"] for flow in json.load(answer))
            print("Prefect's flow runs:", ", ".join(f"{count} {name}" for name, count in states.items()))
            self.wrong += [
                f"Prefect shows {states[name]} flow runs as {name}" for name in ("Running", "Pending") if states[name]
            ]

    def server(self) -> dict[str, Any]:
        command = [sys.executable, "-c", SERVER_STATUS]
        return json.loads(subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout)

    def processes(self) -> set[int]:
        """Every process that the commands above have started and that is still there."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("GRADUS_HOME") == self.environment["GRADUS_HOME"]:
                    found.add(process.pid)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}s", type=int, default=20 if kind == "kill" else 0, metavar="N")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another each time")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradus-torture-")))
        folder.mkdir(parents=True, exist_ok=True)
        torture, began, runs, shown = Torture(folder.absolute(), random.Random(seed)), time.monotonic(), 0, 0
        stack.callback(torture.ask, "server", "stop")
        print(f"seed {seed}; first the undisturbed run", flush=True)
        torture.one_run("undisturbed")
        torture.left = Counter({kind: getattr(options, f"{kind}s") for kind in KINDS})
        print(f"{time.monotonic() - began:.0f} s; now {torture.left.total()} lives to end", flush=True)
        while torture.left.total():
            runs += 1
            torture.one_run(f"tortured-{runs}")
            torture.check(f"tortured-{runs}", torture.opened("undisturbed"))
            print(f"run {runs}: {torture.counted()} so far, {len(torture.wrong)} differences", flush=True)
            print("".join(f"  {text}\n" for text in torture.wrong[shown:]), end="", flush=True)
            shown = len(torture.wrong)
        torture.check_processes()
    minutes = (time.monotonic() - began) / 60
    print(f"{torture.counted()}; {runs} runs in {minutes:.0f} min; {torture.mid_write} hit a file being written")
    print("ended in: " + ", ".join(f"{name} {count}" for name, count in torture.struck.most_common()))
    print("\n".join(torture.wrong) or "every run ended complete and byte-identical to the undisturbed one")
    sys.exit(1 if torture.wrong else 0)


if __name__ == "__main__":
    main()
