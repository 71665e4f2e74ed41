"""It trains: the quickstart's chain at a quarter of its steps, launched as a user would, without Prefect.

All chains run at the same time, because a model of half a million parameters leaves a GPU idle. One of them is killed
in the middle of GFPO and resumed. Chains with `policy.deterministic` must agree bit for bit; how far others drift is
measured.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.findings import Findings, Setup
from benchmarks.lives import Cradle, Life

from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.same_outcome import outcome_differences
from gradus.pipeline.tracking.journal import metric_history
from gradus.stages import discover

QUARTER = {"sft": 75, "dapo": 20, "gfpo": 30, "srpo": 20}
TINY_STEPS = {"sft": 2, "dapo": 1, "gfpo": 6, "srpo": 1}
TINY = [
    "policy.architecture.hidden_size=32", "policy.architecture.intermediate_size=64",
    "policy.architecture.num_hidden_layers=1", "task.size=300", "task.heldout=40", "task.validation=20",
    "sampling.max_tokens=12", *(f"stages.{name}.prompts_per_step=4" for name in TINY_STEPS),
]  # fmt: skip
KILLED = "killed and resumed"


@dataclass
class Chain:
    """A launch of the quickstart with some options."""

    name: str
    options: tuple[str, ...]
    life: Life | None = None
    code: int | None = None
    folder: Path = field(default_factory=Path)

    @property
    def stage_journal(self) -> Path:
        return self.folder / "stages" / "03-gfpo" / "journal.jsonl"


def chains(setup: Setup) -> list[Chain]:
    """On a CPU everything is deterministic, so that fewer of them say the same."""
    single, double = ("policy.autocast=off",), ("policy.autocast=bfloat16",)
    exact = (*single, "policy.deterministic=true")
    made = [Chain("float32", single), Chain("bfloat16", double), Chain(KILLED, exact)]
    if setup.device == "cuda":
        made += [Chain("exact", exact), Chain("exact again", exact), Chain("float32 again", single)]
    return made


def run(setup: Setup, found: Findings) -> None:
    """Launch all, kill one and resume it, compare."""
    runs = setup.scratch / "runs"
    runs.mkdir()
    environment = dict(os.environ) | {"GRADUS_HOME": str(setup.scratch / "home")}
    cradle = Cradle(runs, environment, method="fork")
    steps = TINY_STEPS if setup.tiny else QUARTER
    shared = [f"stages.{name}.steps={count}" for name, count in steps.items()]
    shared += [f"policy.device={setup.device}", "policy.threads=1", "checkpoints.every_seconds=1"]
    shared += TINY if setup.tiny else []
    made = chains(setup)
    try:
        _live(made, cradle, shared, steps["gfpo"] // 2, setup, found)
    finally:
        for chain in made:
            if chain.life is not None:
                chain.life.send(signal.SIGKILL)
    _compare({chain.name: chain for chain in made if chain.code == 0}, setup, found)


def _live(made: list[Chain], cradle: Cradle, shared: list[str], after: int, setup: Setup, found: Findings) -> None:
    """Launch all, kill one after so many steps of GFPO and resume it, and wait for all."""
    runs, log = str(cradle.folder), str(setup.out / "log.txt")
    for chain in made:
        chain.folder = cradle.folder / chain.name.replace(" ", "-")
        given = [word for option in (*shared, *chain.options) for word in ("--set", option)]
        launched = ["run", "quickstart", "--engine", "none", "--runs", runs, "--name", chain.folder.name, *given]
        chain.life = cradle.forked(launched, log)
    killed = next(chain for chain in made if chain.name == KILLED)
    found.add("killed in GFPO after step", _kill(killed, after, setup.seconds / 2))
    killed.life = cradle.forked(["resume", killed.folder.name, "--engine", "none", "--runs", runs], log)
    for chain in made:
        assert chain.life is not None
        chain.code = chain.life.ended(max(5.0, setup.seconds - found.seconds - 5))
        found.add(f"{chain.name}: exit code", chain.code, ok=chain.code == 0)
        _learned(chain, found, judged=not setup.tiny)


def _kill(chain: Chain, after: int, patience: float) -> int:
    """SIGKILL once GFPO has taken this many steps; returns how many it had taken."""
    life, began = chain.life, time.monotonic()
    assert life is not None
    while time.monotonic() - began < patience and life.ended(0) is None:
        done = len(metric_history(chain.stage_journal).get("update/loss", {})) if chain.stage_journal.exists() else 0
        if done >= after:
            life.send(signal.SIGKILL)
            life.ended(20)
            return done
        time.sleep(0.05)
    ended = life.ended(0)
    how = f"within {patience:.0f} s" if ended is None else f"and the launch ended with exit code {ended}"
    raise RuntimeError(f"{chain.name}: GFPO did not take {after} steps {how}; see the log")


def _opened(chain: Chain) -> RunFolder:
    return RunFolder(chain.folder, [stage.config for stage in discover().values()])


def _learned(chain: Chain, found: Findings, judged: bool) -> None:
    """Accuracy and time, stage by stage."""
    if chain.code != 0 or "again" in chain.name:
        return
    opened = _opened(chain)
    summary = opened.summary()
    assert summary is not None
    after = [stage["accuracy_after"] for stage in summary["stages"]]
    text = ", ".join(f"{stage['name']} {value:.3f}" for stage, value in zip(summary["stages"], after, strict=True))
    # A quarter of the steps teaches the answer's form and a part of the sums; chance alone is below 0.05.
    found.add(f"{chain.name}: held-out accuracy", text, ok=after[-1] > 0.1 if judged else None)
    seconds = ", ".join(f"{stage['name']} {stage['seconds']:.1f}" for stage in summary["stages"])
    found.add(f"{chain.name}: seconds", seconds, "s")


def _compare(done: dict[str, Chain], setup: Setup, found: Findings) -> None:
    """Bit for bit where that is promised, else how far apart."""
    exact = "exact" if setup.device == "cuda" else "float32"
    for other in ("exact again", KILLED):
        if exact in done and other in done:
            differences = outcome_differences(_opened(done[exact]), _opened(done[other]))
            said = "; ".join(differences[:3]) or "the same bits"
            found.add(f"{exact} and {other}", said, ok=not differences)
    if "float32 again" in done:
        found.add("float32 twice, not deterministic: weights apart after SFT", _apart(done, "01-sft"))
        found.add("float32 twice, not deterministic: weights apart at the end", _apart(done, "04-srpo"))


def _apart(done: dict[str, Chain], stage: str) -> float:
    """The largest difference between two weights, relative to the largest weight."""
    from safetensors.torch import load_file

    files = [max((done[name].folder / "stages" / stage / "checkpoints").glob("*/model.safetensors"))
             for name in ("float32", "float32 again")]  # fmt: skip
    one, two = (load_file(file) for file in files)
    return max(float((one[name] - two[name]).abs().max()) for name in one) / max(
        float(value.abs().max()) for value in one.values()
    )
