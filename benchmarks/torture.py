"""Kill a staged run again and again, and check that its result does not change.

    python benchmarks/torture.py [--kills 20] [--seed 0]

A small pipeline of all five stages runs once undisturbed. Then the same pipeline is launched as by a user, and its
trainer gets SIGKILL at a random moment, from start-up to the last line; `gradus resume` continues, and is killed too.
A run that completes is compared with the undisturbed one, and the next run starts, until all kills are used. Checked:

* weights, optimizer states and curves are the same bytes, and no curve contradicts itself;
* `gradus verify` finds no damage, and `gradus plan` finds nothing left to do;
* MLflow has one finished run per stage and every point of the journals exactly once; Prefect shows no run as running;
* no process is left but the one Prefect server, and no temporary file.

Everything happens in a temporary folder; the server is stopped at the end. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gradus.pipeline.common.process import child_environment  # noqa: E402
from gradus.pipeline.runs.run_folder import RunFolder  # noqa: E402
from gradus.pipeline.runs.same_outcome import outcome_differences  # noqa: E402
from gradus.pipeline.tracking.journal import journals, metric_history  # noqa: E402
from gradus.pipeline.tracking.position import Position  # noqa: E402
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
from gradus.flows.orchestrator.server import server_status
print(json.dumps(server_status(), default=str))
"""
"""A program that prints the state of the Prefect server, in the environment that it runs in."""
LONGEST_LIFE = 30.0
"""Seconds within which a life is ended."""


@dataclass
class Torture:
    """The folder that everything happens in, and what has been found."""

    folder: Path
    chance: random.Random
    kills: int = 0
    lives: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    """What the run was doing when it was killed -> times."""
    mid_write: int = 0
    """Kills that left a half-written file or folder."""
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "GRADUS"))}
        own = {"GRADUS_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        self.environment = kept | own
        (self.folder / "torture.yaml").write_text(CONFIG)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The command in the background, its words in a file."""
        self.lives += 1
        with (self.folder / "said.log").open("ab") as log:
            command = [sys.executable, "-m", "gradus", *arguments]
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, with what it says."""
        command = [sys.executable, "-m", "gradus", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def opened(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name, [stage.config for stage in discover().values()])

    def launch(self, name: str) -> subprocess.Popen[bytes]:
        """Begin the run of that name, or go on with it."""
        if (self.folder / "runs" / name / "run.json").exists():
            return self.start("resume", name)
        return self.start("run", "torture.yaml", "--name", name)

    def one_run(self, name: str, kills: int) -> None:
        """Launch, kill and resume until the run is done or all kills are used; then let it end in peace."""
        while self.kills < kills:
            process = self.launch(name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.chance.uniform(0, LONGEST_LIFE))
            if process.poll() is not None:
                if process.returncode != 0:
                    self.wrong.append(f"{name}: a life ended by itself with {process.returncode}")
                return
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.kills += 1
            self.note_strike(name)
        process = self.launch(name)
        if process.wait() != 0:
            self.wrong.append(f"{name}: the last life ended with {process.returncode}")

    def note_strike(self, name: str) -> None:
        """What the kill interrupted."""
        path = self.folder / "runs" / name
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
        verified = self.ask("verify", name)
        if verified.returncode:
            self.wrong.append(f"{name}: verify says {verified.stdout} {verified.stderr}")
        planned = json.loads(self.ask("plan", "--name", name, "--json").stdout)
        self.wrong += [
            f"{name}: plan would {p['action']} {p['label']}" for p in planned["stages"] if p["action"] != "reuse"
        ]
        self.wrong += [f"{name}: left over: {p}" for p in run.path.rglob(".*")]
        self.check_tracking(run)

    def check_tracking(self, run: RunFolder) -> None:
        """MLflow has what the journals say, once."""
        os.environ.update(child_environment())
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
        if len(journals(run.path)) != 1 + len(run.config.stages):
            self.wrong.append(f"{run.name}: journals of {[label for label, _ in journals(run.path)]}")
        for label, journal in journals(run.path):
            position = Position.read(journal)
            tracked = client.get_run(position.run_id)
            if tracked.info.status != "FINISHED":
                self.wrong.append(f"{run.name} {label}: MLflow says {tracked.info.status}")
            same = client.search_runs([position.experiment_id], f"tags.`gradus.key` = '{position.key}'")
            if len(same) != 1:
                self.wrong.append(f"{run.name} {label}: {len(same)} MLflow runs")
            for metric, wanted in metric_history(journal).items():
                points = client.get_metric_history(position.run_id, metric)
                if sorted((p.step, p.value) for p in points) != sorted(wanted.items()):
                    self.wrong.append(f"{run.name} {label}: MLflow's {metric} is not the journal's")

    def check_processes(self) -> None:
        """Only the Prefect server lives on, and it shows nothing as running."""
        server = self.server()
        deadline = time.monotonic() + 90  # an uploader whose trainer died delivers what is left
        while (left := self.processes() - {server.get("pid")}) and time.monotonic() < deadline:
            time.sleep(1)
        self.wrong += [f"process {pid} was left over" for pid in left]
        if "url" in server or "api" in server:
            url = server.get("url") or server["api"]
            asked = urllib.request.Request(f"{url}/flow_runs/filter", b"{}", {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=30) as answer:
                states = Counter(flow["state_name"] for flow in json.load(answer))
            print("Prefect's flow runs:", ", ".join(f"{count} {name}" for name, count in states.items()))
            self.wrong += [
                f"Prefect shows {states[name]} flow runs as {name}" for name in ("Running", "Pending") if states[name]
            ]

    def server(self) -> dict[str, Any]:
        asked = subprocess.run(
            [sys.executable, "-c", SERVER_STATUS], env=self.environment, capture_output=True, text=True
        )
        return json.loads(asked.stdout)

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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another each time")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradus-torture-")))
        folder.mkdir(parents=True, exist_ok=True)
        torture, began = Torture(folder.absolute(), random.Random(seed)), time.monotonic()
        stack.callback(torture.ask, "server", "stop")
        print(f"seed {seed}; first the undisturbed run", flush=True)
        torture.one_run("undisturbed", 0)
        undisturbed, runs = torture.opened("undisturbed"), 0
        print(f"{time.monotonic() - began:.0f} s; now {options.kills} kills", flush=True)
        while torture.kills < options.kills:
            runs += 1
            torture.one_run(f"tortured-{runs}", options.kills)
            torture.check(f"tortured-{runs}", undisturbed)
            print(f"run {runs}: {torture.kills} kills so far, {len(torture.wrong)} differences", flush=True)
        torture.check_processes()
    minutes = (time.monotonic() - began) / 60
    print(f"{torture.kills} kills over {runs} runs in {minutes:.0f} min; {torture.mid_write} hit a file being written")
    print("killed in: " + ", ".join(f"{name} {count}" for name, count in torture.struck.most_common()))
    print("\n".join(torture.wrong) or "every run ended complete and byte-identical to the undisturbed one")
    sys.exit(1 if torture.wrong else 0)


if __name__ == "__main__":
    main()
