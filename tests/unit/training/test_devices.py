"""GPUs are recognised by the names that CUDA gives them."""

import pytest

from polysome.training import devices


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIE-80GB"),
        ("A100-40G", "A100-PCIE-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIE"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
    ],
)
def test_names_of_cuda(said: str, meant: str) -> None:
    found = devices.find(said)
    assert found is not None
    assert found.name == meant


def test_every_device_is_found_by_its_own_name() -> None:
    assert [devices.find(device.name) for device in devices.DEVICES] == list(devices.DEVICES)


@pytest.mark.parametrize("said", ["", "A100", "NVIDIA A100-PCIE-40GB MIG 1g.5gb", "Radeon", "NVIDIA A1000 Laptop GPU"])
def test_others_are_not_taken_for_a_known_one(said: str) -> None:
    assert devices.find(said) is None


def test_near_names() -> None:
    assert devices.near("A100 40")[0].startswith("A100")
