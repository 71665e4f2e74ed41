"""The public functions: what the command line does, as calls that print nothing and return objects.

Every function raises :class:`gradus.UserError` for what the caller can put right, :class:`gradus.StageFailed` where a
stage could not go on, and, if it trains, :class:`gradus.RunInterrupted` after Ctrl-C, SIGTERM or SIGHUP. None ends
the process.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradus.flows.compare.run.request import ARMS, ComparisonRequest, run_comparison
from gradus.flows.open_run import ConfigSource, begin_run, existing_run, load
from gradus.flows.screen.errors import quiet_libraries
from gradus.flows.screen.text import line_printer
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.host import settle_environment
from gradus.pipeline.common.interruption import Interrupted
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.runs.run_folder import RUN_FILE, RunFolder
from gradus.results import Comparison, Evaluation, Run, RunInterrupted, evaluation_of, run_at, run_of

if TYPE_CHECKING:
    from rich.console import Console

Engine = Literal["prefect", "none"]
Overrides = Mapping[str, Any] | Sequence[str]
"""``{"stages.dapo.steps": 40}``, or the words of ``--set``: ``["stages.dapo.steps=40"]``."""
Folder = str | Path


def run(
    config: ConfigSource,
    name: str | None = None,
    overrides: Overrides = (),
    *,
    tiny: bool = False,
    runs: Folder = "runs",
    engine: Engine = "prefect",
    progress: bool = False,
) -> Run:
    """Train a pipeline, stage after stage, as ``gradus run`` does, and return the run.

    Args:
        config: A YAML file, the name of a packaged configuration, a mapping of options, or a ``PipelineConfig``.
            Relative paths in the last two start from the current folder.
        name: Name of the run; an unfinished one with the same configuration is continued. Default: the first free one
            of the configuration's name, with -2, -3 and so on.
        overrides: Options by dotted keys, as a mapping or as ``KEY=VALUE`` texts.
        tiny: Swap model, data and numbers for toy ones, so that every stage runs in a minute or two on a CPU.
        runs: The folder that holds the runs.
        engine: ``"prefect"`` shows the stages as a Prefect flow; ``"none"`` calls them plainly.
        progress: Print what the command line prints; otherwise it goes to the logger ``gradus``, at level INFO.

    Raises: UserError, StageFailed, RunInterrupted.
    """
    with _screen(engine, progress) as screen:
        folder = begin_run(config, _words(overrides), name, Path(runs), engine, line_printer(screen), tiny)
        return _trained(folder, engine, screen)


def resume(
    name: str,
    from_stage: str | None = None,
    *,
    runs: Folder = "runs",
    engine: Engine = "prefect",
    progress: bool = False,
) -> Run:
    """Continue a run where it stopped, or train it again from a stage on, as ``gradus resume`` does; return the run.

    A complete run is returned as it is, unless ``from_stage`` is given or its last checkpoint is damaged. The other
    arguments are those of :func:`run`. Raises: UserError, StageFailed, RunInterrupted.
    """
    from gradus.flows.resume_run import plan_resumption

    with _screen(engine, progress) as screen:
        folder = existing_run(Path(runs), name)
        resumption = plan_resumption(folder, from_stage, engine, line_printer(screen))
        if resumption is None:
            return run_of(folder)
        return _trained(folder, engine, screen, resumption.before)


def fork(
    name: str,
    from_stage: str,
    overrides: Overrides = (),
    *,
    new_name: str | None = None,
    train: bool = True,
    runs: Folder = "runs",
    engine: Engine = "prefect",
    progress: bool = False,
) -> Run:
    """Begin a new run that shares what run ``name`` did before a stage, as ``gradus fork`` does, and return it.

    Args:
        name: The run that is forked; it stays as it is.
        from_stage: The first stage that the new run trains itself.
        overrides: What the new run does otherwise, in that stage or later ones.
        new_name: Name of the new run; default: ``name`` with -fork.
        train: False makes the run and leaves the training to :func:`resume`.

    The other arguments are those of :func:`run`. Raises: UserError, StageFailed, RunInterrupted.
    """
    from gradus.flows.fork_run import fork_run

    with _screen(engine, progress) as screen:
        origin = existing_run(Path(runs), name)
        launched_by, say = engine if train else "none", line_printer(screen)
        folder = fork_run(origin, from_stage, _words(overrides), new_name, launched_by, say).run
        return _trained(folder, engine, screen) if train else run_of(folder)


def compare(
    config: ConfigSource,
    arms: str | Sequence[str] = ARMS,
    seeds: int | Sequence[int] = 3,
    budget: str | None = None,
    overrides: Overrides = (),
    arm_overrides: Overrides = (),
    *,
    name: str | None = None,
    tune: str | None = None,
    parallel: int | None = None,
    runs: Folder = "runs",
    engine: Engine = "prefect",
    progress: bool = False,
) -> Comparison:
    """Compare methods from one starting point on one budget, as ``gradus compare`` does; return runs and report.

    Args:
        arms: What to compare: ``staged`` (the configuration's own chain), an algorithm, another configuration or run,
            each also as ``LABEL=WHAT``; a list, or one text with commas.
        seeds: How many, from 0 on, or which ones.
        budget: What each arm spends: ``"40000"`` (rollouts), ``"1e6tokens"`` or ``"600s"``. Default: what the chain
            spends.
        arm_overrides: Options of one arm, or of ``all``: ``{"gfpo.lr": 1e-4}``.
        name: Name of the comparison; default: the configuration's name with -compare. What it has is continued.
        tune: ``KEY=V1,V2``: give each arm the best of these values, found on a seed that is not reported.
        parallel: Runs at a time, each in a process of its own; default: as many as there are cores for.

    The other arguments are those of :func:`run`. Raises: UserError; StageFailed where runs failed, which the same call
    tries again; RunInterrupted.
    """
    wanted = range(seeds) if isinstance(seeds, int) else seeds
    if not wanted or len(set(wanted)) < len(wanted) or min(wanted) < 0:
        raise UserError("these are no seeds", where="seeds", got=seeds, expected="their number, or different ones")
    listed = arms if isinstance(arms, str) else ",".join(arms)
    changes = _words(arm_overrides)
    request = ComparisonRequest(listed, list(wanted), budget, changes, tune, name=name, parallel=parallel)
    with _screen(engine, progress) as screen:
        try:
            folder = run_comparison(config, _words(overrides), request, Path(runs), engine, screen)
        except Interrupted:
            raise RunInterrupted("the comparison was stopped; the same call continues it") from None
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    parts = tuple(run_at(file.parent) for file in sorted(folder.glob(f"[!.]*/{RUN_FILE}")))
    return Comparison(folder.name, folder, report, parts)


def evaluate(checkpoint: Folder | Run, *, runs: Folder = "runs") -> Evaluation:
    """Measure the accuracy of a checkpoint on the held-out prompts of its run, as ``gradus eval`` does.

    ``checkpoint`` is a checkpoint's folder, or a run, its folder or its name, which stand for its latest checkpoint.
    Raises: UserError.
    """
    from gradus.flows import inference

    quiet_libraries()
    return evaluation_of(inference.evaluate(_named(checkpoint), Path(runs)))


def sample(
    checkpoint: Folder | Run,
    prompt: str,
    n: int = 1,
    *,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    runs: Folder = "runs",
) -> list[str]:
    """``n`` completions of one prompt, as ``gradus sample`` prints them. The same seed gives the same completions.

    ``checkpoint`` is as for :func:`evaluate`, or a model of the Hugging Face Hub. Temperature and length are by default
    those of the checkpoint's run. Raises: UserError.
    """
    from gradus.flows import inference

    quiet_libraries()
    return inference.sample(_named(checkpoint), prompt, n, temperature, max_tokens, seed, Path(runs))


def load_run(name_or_path: Folder, runs: Folder = "runs") -> Run:
    """The run of this name, or in this folder, complete or not; nothing is computed and torch is not imported.

    Raises: UserError where there is no such run.
    """
    path = Path(name_or_path).expanduser()
    return run_at(path if (path / RUN_FILE).is_file() else Path(runs) / path)


def load_config(config: ConfigSource, overrides: Overrides = ()) -> PipelineConfig:
    """The checked configuration, typed, with every default filled in, as ``gradus config`` prints it.

    Relative paths become absolute. Raises: UserError that names every problem, with file, line and key.
    """
    return load(config, _words(overrides))[0].config


def _words(overrides: Overrides) -> list[str]:
    """Overrides as ``--set`` has them; JSON is YAML."""
    if isinstance(overrides, str):
        raise UserError("overrides are a mapping or a list", got=overrides, fix=f"write [{overrides!r}]")
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return list(overrides)


def _named(checkpoint: Folder | Run) -> str:
    return str(checkpoint.path if isinstance(checkpoint, Run) else checkpoint)


class _Log(io.TextIOBase):
    """A text file whose lines go to the logger ``gradus``."""

    def write(self, text: str, /) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            logging.getLogger("gradus").info("%s", line)
        return len(text)


@contextmanager
def _screen(engine: str, progress: bool) -> Iterator[Console]:
    """Where progress goes while something is trained. Raises: UserError where there is no such engine."""
    from gradus.flows.screen.text import Screen

    if engine not in ("prefect", "none"):
        raise UserError("there is no such engine", where="engine", got=engine, expected='"prefect" or "none"')
    settle_environment()
    quiet_libraries()
    yield Screen() if progress else Screen(file=_Log(), width=1000)  # type: ignore[arg-type]


def _trained(folder: RunFolder, engine: str, screen: Console, before: Any = lambda: None) -> Run:
    """Launch a run and return it. Raises: StageFailed, UserError, RunInterrupted."""
    from gradus.flows import launch

    line_printer(screen)(f"run {folder.name} in {folder.path}")
    try:
        launch.launch(folder, engine, screen, before)
    except Interrupted:
        again = f"gradus.resume({folder.name!r}, runs={str(folder.path.parent)!r}) continues it"
        raise RunInterrupted(f"the run {folder.name!r} was stopped; what was finished is kept; {again}") from None
    return run_at(folder.path)
