"""Estimates of a pipeline on given hardware: bytes and seconds of each stage, as plain data and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from gradus.flows.screen.text import Lines, print_table, size_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.checks import profile_size
from gradus.pipeline.estimates.hardware import Hardware
from gradus.pipeline.estimates.load import Load
from gradus.pipeline.estimates.memory import memory
from gradus.pipeline.estimates.model_size import ModelSize, model_size
from gradus.pipeline.estimates.step_time import READING, pace
from gradus.pipeline.stage import Stage

PARTS = {
    "weights": "weights",
    "moments": "Adam's moments",
    "copies": "other policies",
    "decoder": "sampler's weights",
    "cache": "KV cache",
    "drawing": "drawing tokens",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits, one piece",
    "terms": "kl and entropy",
    "evaluation": "evaluation",
}
TIMES = ("sampling", "learning", "all steps")
PHASES = ("sampling", "learning", "evaluating")
SAVINGS: dict[str, dict[str, Any]] = {
    "gradient_checkpointing: true": {"checkpointing": True},
    "token_budget: 4096": {"pack_tokens": 4096},
    "sampling.token_budget: 16384": {"cache_tokens": 16_384},
    "kl_every: 0": {"start": False},
    "policy.lora: {rank: 16}": {"lora_rank": 16},
    "policy.dtype: bfloat16": {"weight_bytes": 2},
}
"""Options that save memory -> what they change in a load."""
PROFILED = 1000
"""Prompts of a profile whose time is shown: how many there are is known once the data are read."""
MOST_DOUBLINGS = 7
"""How often the number of devices is doubled to find one that is enough."""


def sizes(
    config: PipelineConfig, stages: Mapping[str, Stage], hardware: Hardware, prompt_tokens: int
) -> dict[str, Any]:
    """Memory and time of every stage that trains, as plain data. Raises: UserError if the model is not known."""
    if not config.trained:
        raise UserError("no stage trains, so that there is nothing to estimate", where="--hardware", fix="leave it out")
    size = model_size(config.policy)
    profiles = {stage.label: profile_size(stage) for stage in config.trained}
    loads = [
        Load.of(config, stage, stages[stage.stage].needs(stage), prompt_tokens, hardware.cuda, hardware.devices)
        for stage in config.trained
    ]
    rows = [_row(size, load, hardware, profiles[load.label]) for load in loads]
    heaviest = max(range(len(rows)), key=lambda place: rows[place]["peak"])
    return {
        "hardware": {**asdict(hardware), "shown": hardware.shown},
        "model": asdict(size),
        "prompt_tokens": prompt_tokens,
        "weight_bytes": loads[0].weight_bytes,
        "stages": rows,
        "heaviest": rows[heaviest]["label"],
        "ways_on": [] if rows[heaviest]["fits"] else _ways(size, loads[heaviest], hardware),
    }


def _row(size: ModelSize, load: Load, hardware: Hardware, profile: int) -> dict[str, Any]:
    found, time = memory(size, load, hardware.devices), pace(size, load, hardware)
    engine = load.engine_share * hardware.memory
    peak = hardware.overhead * found.peak + engine
    row = {"label": load.label, "steps": load.steps, "peak": peak, "fits": peak <= hardware.memory}
    row |= {"engine": engine} | {name: getattr(found, name) for name in (*PARTS, *PHASES)}
    row |= {"sampling_seconds": time.of("sampling"), "learning_seconds": time.of("learning")}
    if profile:
        completions = load.prompts * load.group * hardware.devices * (1 + load.reference_sampled)
        row |= {"profile": profile, "profile_seconds": time.of("sampling") * profile * PROFILED / completions}
    return row | {"bottleneck": time.largest.what, "bottleneck_share": time.largest.seconds / time.seconds}


def _ways(size: ModelSize, load: Load, hardware: Hardware) -> list[str]:
    """What would make a stage fit, or save memory, by the same formulas: single options, all of them, more devices."""

    def peak(change: dict[str, Any], devices: int = hardware.devices) -> float:
        share = hardware.devices / devices
        prompts, evaluated = math.ceil(load.prompts * share), math.ceil(load.evaluated * share)
        changed = replace(replace(load, **change), prompts=prompts, evaluated=evaluated)
        return hardware.overhead * memory(size, changed, devices).peak + load.engine_share * hardware.memory

    def described(what: str, after: float) -> str:
        return f"{what}: {size_text(round(after))}{', fits' if after <= hardware.memory else ''}"

    helping = {option: change for option, change in SAVINGS.items() if peak(change) < 0.97 * peak({})}
    ways = [described(option, peak(change)) for option, change in helping.items()]
    together = {name: value for change in helping.values() for name, value in change.items()}
    if len(helping) > 1:
        ways.append(described("all of these", peak(together)))
    tried: list[tuple[dict[str, Any], str]] = [({}, ""), (together, " and all of these")]
    for change, also in tried:
        for power in range(1, MOST_DOUBLINGS + 1):
            devices = hardware.devices * 2**power
            if peak(change, devices) <= hardware.memory:
                return [*ways, described(f"{devices} x {hardware.name}{also}", peak(change, devices))]
    more = hardware.devices * 2**MOST_DOUBLINGS
    return [*ways, f"up to {more:,} x {hardware.name} are not enough: each holds all weights while it samples"]


def print_sizes(found: Mapping[str, Any], console: Console) -> None:
    """Print the tables: memory by part, then time."""
    say, model, rows = Lines(console).say, found["model"], found["stages"]
    hardware = Hardware(**{key: value for key, value in found["hardware"].items() if key != "shown"})
    kind = "float32" if found["weight_bytes"] == 4 else "16-bit"
    say(f"\nOn {hardware.shown}, an estimate: {model['model_type']} of {_many(model['parameters'])} parameters, {kind}")
    say(f"weights; prompts of {found['prompt_tokens']} tokens, completions to their limit. Bytes on each device:\n")
    parts = [name for name in PARTS if name != "terms" or any(row[name] for row in rows)]
    lines = [[PARTS[name], *(_bytes(row[name]) for row in rows)] for name in parts]
    if any(row["engine"] for row in rows):
        lines.append(["vLLM", *(_bytes(row["engine"]) for row in rows)])
    lines += [[f"while {phase}", *(_bytes(row[phase]) for row in rows)] for phase in PHASES]
    if hardware.overhead != 1:
        lines.append(["with fragmentation", *(_bytes(row["peak"]) for row in rows)])
    share = [f"{row['peak'] / hardware.memory:.0%}{'' if row['fits'] else ' !'}" for row in rows]
    header = ["", *(row["label"] for row in rows)]
    print_table(console, header, [*lines, ["of the device", *share]], header[1:])
    say("")
    times = [
        [
            row["label"],
            *(_time(row[f"{phase}_seconds"]) for phase in ("sampling", "learning")),
            _time(row["steps"] * (row["sampling_seconds"] + row["learning_seconds"])),
            f"{row['bottleneck']} ({row['bottleneck_share']:.0%})",
        ]
        for row in rows
    ]
    print_table(console, ["stage", "sampling", "learning", "all steps", "largest part"], times, TIMES)
    for row in rows:
        if "profile" in row:
            what = f"{row['profile']} completions of every training prompt before the first step"
            say(f"{row['label']}: {what}, {_time(row['profile_seconds'])} for each {PROFILED:,} prompts beside that")
    if found["ways_on"]:
        say(f"\n{found['heaviest']} needs the most memory and does not fit. What would save memory:")
    for way in found["ways_on"]:
        say(f"  {way}")
    for line in assumptions(hardware):
        say(f"\n{line}")


def assumptions(hardware: Hardware) -> Sequence[str]:
    """The assumptions of the estimate."""
    lines = [
        f"Time: matrix products at {hardware.efficiency:.0%} of the peak ({hardware.decoding:.0%} while sampling), "
        f"memory at {READING:.0%} of its bandwidth,\n{hardware.operation * 1e6:.0f} us to start an operation; "
        "without rewards, evaluations and checkpoints."
    ]
    if hardware.devices > 1:
        lines.append("Several devices: each has its share of the prompts; weights, gradients and moments are sharded.")
    return [*lines, "docs/scaling.md has the formulas, and their errors where they were measured."]


def _bytes(value: float) -> str:
    return size_text(round(value)) if value else ""


def _time(seconds: float) -> str:
    """A time with two digits, from milliseconds to hours.

    >>> [_time(s) for s in (0, 0.0004, 0.0123, 3.21, 84, 5000, 200000)]
    ['', '0.4 ms', '12 ms', '3.2 s', '84 s', '83 min', '56 h']
    """
    if not seconds:
        return ""
    for limit, factor, unit in ((1, 1e-3, "ms"), (100, 1, "s"), (6000, 60, "min"), (math.inf, 3600, "h")):
        if seconds < limit:
            amount = seconds / factor
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
    raise AssertionError


def _many(parameters: int) -> str:
    """A number of parameters, such as ``6.74 G``."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= factor:
            return f"{parameters / factor:.3g} {unit}"
    return str(parameters)
