"""The speed and memory of accelerators, and the notation for them: ``8xH100``, ``L4``, ``cpu:24GiB``.

The figures of accelerators come from their makers' data sheets: dense products without sparsity, the SXM or OAM form
where there are several, links in one direction. Those of a CPU are for one core, measured on an AMD EPYC with AVX2
(``docs/speed.md``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gradus.pipeline.common.errors import UserError

UNITS = {"GB": 10**9, "GiB": 2**30, "G": 10**9}


@dataclass(frozen=True)
class Hardware:
    """A kind of device, and how many devices there are."""

    name: str
    memory: float
    """Bytes of each device."""
    narrow: float
    """Operations per second in bfloat16, accumulated in float32."""
    wide: float
    """Operations per second in float32, without TF32, which PyTorch does not use by default."""
    bandwidth: float
    """Bytes per second from memory."""
    link: float
    """Bytes per second to the other devices."""
    efficiency: float = 0.4
    """Share of the peak that the products of a training step reach; large runs report 0.35 to 0.5."""
    decoding: float = 0.4
    """The same share for the products of the sampler, which have fewer rows; on a CPU 0.47 was measured."""
    operation: float = 6e-6
    """Seconds that PyTorch needs to start an operation."""
    overhead: float = 1.0
    """Memory that the process or device holds, divided by what is asked for: the heap of the C library keeps freed
    pieces that do not always fit again (median of ``benchmarks/sizing.py``). CUDA's allocator was not measured."""
    cuda: bool = True
    """Whether operations start while others still run, and the learner's products are bfloat16 by default."""
    devices: int = 1

    @property
    def shown(self) -> str:
        """``8 x H100 (80.0 GB each)``."""
        each = f"{self.memory / 1e9:.1f} GB"
        return f"{self.devices} x {self.name} ({each} each)" if self.devices > 1 else f"{self.name} ({each})"


GB, TERA = 1e9, 1e12
KNOWN = {
    each.name: each
    for each in (
        Hardware("A100-40GB", 40 * GB, 312 * TERA, 19.5 * TERA, 1555 * GB, 300 * GB),
        Hardware("A100-80GB", 80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, 300 * GB),
        Hardware("H100", 80 * GB, 989 * TERA, 67 * TERA, 3350 * GB, 450 * GB),
        Hardware("H200", 141 * GB, 989 * TERA, 67 * TERA, 4800 * GB, 450 * GB),
        Hardware("B200", 180 * GB, 2250 * TERA, 75 * TERA, 7700 * GB, 900 * GB),
        Hardware("MI300X", 192 * GB, 1307 * TERA, 163 * TERA, 5300 * GB, 448 * GB),
        Hardware("L4", 24 * GB, 121 * TERA, 30.3 * TERA, 300 * GB, 32 * GB),
        Hardware("L40S", 48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, 32 * GB),
        Hardware("RTX3090", 24 * GB, 71 * TERA, 35.6 * TERA, 936 * GB, 32 * GB),
        Hardware("RTX4090", 24 * GB, 165 * TERA, 82.6 * TERA, 1008 * GB, 32 * GB),
        Hardware("RTX5090", 32 * GB, 209 * TERA, 104.8 * TERA, 1792 * GB, 64 * GB),
        Hardware(
            "cpu",
            0,
            90e9,
            90e9,
            32 * GB,
            10 * GB,
            efficiency=0.7,
            decoding=0.47,
            operation=4e-6,
            overhead=1.25,
            cuda=False,
        ),
    )
}


def parse_hardware(text: str) -> Hardware:
    """Read ``[COUNTx]NAME[:MEMORY]``. Raises: UserError where the hardware is not known.

    >>> parse_hardware("8xh100").shown, parse_hardware("cpu:24GiB").shown
    ('8 x H100 (80.0 GB each)', 'cpu (25.8 GB)')
    """
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?([\w-]+?)(?::([\d.]+)\s*(GB|GiB|G))?", text.strip(), re.IGNORECASE)
    count, name, amount, unit = match.groups() if match else (None, "", None, None)
    known = {each.lower(): hardware for each, hardware in KNOWN.items()}
    found = known.get(name.lower())
    memory = _bytes(amount, unit)
    if found is None or count == "0" or memory == 0 or (not found.memory and memory is None):
        raise UserError(
            "a cpu's memory is not known" if found is not None and not found.memory else "no such hardware is known",
            where="--hardware",
            got=text,
            expected=f"[COUNTx]NAME[:MEMORY] with one of {', '.join(each for each in KNOWN if each != 'cpu')}, "
            "or cpu:MEMORY",
            fix="give one that is near, with the memory it has, such as 4xH100:94GB, or cpu:24GiB",
        )
    return replace(found, devices=int(count or 1), memory=found.memory if memory is None else memory)


def _bytes(amount: str | None, unit: str | None) -> float | None:
    if amount is None or unit is None:
        return None
    try:
        return float(amount) * next(size for name, size in UNITS.items() if name.lower() == unit.lower())
    except ValueError:
        return 0
