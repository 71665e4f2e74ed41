"""Batches that fit into memory: options that save some are taken one after the other, until the estimate fits."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import psutil

from gradus.flows.init.guesses import Guesses
from gradus.flows.screen.sizes import sizes
from gradus.flows.screen.text import size_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig, PolicyConfig
from gradus.pipeline.config.loading import config_of_data
from gradus.pipeline.estimates.hardware import KNOWN, Hardware
from gradus.pipeline.estimates.model_size import model_size
from gradus.pipeline.stage import Stage

SPARE = 0.9
"""The share of the memory that is planned with."""
TYPICAL_PROMPT = 256
"""Tokens of a prompt in the estimate."""


def fit(
    config: dict[str, Any],
    policy: PolicyConfig,
    given: Hardware | None,
    stages: Mapping[str, Stage],
    guesses: Guesses,
) -> None:
    """Change a configuration in place until every stage fits the memory, and tell what was changed."""
    hardware = given or this_machine()
    planned = replace(hardware, memory=SPARE * hardware.memory)
    try:
        model_size(policy)
    except UserError as error:
        guesses.add("stages", f"batch sizes are the usual ones, because {error.what}: {error.got}")
        return
    peak = _peak(config, planned, stages)
    taken = []
    for told, change in SAVINGS:
        if peak <= planned.memory:
            break
        changed = copy.deepcopy(config)
        change(changed)
        smaller = _peak(changed, planned, stages)
        if smaller < peak:
            config.clear()
            config.update(changed)
            peak, taken = smaller, [*taken, told]
    changed_for = f", with {', '.join(taken)}" if taken else ""
    fits = "fits" if peak <= planned.memory else "DOES NOT FIT"
    guesses.add(
        "stages",
        f"memory: about {size_text(round(peak))}{changed_for}, {fits} {hardware.shown}"
        + (" (this machine; --hardware names another)" if given is None else "")
        + (
            "" if fits == "fits" else "; choose a smaller model or other hardware (`gradus plan CONFIG --hardware ...`)"
        ),
    )


def this_machine() -> Hardware:
    """The first GPU that nvidia-smi lists, or the CPU and its memory; torch would take seconds to say."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            listed = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.split()
            return replace(KNOWN["L4"], name="GPU", memory=float(listed[0]) * 2**20)
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            pass
    return replace(KNOWN["cpu"], memory=psutil.virtual_memory().total)


def _peak(config: dict[str, Any], hardware: Hardware, stages: Mapping[str, Stage]) -> float:
    """The bytes of the heaviest stage."""
    loaded: PipelineConfig = config_of_data(config, [], [stage.config for stage in stages.values()]).config
    return max(row["peak"] for row in sizes(loaded, stages, hardware, TYPICAL_PROMPT)["stages"])


def _in_stages(**options: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for stage in config["stages"]:
            stage.update(options)

    return change


def _fewer(config: dict[str, Any]) -> None:
    for stage in config["stages"]:
        stage["prompts_per_step"] = max(1, stage["prompts_per_step"] // 4)


def _cache(config: dict[str, Any]) -> None:
    config["sampling"]["token_budget"] = 16_384


def _adapters(config: dict[str, Any]) -> None:
    config["policy"]["lora"] = {"rank": 16, "alpha": 32}
    for stage in config["stages"]:
        if "lr" in stage:
            stage["lr"] *= 20  # adapters need more than the weights themselves


def _narrow(config: dict[str, Any]) -> None:
    config["policy"]["dtype"] = "bfloat16"


SAVINGS: tuple[tuple[str, Callable[[dict[str, Any]], None]], ...] = (
    ("sampling.token_budget 16384", _cache),
    ("token_budget 4096", _in_stages(token_budget=4096)),
    ("gradient_checkpointing", _in_stages(gradient_checkpointing=True)),
    ("a quarter of the prompts a step", _fewer),
    ("policy.lora", _adapters),
    ("policy.dtype bfloat16", _narrow),
)
"""(what is told, what is changed), in the order in which they are tried: first what changes no result."""
