"""What `gradus plan --hardware` says of the work, beside what the work takes: memory and seconds of a step.

Completions run to their limit here, as the plan assumes.
"""

from __future__ import annotations

import dataclasses
import re

import torch
from benchmarks.gpu.findings import Findings, Setup, of_part
from benchmarks.gpu.shapes import case as case_of
from benchmarks.gpu.speed import measured
from benchmarks.workload import Gradus, make_policy

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.estimates.hardware import KNOWN, Hardware, parse_hardware
from gradus.pipeline.estimates.load import Load
from gradus.pipeline.estimates.memory import memory
from gradus.pipeline.estimates.model_size import from_options
from gradus.pipeline.estimates.step_time import pace


def hardware_of(device: str, name: str, total: float) -> Hardware:
    """The known hardware that a device's name means, with the memory that it has.

    >>> hardware_of("cuda", "NVIDIA H100 80GB HBM3", 85e9).shown
    'H100 (85.0 GB)'

    Raises: UserError where no known hardware has such a name.
    """
    if device == "cpu":
        return parse_hardware("cpu:24GiB")
    squeezed = re.sub(r"[\s-]", "", name).lower()
    fits = [each for each in KNOWN if each.partition("-")[0].lower() in squeezed]
    if not fits:
        raise UserError(f"the estimates do not know {name}")
    nearest = min(fits, key=lambda each: (-len(each.partition("-")[0]), abs(KNOWN[each].memory - total)))
    return dataclasses.replace(KNOWN[nearest], memory=total)


def run(setup: Setup, found: Findings) -> None:
    """Rates against the data sheet, then a step against its estimate."""
    device = setup.device
    facts = {f["what"]: f["value"] for f in of_part(setup.out, "environment")}
    hardware = hardware_of(device, facts["device"], 1e9 * facts.get("memory", 0))
    found.add("hardware of the estimate", hardware.shown)
    for what, planned in (("bfloat16 products", hardware.narrow), ("float32 products", hardware.wide)):
        found.add(f"{what}, measured / estimate's peak", facts[what] * 1e12 / planned)
    found.add("bandwidth, measured / estimate's", facts["copy bandwidth"] * 1e9 / hardware.bandwidth)
    case = case_of(setup.tiny, variable=False)
    for name, dtype, autocast in (("bfloat16 products", torch.float32, True),
                                  ("bfloat16 weights", torch.bfloat16, False)):  # fmt: skip
        load = Load(name, 1, case.prompts, case.group_size, case.prompt_tokens, case.new_tokens,
                    weight_bytes=dtype.itemsize, autocast=autocast)  # fmt: skip
        size = from_options(case.model)
        guess, parts = pace(size, load, hardware), memory(size, load)
        got = measured(Gradus(case, make_policy(case.model, device=device, dtype=dtype), autocast=autocast), 1)
        for phase, key in (("sampling", "sample wall"), ("learning", "learn wall")):
            unit = f"{guess.of(phase):.2f} of {got[key]:.2f} s"
            found.add(f"{name}: {phase}, estimated / measured", guess.of(phase) / got[key], unit)
        found.add(f"{name}: largest part of the estimate", f"{guess.largest.phase}: {guess.largest.what}")
        if device == "cuda":  # of a CPU the whole process would be counted: benchmarks/sizing.py measures that
            unit = f"{parts.peak / 1e9:.1f} of {got['peak'] / 1e9:.1f} GB"
            found.add(f"{name}: peak memory, estimated / measured", parts.peak / got["peak"], unit)
