"""Checks before compute is spent, made without importing torch or transformers.

What only the model itself can show (its size in memory, its tokenizer) is found when it is loaded, which a run does
first.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, RewardConfig
from gradus.pipeline.config.explain import combined
from gradus.pipeline.config.tasks import key_of
from gradus.pipeline.execution.prompt_choice import check_choice, check_demonstrations
from gradus.pipeline.execution.stage_checks import check_carry, check_needs, check_other_policies
from gradus.pipeline.policy.checks import check_lengths, check_policy
from gradus.pipeline.policy.merge_checks import check_merge
from gradus.pipeline.policy.prompt_lengths import check_ban, too_long
from gradus.pipeline.stage import Stage

OF_A_STAGE = (check_needs, check_choice, check_demonstrations, check_carry)
"""What is checked of every stage that trains."""
SPARE_BYTES = 200_000_000
"""Bytes of disk space that a run needs besides its checkpoints."""


def preflight(
    config: PipelineConfig,
    base_dir: Path,
    stages: Mapping[str, Stage],
    runs_dir: Path | None = None,
    file: str = "",
    copied: Collection[str] = (),
) -> list[str]:
    """Check a configuration against the files, packages and servers it names. Raises: UserError with every problem.

    Returns lines for the user about the data that were found.

    ``file``: the path of the configuration, for the messages. ``runs_dir``: where the run's folder will be made;
    without it the disk is not checked. ``copied``: the sections (``task``, ``policy``) whose sources the run has copies
    of, so that they need not exist any more.
    """
    from gradus.pipeline.rollouts.vllm.checks import check_rollouts
    from gradus.pipeline.tasks.several.build import told_of
    from gradus.pipeline.tasks.task import check_task
    from gradus.pipeline.tracking.access import check_tracking

    longest, notes = max(option.max_tokens for option in config.samplings), list[str]()

    def check_data(name: str) -> None:
        with told_of(key_of(config, name)):
            found = check_task(config.named_tasks[name], base_dir)
            asked = [] if "policy" in copied else _check_questions(config, name, found.questions, longest)
            notes.extend(f"{name}: {note}" if name else note for note in (*found.notes, *asked))

    sources: list[tuple[str, Callable[[], None]]] = [
        ("policy", lambda: check_policy(config.policy)),
        ("policy", lambda: check_lengths(config.policy, longest)),
        *(
            ("policy", functools.partial(check_ban, config.policy, options.ban or (), where))
            for where, options in config.placed_samplings.items()
        ),
        *(("task", functools.partial(check_data, name)) for name in config.named_tasks),
    ]
    checks: list[Callable[[], None]] = [
        *(check for section, check in sources if section not in copied),
        lambda: check_all_rewards(config),
        *(functools.partial(check, config, stage, stages) for check in OF_A_STAGE for stage in config.trained),
        *(functools.partial(check_other_policies, config, stage) for stage in config.trained),
        *(functools.partial(check_merge, config, stage) for stage in config.stages if not stage.trains),
        lambda: check_rollouts(config),
        lambda: check_tracking(config.tracking, runs_dir or Path.cwd()),
    ]
    if runs_dir is not None:
        checks.append(lambda: check_runs_folder(runs_dir, _checkpoint_bytes(config)))
    problems = []
    for check in checks:
        try:
            check()
        except UserError as problem:
            problems.append(_placed(problem, file))
    if problems:
        raise combined(problems, file or f"the pipeline {config.name!r}")
    return notes


def check_all_rewards(config: PipelineConfig) -> None:
    """Every reward can score every task that it is to score. Raises: UserError for the first that cannot."""
    from gradus.pipeline.rewards import check_rewards

    def check(rewards: list[RewardConfig] | None, tasks: Iterable[str], key: str) -> None:
        for source in dict.fromkeys(config.named_tasks[name].source for name in tasks) if rewards else ():
            check_rewards(rewards or [], source, key)

    general = [name for name, task in config.named_tasks.items() if task.rewards is None]
    check(config.rewards, general, "rewards")
    for name, task in config.named_tasks.items():
        check(task.rewards, [name], f"{key_of(config, name)}.rewards")
    for stage in config.stages:
        check(stage.rewards, config.shares(stage), f"stages.{stage.label}.rewards")
        check(stage.extra_rewards, config.shares(stage), f"stages.{stage.label}.extra_rewards")


def _check_questions(config: PipelineConfig, name: str, questions: list[str], max_tokens: int) -> list[str]:
    """The first questions leave the model room for a completion; else what happens to them. Raises: UserError."""
    wanted = config.named_tasks[name].overlong_prompts
    if wanted != "error" and config.policy.path is None:
        raise UserError(
            "a new model can take every prompt",
            where="task.overlong_prompts",
            got=wanted,
            expected="error, where the policy is new",
            fix="leave it out, and give policy.architecture enough positions (max_position_embeddings)",
        )
    if (found := too_long(config.policy, questions, max_tokens)) is None:
        return []
    count, longest, limit = found
    told = (
        f"{count:,} of the first {len(questions):,} questions have more than {limit:,} tokens, the longest {longest:,}"
    )
    if wanted == "error":
        raise UserError(
            "prompts leave the model no room for a completion",
            where="task.overlong_prompts",
            got=told,
            expected=f"the model's positions less sampling.max_tokens ({max_tokens:,})",
            fix="set it to drop or truncate_left, lower sampling.max_tokens, or choose a model with more positions",
        )
    return [f"{told}: they are {'left out' if wanted == 'drop' else 'cut from the left'} (task.overlong_prompts)"]


def _placed(problem: UserError, file: str) -> UserError:
    """The problem, with the name of the file before a key of the configuration."""
    if not file or problem.where.split(".")[0] not in PipelineConfig.model_fields:
        return problem
    where = f"{file}, {problem.where}"
    return UserError(problem.what, where=where, got=problem.got, expected=problem.expected, fix=problem.fix)


def check_runs_folder(runs_dir: Path, checkpoint_bytes: int = 0) -> None:
    """The runs folder is writable and has room for the checkpoints. Raises: UserError."""
    refuse_url(runs_dir)
    existing = next(folder for folder in (runs_dir.absolute(), *runs_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError("the runs folder is a file", where=str(existing), fix="choose another folder with --runs")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            "the runs folder cannot be written", where=str(existing), fix="choose another folder with --runs"
        )
    free, needed = shutil.disk_usage(existing).free, SPARE_BYTES + checkpoint_bytes
    if free < needed:
        got, expected = (
            f"{free / 1e9:.1f} GB free",
            f"{needed / 1e9:.1f} GB, for the checkpoints that are kept of each stage",
        )
        fix = "free some space, or choose another folder with --runs"
        raise UserError("there is too little disk space", where=str(existing), got=got, expected=expected, fix=fix)


def refuse_url(runs_dir: Path) -> None:
    """Runs need a file system, with atomic renames and locks; an object store has neither. Raises: UserError."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(runs_dir)):
        raise UserError(
            "runs cannot lie in an object store",
            where="--runs",
            got=str(runs_dir),
            expected="a folder of a file system, which has atomic renames and locks; workers share one that is mounted",
            fix="mount it (NFS 4, Lustre, a persistent volume) at the same path on every machine",
        )


def _checkpoint_bytes(config: PipelineConfig) -> int:
    """Bytes that the checkpoints of a local policy will take; 0 where its size is not known.

    These are the starting policy, the kept checkpoints of each stage, each with Adam's two moments of every weight, and
    one more while it is written.
    """
    folder = Path(config.policy.path or "")
    if config.policy.path is None or not folder.is_dir():
        return 0
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return (1 + 3 * (len(config.stages) * config.checkpoints.keep + 1)) * weights
