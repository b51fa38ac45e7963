"""The images: what docker/Dockerfile installs is locked, hashed and on PyPI, and what it copies is there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from polysome.operations.cluster import SERVING, THREAD_PINS

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
LOCKS = {path.stem: path for path in sorted((ROOT / "locks").glob("*.txt"))}
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
CONSTRAINTS = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in PINS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (version, hashes) of a lock, in which nothing else may stand."""
    text = LOCKS[name].read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        matched = re.fullmatch(r"([a-z0-9.-]+)==([0-9][0-9a-z.]*)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert matched, f"{name}: {line[:120]}"
        found[matched[1]] = (matched[2], matched[3].split())
    return found


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_every_variant_has_its_lock() -> None:
    stages = {argument.split()[-1] for name, argument in instructions() if name == "FROM"}
    variants = {stage.removeprefix("packages-") for stage in stages if stage.startswith("packages-")}
    assert variants == {"cpu", "cuda", "vllm"}
    assert variants | {"build"} == set(LOCKS)


@pytest.mark.parametrize("name", ["build", "cpu", "cuda"])
def test_a_lock_has_the_versions_of_the_constraints(name: str) -> None:
    differing = {
        package: version
        for package, (version, _) in locked(name).items()
        if CONSTRAINTS.get(package, version) != version
    }
    assert not differing


@pytest.mark.parametrize("name", ["cpu", "cuda", "vllm"])
def test_a_lock_has_all_that_the_library_needs(name: str) -> None:
    extra = PROJECT["optional-dependencies"].get("vllm", []) if name == "vllm" else []
    found = locked(name)
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extra]):
        package = canonicalize_name(requirement.name)
        if (name, package) == ("cpu", "torch"):
            continue
        assert requirement.specifier.contains(found[package][0]), f"{requirement}: {found[package][0]}"
    assert ("vllm" in found) == (name == "vllm")
    # The CPU image must not carry gigabytes of CUDA, the others must have it.
    assert any(package.startswith("nvidia-") for package in found) == (name != "cpu")


def test_torch_of_the_cpu_image_is_the_pinned_one() -> None:
    assert "torch" not in locked("cpu")
    assert ("ARG", f"TORCH={CONSTRAINTS['torch']}") in instructions()


def test_the_dockerfile_installs_only_what_is_locked() -> None:
    steps = [step.strip() for name, argument in instructions() if name == "RUN" for step in argument.split("&&")]
    installs = [step for step in steps if step.startswith("pip install")]
    assert len(installs) == 6
    for step in installs:
        assert "--no-deps" in step
        local = step.endswith("--editable /opt/polysome")
        assert local or "--require-hashes" in step or step.endswith("torch==${TORCH}"), step
        assert "--no-build-isolation" in step or "/tmp/build.txt" in step or "torch==" in step, step
    assert not any(word in step for step in steps for word in ("curl", "| sh", "| bash", "sudo"))


def test_workers_in_an_image_have_the_variables_of_a_local_ray() -> None:
    stated = " ".join(argument for name, argument in instructions() if name == "ENV").split()
    assert {f"{name}={value}" for name, value in (THREAD_PINS | SERVING).items()} <= set(stated)


def test_the_dockerfile_is_what_it_should_be() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "CMD"}
    bases = {argument for name, argument in found if name == "ARG" and argument.startswith("BASE=")}
    assert len(bases) == 1
    assert re.fullmatch(r"BASE=python:3\.11(-[a-z]+)+", bases.pop()), "the Python that the locks are for"
    stages = set()
    for name, argument in found:
        if name == "FROM":
            source, _, stage = argument.split()
            # A stage is built on the base or on one before it.
            assert source == "${BASE}" or source in stages or source == "packages-${VARIANT}"
            stages.add(stage)
        if name == "COPY":
            sources = [word for word in argument.split()[:-1] if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources)
    # It ends as a user without privileges, whom KubeRay's runAsUser names too.
    assert [argument for name, argument in found if name == "USER"] == ["1000"]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    assert not {"platform", "jobs", "serve", "datasets_spec", "locks", "constraints.txt"} & set(ignored)
