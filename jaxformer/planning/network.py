"""What devices exchange in a training, and how long that takes beside the computing: enough to rank placements.

Bytes are those of the collectives that the placement asks for, parameters and gradients in float32, in rings, once for
each micro-batch: `fsdp` gathers parameters forward and backward and scatters gradients, `data` adds gradients up,
`tensor` adds activations up, four times a layer (six in a decoder with cross-attention) and in the compute dtype. What
`fsdp` and `data` send runs beside the computation (devices/flags.py); what `tensor` sends is waited for.

    seconds = max(computation, fsdp + data) + tensor
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Network(NamedTuple):
    """How devices of a kind are joined: up to `joined` of them at `link` bytes a second, each way and per device, more
    at `beyond`."""

    joined: int
    link: float
    beyond: float
    source: str


_ICI = "Google Cloud TPU documentation (interconnect per chip); between slices 6.25 GB/s a chip"
# By the names of footprint's CHIPS.
NETWORKS: dict[str, Network] = {
    "h200": Network(8, 450e9, 50e9, "NVIDIA DGX H200 data sheet: NVLink 900 GB/s both ways, 400 Gb/s a GPU outside"),
    "h100-nvl": Network(2, 300e9, 6.25e9, "NVIDIA H100 data sheet: bridges of 600 GB/s; 400 Gb/s for 8 GPUs taken"),
    "h100-pcie": Network(8, 64e9, 6.25e9, "PCIe 5.0 x16, 64 GB/s each way; 400 Gb/s for 8 GPUs taken"),
    "h100": Network(8, 450e9, 50e9, "NVIDIA DGX H100 data sheet: NVLink 900 GB/s both ways, 400 Gb/s a GPU outside"),
    "a100-40gb": Network(8, 300e9, 25e9, "NVIDIA DGX A100 data sheet: NVLink 600 GB/s both ways, 200 Gb/s outside"),
    "a100": Network(8, 300e9, 25e9, "NVIDIA DGX A100 data sheet: NVLink 600 GB/s both ways, 200 Gb/s a GPU outside"),
    "l4": Network(8, 32e9, 1.5e9, "PCIe 4.0 x16, 32 GB/s each way; 100 Gb/s for 8 GPUs, as Google's g2-standard-96"),
    "v100": Network(8, 150e9, 6.25e9, "NVIDIA DGX-1 data sheet: NVLink 300 GB/s both ways, 400 Gb/s for 8 GPUs"),
    "v6e": Network(256, 448e9, 6.25e9, _ICI),
    "v5p": Network(8960, 600e9, 6.25e9, _ICI),
    "v5e": Network(256, 200e9, 6.25e9, _ICI),
    "v4": Network(4096, 300e9, 6.25e9, _ICI),
    "v3": Network(2048, 164e9, 3.1e9, "Jouppi et al. 2021: four links of 656 Gb/s a chip; here a core"),
    "v2": Network(512, 124e9, 3.1e9, "Jouppi et al. 2021: four links of 496 Gb/s a chip; here a core"),
}
# What a step computes again, as a share of its own FLOPs: all of the forward pass, or the products of attention, which
# are about a twentieth of GPT-2's.
AGAIN = {"none": 0.0, "dots": 0.05, "full": 1 / 3}


class Load(NamedTuple):
    """Seconds of a whole run by what they are spent on, each as if nothing else were to do."""

    computation: float
    fsdp: float
    data: float
    tensor: float

    @property
    def seconds(self) -> float:
        return max(self.computation, self.fsdp + self.data) + self.tensor

    @property
    def limit(self) -> str:
        """What most of the time goes into."""
        spent = {"network: activations over tensor": self.tensor}
        if self.computation >= self.fsdp + self.data:
            spent["computation"] = self.computation
        elif self.fsdp >= self.data:
            spent["network: parameters and gradients over fsdp"] = self.fsdp
        else:
            spent["network: gradients over data"] = self.data
        return max(spent, key=spent.__getitem__)


class Work(NamedTuple):
    """What a run has to do, whatever its placement."""

    flops: float
    parameter_bytes: float  # float32
    width_bytes: float  # of what one token adds up over tensor: d_model in the compute dtype, times its sums
    steps: tuple[tuple[int, int, int], ...]  # of each phase: steps, tokens a step, its accumulation (0: the run's own)


def load_of(
    work: Work, network: Network, sizes: Mapping[str, int], accumulation: int, remat: str, speed: float
) -> Load:
    """Return how long a run takes on a mesh of these sizes whose devices reach `speed` FLOP/s each."""
    data, fsdp, tensor = sizes["data"], sizes["fsdp"], sizes["tensor"]

    def rate(group: int) -> float:
        return network.link if group <= network.joined else network.beyond

    found: dict[str, Any] = {"fsdp": 0.0, "data": 0.0, "tensor": 0.0}
    own = work.parameter_bytes / tensor
    for steps, tokens, pieces in work.steps:
        pieces = pieces or accumulation
        found["fsdp"] += steps * pieces * 3 * own * (1 - 1 / fsdp) / rate(fsdp * tensor)
        found["data"] += steps * pieces * 2 * own / fsdp * (1 - 1 / data) / rate(data * fsdp * tensor)
        found["tensor"] += steps * 2 * tokens / (data * fsdp) * work.width_bytes * (1 - 1 / tensor) / rate(tensor)
    computed = work.flops * (1 + AGAIN[remat]) / (data * fsdp * tensor * speed)
    return Load(computation=computed, **found)
