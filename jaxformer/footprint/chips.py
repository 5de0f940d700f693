"""What data sheets say of accelerators: peak, memory and power of one device."""

from typing import NamedTuple

from jaxformer.errors import UserError, suggest

# A JAX device is a chip, on TPU v2 and v3 one of the two cores of a chip: half of the sheet's numbers.
CORES = 0.5


class Chip(NamedTuple):
    """What a data sheet says of one device: dense bf16 peak in FLOP/s (V100: fp16), memory in bytes, power in watts.

    `kind` is a part of JAX's device_kind. `watts` is the board's maximum (TPU: the chip's), None where the vendor does
    not publish it.
    """

    kind: str
    peak: float
    memory: float
    watts: float | None
    source: str

    @property
    def platform(self) -> str:
        """The kind of device as XLA's flags tell them apart."""
        return "tpu" if self.kind.startswith("TPU") else "gpu"

    @property
    def attends_as(self) -> str:
        """The kind of device as models/implementations.py tells them apart; V100s are older than cuDNN's attention."""
        return "other gpu" if self.kind == "V100" else self.platform


# By the name that `--chip` takes; of those with a common part of their kinds the most specific one first. Memory is
# counted as the sheets do: 1 GB is 10^9 bytes, 1 GiB 2^30.
CHIPS: dict[str, Chip] = {
    "h200": Chip("H200", 989.4e12, 141e9, 700, "NVIDIA H200 data sheet (SXM)"),
    "h100-nvl": Chip("H100 NVL", 835e12, 94e9, 400, "NVIDIA H100 data sheet (NVL)"),
    "h100-pcie": Chip("H100 PCIe", 756e12, 80e9, 350, "NVIDIA H100 PCIe product brief"),
    "h100": Chip("H100", 989.4e12, 80e9, 700, "NVIDIA H100 data sheet (SXM)"),
    "a100-40gb": Chip("A100-SXM4-40GB", 312e12, 40e9, 400, "NVIDIA A100 data sheet (SXM, 40 GB)"),
    "a100": Chip("A100", 312e12, 80e9, 400, "NVIDIA A100 data sheet (SXM, 80 GB)"),
    "l4": Chip("L4", 121e12, 24e9, 72, "NVIDIA L4 data sheet"),
    "v100": Chip("V100", 125e12, 32e9, 300, "NVIDIA V100 data sheet (SXM2, 32 GB)"),
    "v6e": Chip("TPU v6", 918e12, 32e9, None, "Google Cloud TPU v6e documentation"),
    "v5p": Chip("TPU v5p", 459e12, 95e9, None, "Google Cloud TPU v5p documentation"),
    "v5e": Chip("TPU v5 lite", 197e12, 16e9, None, "Google Cloud TPU v5e documentation"),
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 192, "Jouppi et al. 2023, arXiv:2304.01433, table 4 (maximum measured)"),
    "v3": Chip("TPU v3", 123e12 * CORES, 16 * 2**30, 450 * CORES, "Jouppi et al. 2021, Ten Lessons, table 1 (a core)"),
    "v2": Chip("TPU v2", 45e12 * CORES, 8 * 2**30, 280 * CORES, "Jouppi et al. 2021, Ten Lessons, table 1 (a core)"),
}
# Dense bf16 peak in FLOP/s by a part of JAX's device_kind, most specific first. Some versions of JAX name v5e and v5p
# otherwise.
PEAKS: dict[str, float] = {chip.kind: chip.peak for chip in CHIPS.values()} | {
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
}


def chip_named(name: str) -> Chip:
    """Return the chip of this name, whatever its case. Raises UserError, with the nearest name, where there is none."""
    chip = CHIPS.get(name.lower().replace("_", "-"))
    if chip is None:
        raise UserError(f"--chip={name}: no such chip{suggest(name.lower(), CHIPS)}; there are {', '.join(CHIPS)}")
    return chip


def peak(device_kind: str) -> float | None:
    """Return a device's dense bf16 peak in FLOP/s, or None where it is not known (every CPU)."""
    return next((flops for name, flops in PEAKS.items() if name in device_kind), None)
