"""Fixtures for all tests: an isolated local Ray cluster, a tiny tokenizer, and the mirror for tests of real data."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A first example pays for imports and a loaded machine for everything: a deadline would test the weather.
settings.register_profile("polysome", deadline=None)
settings.load_profile("polysome")


def pytest_configure(config: pytest.Config) -> None:
    """Tests read the checkout's data set specs, wherever they are started from, and compute on one thread each."""
    os.environ.setdefault("POLYSOME_DATASETS", str(ROOT / "datasets_spec"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `data` need the mirror."""
    if os.environ.get("POLYSOME_MIRROR"):
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="set POLYSOME_MIRROR to a copy of the public data"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small per-base tokenizer with a chat template."""
    from polysome.models.tokenizer import build_per_base_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["Is there a promoter? Yes, there is. No, there is not. The value is 0.43. The class is tRNA."]
    build_per_base_tokenizer(folder, texts, vocabulary_size=320)
    return str(folder)


@pytest.fixture(scope="session")
def model_folder(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with random weights that fits the tiny tokenizer."""
    from served_model import write_llama

    return write_llama(tmp_path_factory.mktemp("served") / "export", tiny_tokenizer, max_position_embeddings=512)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory):
    """A local Ray for all tests of a run: private HOME and temporary folder, two CPUs, ended at the end."""
    from polysome.operations.cluster import connect

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as short:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("POLYSOME_CPUS", "2")
        patch.delenv("RAY_ADDRESS", raising=False)
        with connect(cpus=2) as cluster:
            yield cluster


@pytest.fixture
def isolated_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment for a `polysome` subprocess: own HOME, short temporary folder for Ray, two CPUs, no outer cluster."""
    home = tmp_path / "home"
    home.mkdir()
    dropped = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "POLYSOME_RUNS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"HOME": str(home), "POLYSOME_CPUS": "2", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp", ignore_cleanup_errors=True) as short:
        yield environment | {"RAY_TMPDIR": short}
