"""The house itself: what would break every command, or make a clean clone fail."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "platform").with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "platform" / "polysome").rglob("*.py")
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_platform_still_means_the_standard_library():
    assert not (ROOT / "platform" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "Linux", done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_one_sentence_and_can_be_imported(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()


def test_importing_changes_nothing():
    """No module of ours starts Ray or threads, sets the environment, or configures logging when it is imported."""
    program = (
        "import importlib, logging, os, threading\n"
        # Libraries set variables of their own when first imported; that is theirs.
        "import numpy, ray, torch, transformers, sklearn, pyarrow, fastapi\n"
        "import ray.serve, ray.data, ray.train, ray.job_submission\n"
        "before = dict(os.environ), list(logging.getLogger().handlers), threading.active_count()\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        "after = dict(os.environ), list(logging.getLogger().handlers), threading.active_count()\n"
        "assert not ray.is_initialized()\n"
        "assert before == after, (set(after[0].items()) ^ set(before[0].items()), after[1:], before[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cluster_file_is_valid_and_its_head_is_one_of_its_node_types():
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    types = content["available_node_types"]
    assert content["head_node_type"] in types
    assert any(node["resources"].get("GPU") for node in types.values())
    assert any(not node["resources"].get("GPU") and node.get("max_workers") for node in types.values())
    for commands in (content["head_start_ray_commands"], content["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][-1]
    ray = next(line for line in pins().items() if line[0] == "ray")
    assert f"ray:{ray[1]}-" in content["docker"]["image"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(\.post\d+)?", line) for line in wanted), wanted
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in wanted)}


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    found = pins()
    for requirement in map(Requirement, requirements):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} does not allow {version}"


def test_what_the_library_imports_is_declared():
    """Third-party packages imported anywhere in the library stand in pyproject's dependencies."""
    modules_of = {
        "Bio": "biopython",
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "starlette": "fastapi",
        "cpuinfo": "deepspeed",
        "grpc": "ray",
        "mlflow": "mlflow-skinny",
    }
    extras = [text for extra, texts in PROJECT["optional-dependencies"].items() if extra != "dev" for text in texts]
    declared = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *extras]}
    imported: dict[str, str] = {}
    for path in (ROOT / "platform" / "polysome").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0]: str(path) for name in names}
    ours = {name for name in imported if name not in sys.stdlib_module_names and name != "polysome"}
    missing = {name: imported[name] for name in ours if canonicalize_name(modules_of.get(name, name)) not in declared}
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    from polysome.operations.recipes import load_recipe

    assert load_recipe(path).name


def test_the_serve_config_file_names_only_fields_that_serve_knows():
    """Serve itself accepts a misspelt field in silence."""
    from ray.serve.schema import ServeDeploySchema

    from polysome.serving.config import ServeConfig

    content = yaml.safe_load((ROOT / "serve" / "demo.yaml").read_text())
    schema = ServeDeploySchema.model_validate(content)
    assert not set(content) - set(ServeDeploySchema.model_fields)
    assert not set(content["http_options"]) - set(type(schema.http_options).model_fields)
    for application in content["applications"]:
        assert not set(application) - set(type(schema.applications[0]).model_fields)
        config = ServeConfig.model_validate(application["args"])
        assert content["http_options"]["request_timeout_s"] > config.request_timeout_seconds
    stages = yaml.safe_load((ROOT / "jobs" / "recipes" / "demo.yaml").read_text())["stages"]
    # What `polysome run jobs/recipes/demo.yaml --run-id demo` writes last.
    assert config.model == f"runs/demo/{list(stages)[-1]}/export"
