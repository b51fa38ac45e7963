"""What data preparation and held resources leave in the meters."""

import sys
from types import SimpleNamespace

import pytest
from recorded_meters import recorded

from polysome.data import meters
from polysome.data.manifest import Shard


def process(mode: int, **assigned: float) -> SimpleNamespace:
    """Ray, as a process of this mode sees it."""
    context = SimpleNamespace(worker=SimpleNamespace(mode=mode), get_assigned_resources=lambda: assigned)
    return SimpleNamespace(WORKER_MODE=1, is_initialized=lambda: True, get_runtime_context=lambda: context)


def usage_in(ray: object) -> meters.Usage:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", ray)
        return meters.Usage("training")


def test_held_resources_count_busy_or_not_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    usage = usage_in(process(1, CPU=4, GPU=0.5, memory=7))
    with recorded() as found:
        for now[0] in (110.0, 110.0, 130.0):
            usage.tell()
    assert found == {
        "polysome_cpu_seconds_total": {("training",): [40.0, 80.0]},
        "polysome_gpu_seconds_total": {("training",): [5.0, 10.0]},
    }


@pytest.mark.parametrize("ray", [None, process(0, CPU=4), SimpleNamespace(is_initialized=lambda: False)])
def test_a_driver_and_a_process_outside_ray_hold_nothing(ray: object) -> None:
    usage = usage_in(ray)
    with recorded() as found:
        usage.tell()
    assert not found


def test_a_shard_is_counted_by_its_data_set() -> None:
    shard = Shard(path="a.parquet", sha256="", rows=2, documents=3, tokens=0, targets=0)
    with recorded() as found:
        meters.count_shard("toy", shard, 1.5)
        meters.count_shard("toy", shard, 0.5)
    assert found["polysome_prepare_documents_total"] == {("toy",): [3, 3]}
    assert found["polysome_prepare_seconds_total"] == {("toy",): [1.5, 0.5]}
    assert "polysome_prepare_tokens_total" not in found
