"""An estimate of the time of a training step, from its work and the speed of the hardware; it is no measurement.

    sampling   reading the prompts, then a decoding step a token, which computes 2 operations a weight and row, and
               reads every weight and the cache: the longer one counts, or starting the operations where that is longer
    learning   6 operations a weight and token (2 for a pass without a gradient), the head's for predicted tokens only,
               attention beside that; then Adam reads four numbers a parameter and writes three

Products run at ``Hardware.efficiency`` of the peak (``decoding`` in the sampler), memory at ``READING`` of its
bandwidth. Rewards, evaluations and checkpoints are left out: they depend on the task and on the options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradus.pipeline.estimates.hardware import Hardware
from gradus.pipeline.estimates.load import FLOAT, Load
from gradus.pipeline.estimates.memory import trained_parameters
from gradus.pipeline.estimates.model_size import ModelSize

READING = 0.7
"""The share of the memory's bandwidth that is reached."""
DECODING, LEARNING = 25, 120
"""Operations that PyTorch starts for each layer, in a decoding step and in a forward and backward pass."""
DRAWING = 8
"""How often a float32 [rows, vocabulary] is read or written while tokens are drawn."""
ADAM = 7
"""Numbers per parameter that the optimizer reads or writes."""


@dataclass(frozen=True)
class Part:
    """One part of the time of a step."""

    phase: str
    """``sampling`` or ``learning``."""
    what: str
    seconds: float


@dataclass(frozen=True)
class Pace:
    """The time of a step, in parts."""

    parts: tuple[Part, ...]

    def of(self, phase: str) -> float:
        """Seconds of a phase."""
        return sum(part.seconds for part in self.parts if part.phase == phase)

    @property
    def seconds(self) -> float:
        """Seconds of a step, with one phase after the other."""
        return sum(part.seconds for part in self.parts)

    @property
    def largest(self) -> Part:
        """The part that takes the most time."""
        return max(self.parts, key=lambda part: part.seconds)


def pace(size: ModelSize, load: Load, hardware: Hardware) -> Pace:
    """The time of a step of one stage; ``load`` is the work of each device, and all work at the same time."""
    parts = [*_learning(size, load, hardware)]
    if load.sampled:
        parts += _sampling(size, load, hardware)
    return Pace(tuple(part for part in parts if part.seconds > 0))


def _products(hardware: Hardware, narrow: bool) -> float:
    """Operations per second that a training step reaches."""
    return hardware.efficiency * (hardware.narrow if narrow else hardware.wide)


def _sampling(size: ModelSize, load: Load, hardware: Hardware) -> list[Part]:
    """Sampling, in the type of the weights, or of the engine on a GPU; a sampled reference policy doubles the cost."""
    number = 2 if load.external and hardware.cuda else load.weight_bytes
    peak = hardware.narrow if number < FLOAT else hardware.wide
    speed, reading = hardware.decoding * peak, READING * hardware.bandwidth
    policies, rows = 1 + load.reference_sampled, load.growing(load.prompts, load.group)
    steps = math.ceil(load.rows / rows) * (load.new_tokens - 1)
    readers = load.group if load.shares(load.group) else 1
    cached = rows * load.new_tokens / 2 + rows * load.prompt_tokens / readers
    matrices = size.linear + size.words
    computing = 2 * matrices * rows / speed
    read = {
        "reading the weights": matrices * number / reading,
        "reading the cache": size.cache * number * cached / reading,
        "drawing tokens": DRAWING * FLOAT * rows * size.vocabulary / reading,
    }
    starting = (size.layers * DECODING + 30) * hardware.operation
    found = {"reading prompts": 2 * size.linear * load.prompts * load.prompt_tokens / speed}
    weights = max(computing, read["reading the weights"])
    busy = weights + read["reading the cache"] + read["drawing tokens"]
    waiting = max(0.0, starting - busy) * (not load.external) if hardware.cuda else starting  # vLLM replays graphs
    computed = computing > read["reading the weights"]
    found["products of decoding" if computed else "reading the weights"] = steps * weights
    found["reading the cache"] = steps * read["reading the cache"]
    found["drawing tokens"] = steps * read["drawing tokens"]
    found["starting operations"] = steps * waiting
    if hardware.devices > 1 or load.external:
        what = "pushing weights" if load.external else "gathering weights"
        found[what] = size.parameters * load.weight_bytes / hardware.link
    return [Part("sampling", what, policies * seconds) for what, seconds in found.items()]


def _learning(size: ModelSize, load: Load, hardware: Hardware) -> list[Part]:
    """Updates and passes for log-probabilities; sharded weights are gathered while other layers are computed."""
    stored_narrow = load.weight_bytes < FLOAT
    speed, uncast = _products(hardware, load.autocast or stored_narrow), _products(hardware, stored_narrow)
    trained = trained_parameters(size, load)
    predicted = load.rows * load.new_tokens
    pairs = load.prompts * load.prompt_tokens**2 / 2
    pairs += load.rows * (load.new_tokens * load.prompt_tokens + load.new_tokens**2 / 2)
    forward = 2 * size.linear * load.tokens + 4 * size.layers * size.heads * size.head_dim * pairs
    head = 2 * size.words * predicted
    factor = (2 if load.lora_rank else 3) + load.checkpointing
    products = load.updates * (factor * forward + (2 if load.lora_rank else 3) * head) / speed
    starting = load.updates * load.packs * size.layers * LEARNING * hardware.operation
    waiting = max(0.0, starting - products) if hardware.cuda else starting
    memory = ADAM * FLOAT * trained / hardware.devices / (READING * hardware.bandwidth)
    found = {
        "products of learning": products,
        "starting operations": waiting,
        "the optimizer": load.updates * memory,
        "passes of other policies": load.passes * (forward + head) / uncast,
        "reading completions": (load.sampled and load.external) * (forward + head) / speed,
    }
    if load.token_critic:
        found["the critic"] = (3 * load.updates + 1) * forward / uncast
        found["the optimizer"] *= 2
    if hardware.devices > 1:
        sent = (2 * size.parameters + trained) * load.weight_bytes / hardware.link
        found["exchange between devices"] = max(0.0, load.updates * load.packs * sent - products)
    return [Part("learning", what, seconds) for what, seconds in found.items()]
