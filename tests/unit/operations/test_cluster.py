"""The environment of a local Ray, and refusals before one is started."""

import sys

import pytest

from polysome.config import ConfigurationError, ResourceError
from polysome.operations import cluster
from polysome.operations.machine import GIB, Machine, inspect


def machine(**sizes: int) -> Machine:
    return Machine(
        **{"cpus": 2, "memory": 8, "memory_available": 8, "shared_memory_available": 1} | sizes, disk_available=1
    )


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "POLYSOME_CPUS"):
        monkeypatch.delenv(name, raising=False)
    # Another test may hold a Ray; these are about starting one.
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def test_a_local_ray_has_its_own_token_and_one_thread_per_worker(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    environment = cluster.local_environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_AUTH_TOKEN"] != cluster.local_environment()["RAY_AUTH_TOKEN"]
    assert environment["OMP_NUM_THREADS"] == environment["RAYON_NUM_THREADS"] == "1"
    assert cluster.SERVING.items() <= environment.items()
    assert environment["PATH"].startswith(f"{sys.prefix}/bin:")


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    environment = cluster.local_environment()
    assert (environment["RAY_AUTH_MODE"], environment["OMP_NUM_THREADS"]) == ("disabled", "4")
    assert "RAY_AUTH_TOKEN" not in environment


def test_too_little_memory_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr(cluster, "inspect", lambda _: machine(memory_available=GIB))
    with pytest.raises(ResourceError, match=r"1\.0 GiB"), cluster.connect():
        pass


def test_more_cpus_than_there_are_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(cluster, "inspect", lambda _: machine(memory_available=8 * GIB))
    with pytest.raises(ResourceError) as caught, cluster.connect(cpus=3):
        pass
    assert "POLYSOME_CPUS=3" in caught.value.fix


@pytest.mark.parametrize("count", ["0", "two", "-1"])
def test_a_cpu_count_that_is_none_is_refused(monkeypatch, count):
    monkeypatch.setenv("POLYSOME_CPUS", count)
    with pytest.raises(ConfigurationError), cluster.connect():
        pass


def test_the_jobs_api_is_no_address_to_join(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigurationError) as caught, cluster.connect():
        pass
    assert "polysome submit" in caught.value.fix


def test_the_machine_is_measured():
    found = inspect()
    assert found.cpus >= 1
    assert 0 < found.memory_available <= found.memory
