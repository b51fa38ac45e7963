"""GPUs by name: memory, peak speed and links, for model FLOPs utilisation and for planning.

Speeds and bandwidths are those of NVIDIA's data sheets of each product, dense (without structured sparsity), with fp32
accumulation. Memory is what CUDA offers on the card (`total_memory`, error correction on), which is one to seven
percent less than its name says; for example 42,405,855,232 bytes of an A100 40GB.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp32"]

_GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: as `find` knows it.
        memory_bytes: that CUDA offers.
        peak_tflops_bf16: tensor cores, dense; of fp16 where bf16 is not computed natively.
        peak_tflops_fp32: plain fp32, which is what `precision: fp32` trains in (TF32 is off).
        memory_gb_per_second: of its own memory.
        host_gb_per_second: PCIe, one direction.
        peer_gb_per_second: to its neighbours, one direction: NVLink where the form has it, else PCIe.
        native_bf16: whether tensor cores compute bf16.
    """

    name: str
    memory_bytes: int
    peak_tflops_bf16: float
    peak_tflops_fp32: float
    memory_gb_per_second: float
    host_gb_per_second: float
    peer_gb_per_second: float
    native_bf16: bool = True

    def peak_tflops(self, precision: Precision) -> float:
        """Peak speed at a stage's precision."""
        return self.peak_tflops_bf16 if precision == "bf16" else self.peak_tflops_fp32


_PCIE3, _PCIE4, _PCIE5 = 16.0, 32.0, 64.0


def _device(name: str, gib: float, bf16: float, fp32: float, memory: float, host: float, peer: float) -> Device:
    return Device(name, int(gib * _GIB), bf16, fp32, memory, host, peer)


def _before_bf16(name: str, gib: float, fp16: float, fp32: float, memory: float, host: float, peer: float) -> Device:
    return Device(name, int(gib * _GIB), fp16, fp32, memory, host, peer, native_bf16=False)


DEVICES = (
    _device("A100-PCIE-40GB", 39.49, 312, 19.5, 1555, _PCIE4, _PCIE4),
    _device("A100-SXM4-40GB", 39.49, 312, 19.5, 1555, _PCIE4, 300),
    _device("A100-PCIE-80GB", 79.15, 312, 19.5, 1935, _PCIE4, _PCIE4),
    _device("A100-SXM4-80GB", 79.15, 312, 19.5, 2039, _PCIE4, 300),
    _device("H100-PCIE", 79.1, 756, 51, 2000, _PCIE5, _PCIE5),
    _device("H100-SXM", 79.1, 989, 67, 3350, _PCIE5, 450),
    _device("H100-NVL", 93.1, 835, 60, 3900, _PCIE5, 300),
    _device("H200-SXM", 139.7, 989, 67, 4800, _PCIE5, 450),
    _device("H200-NVL", 139.7, 835, 60, 4800, _PCIE5, 450),
    _device("B200", 178, 2250, 75, 8000, _PCIE5, 900),
    _device("A30", 23.5, 165, 10.3, 933, _PCIE4, _PCIE4),
    _device("A40", 44.4, 149.7, 37.4, 696, _PCIE4, _PCIE4),
    _device("A10", 22.0, 125, 31.2, 600, _PCIE4, _PCIE4),
    _device("A10G", 22.0, 70, 35, 600, _PCIE4, _PCIE4),
    _device("L4", 22.0, 121, 30.3, 300, _PCIE4, _PCIE4),
    _device("L40S", 44.4, 362, 91.6, 864, _PCIE4, _PCIE4),
    _device("RTX-A6000", 47.4, 154.8, 38.7, 768, _PCIE4, _PCIE4),
    _device("RTX-3090", 23.5, 71, 35.6, 936, _PCIE4, _PCIE4),
    _device("RTX-4090", 23.5, 165.2, 82.6, 1008, _PCIE4, _PCIE4),
    _before_bf16("V100-PCIE-16GB", 15.7, 112, 14, 900, _PCIE3, _PCIE3),
    _before_bf16("V100-PCIE-32GB", 31.7, 112, 14, 900, _PCIE3, _PCIE3),
    _before_bf16("V100-SXM2-16GB", 15.7, 125, 15.7, 900, _PCIE3, 150),
    _before_bf16("V100-SXM2-32GB", 31.7, 125, 15.7, 900, _PCIE3, 150),
    _before_bf16("T4", 14.5, 65, 8.1, 320, _PCIE3, _PCIE3),
)
"""All known GPUs."""

_UNSAID = {"nvidia", "tesla", "geforce", "graphics", "device", "gpu", "tensor", "core"}
_FORMS = {"hbm3": "sxm", "hbm3e": "sxm", "sxm5": "sxm", "40g": "40gb", "80g": "80gb", "16g": "16gb", "32g": "32gb"}
_DEFAULT_FORM = {"h200": "sxm", "a100": "pcie", "v100": "pcie"}
"""The form that is meant where a name tells none; where both are usual, PCIe with its slower links."""


def find(name: str) -> Device | None:
    """The GPU that `torch.cuda.get_device_name()` or a person calls so; None when it is not known.

    Examples: `NVIDIA A100-PCIE-40GB`, `NVIDIA A100 80GB PCIe`, `NVIDIA H100 80GB HBM3`, `NVIDIA H200`, `Tesla T4`,
    `A100-40G`. A slice of a GPU (MIG) is none of them.
    """
    said = _words(name)
    if "mig" in said:
        return None
    for model, form in _DEFAULT_FORM.items():
        if model in said and not any(word.startswith(("sxm", "pcie", "nvl")) for word in said):
            said = said | {form}
    matching = [device for device in DEVICES if _words(device.name) <= said]
    # NVIDIA H100 NVL and H100 PCIe say their form; the one that says most is meant.
    return max(matching, key=lambda device: len(_words(device.name)), default=None)


def near(name: str) -> list[str]:
    """Known names that look like `name`, the most similar first; all when none does."""
    known = {device.name.lower(): device.name for device in DEVICES}
    found = difflib.get_close_matches(name.lower().replace(" ", "-"), known, n=4, cutoff=0.4)
    return [known[item] for item in found] or [device.name for device in DEVICES]


def _words(name: str) -> frozenset[str]:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return frozenset(_FORMS.get(word, word) for word in words if word and word not in _UNSAID)
