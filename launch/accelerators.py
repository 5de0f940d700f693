"""What TPUs and GPUs are called, and how many of them a machine has, by place."""

import dataclasses
import re

from jaxformer.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
    """`cores_per_chip` is how an accelerator type counts: v4-16 has 8 chips, v5litepod-16 has 16.

    `runtime` is the software version of a TPU VM, "" where the Cloud TPU API does not make this generation;
    `one_host` are the numbers of chips that also come as one machine, larger slices have 4 chips in each.
    """

    runtime: str
    gke: str  # of the node label cloud.google.com/gke-tpu-accelerator
    cores_per_chip: int
    one_host: tuple[int, ...]
    dimensions: int  # of the network between chips


# Sources: Cloud TPU's pages of runtime versions and of each generation, GKE's page of TPU machine types; node labels
# of v3 and TPU7x, and of GPUs below, are from memory.
TPUS = {
    "v2": TpuGeneration("tpu-ubuntu2204-base", "", 2, (4,), 2),
    "v3": TpuGeneration("tpu-ubuntu2204-base", "tpu-v3-slice", 2, (4,), 2),
    "v4": TpuGeneration("tpu-ubuntu2204-base", "tpu-v4-podslice", 2, (4,), 3),
    "v5litepod": TpuGeneration("v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 1, (1, 4, 8), 2),
    "v5p": TpuGeneration("v2-alpha-tpuv5", "tpu-v5p-slice", 2, (4,), 3),
    "v6e": TpuGeneration("v2-alpha-tpuv6e", "tpu-v6e-slice", 1, (1, 4, 8), 2),
    "tpu7x": TpuGeneration("", "tpu7x", 2, (4,), 3),
}
_ALIASES = {"v5e": "v5litepod", "v7x": "tpu7x", "7x": "tpu7x"}

# By the short name that --accelerator=KIND:N takes: GKE's node label, SkyPilot's name.
GPUS = {
    "b200": ("nvidia-b200", "B200"),
    "h200": ("nvidia-h200-141gb", "H200"),
    "h100": ("nvidia-h100-80gb", "H100"),
    "a100-80gb": ("nvidia-a100-80gb", "A100-80GB"),
    "a100": ("nvidia-tesla-a100", "A100"),
    "l4": ("nvidia-l4", "L4"),
    "v100": ("nvidia-tesla-v100", "V100"),
}


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One slice of TPUs."""

    generation: str
    number: int  # as the accelerator type counts
    chips: int

    @property
    def kind(self) -> TpuGeneration:
        return TPUS[self.generation]

    @property
    def type(self) -> str:
        """The accelerator type, as v5litepod-16."""
        return f"{self.generation}-{self.number}"

    @property
    def hosts(self) -> int:
        return 1 if self.chips in self.kind.one_host else self.chips // 4

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def topology(self) -> str:
        """The usual shape of the slice, as GKE's node label wants it: 4x4, or 2x2x4 where chips form a cube."""
        if self.kind.dimensions == 2:
            short = 2 ** ((self.chips.bit_length() - 1) // 2)
            return f"{short}x{self.chips // short}"
        sides = [2, 2, 1]
        while sides[0] * sides[1] * sides[2] < self.chips:
            smallest = max(side for side in range(3) if sides[side] == min(sides))
            sides[smallest] *= 2
        return "x".join(map(str, sorted(sides) if min(sides) > 1 else sides))


def tpu(accelerator: str) -> Tpu | None:
    """Return the slice that an accelerator type names, None for what is no TPU's name.

    Raises UserError for numbers that no slice has.
    """
    match = re.fullmatch(r"(?:tpu-)?([a-z0-9]+)-(\d+)", accelerator)
    generation = _ALIASES.get(match[1], match[1]) if match else ""
    if match is None or generation not in TPUS:
        return None
    number, kind = int(match[2]), TPUS[generation]
    chips = number // kind.cores_per_chip
    sound = chips > 0 and chips & (chips - 1) == 0 and number == chips * kind.cores_per_chip
    if not sound or (chips not in kind.one_host and chips % 4) or (chips < 4 and chips not in kind.one_host):
        least = [str(count * kind.cores_per_chip) for count in sorted({*kind.one_host, 8, 16, 32})]
        raise UserError(f"--accelerator: there is no {accelerator}; {generation} comes as {', '.join(least)}, …")
    return Tpu(generation, number, chips)


def gpus(accelerator: str) -> tuple[str, int] | None:
    """Return (kind, number in each machine) of KIND:N, None for what has no such form. Any kind is taken here."""
    kind, colon, number = accelerator.rpartition(":")
    return (kind.lower(), int(number)) if colon and kind and number.isdecimal() and int(number) else None


def require_accelerator(accelerator: str, hosts: int = 1) -> Tpu | tuple[str, int]:
    """Return the TPU slice or the known GPUs that a name stands for; UserError, with the nearest name, for others, and
    for a slice that shall have another number of hosts than its own."""
    found = tpu(accelerator) or gpus(accelerator)
    if found is None or (isinstance(found, tuple) and found[0] not in GPUS):
        kind = accelerator.partition(":")[0].lower()
        known = [f"{name}-16" for name in TPUS] + [f"{name}:8" for name in GPUS]
        hint = suggest(accelerator, known) or suggest(kind, GPUS) or suggest(kind.partition("-")[0], TPUS)
        raise UserError(f"--accelerator: '{accelerator}' is none of {', '.join(known)}{hint}")
    if isinstance(found, Tpu) and hosts != 1:
        raise UserError(f"--hosts: a slice of {found.type} has {found.hosts} by itself; leave it out")
    return found
