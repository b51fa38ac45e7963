"""The runtime environment of a submitted job: this working tree, its variables, and the packages of the lock.

The lock is `constraints.txt`. Packages come from the nodes' image where that was built from the lock; else Ray installs
what differs (decision 0016). Either way the job compares what it finds with the lock before it begins.
"""

import os
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from polysome.config import ConfigurationError
from polysome.operations import provenance
from polysome.operations.cluster import THREAD_PINS
from polysome.operations.submission import Submission
from polysome.storage import MIRROR_VARIABLE, absolute

LOCK = "constraints.txt"
STOP_SECONDS = 300
"""That a job which is stopped has for a last checkpoint, before it is killed."""
EXCLUDED = [
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "**/__pycache__",
    "**/*.egg-info",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".import_linter_cache",
    ".hypothesis",
]
"""What of the checkout stays here (gitignore syntax), beside what .gitignore names."""


def require_checkout() -> Path:
    """The checkout that this code runs from.

    Raises:
        ConfigurationError: it is installed without one.
    """
    root = provenance.checkout()
    if root is None:
        raise ConfigurationError(
            "Polysome is installed without its checkout, which is what a job runs from",
            where="polysome submit",
            fix="run it from a checkout installed with `make install`",
        )
    return root


def runtime_env(root: Path, submission: Submission) -> dict[str, Any]:
    """What Ray makes on every node before the job and its workers start there."""
    variables = {
        **THREAD_PINS,
        # Relative to the job's working folder.
        "PYTHONPATH": "platform",
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        provenance.USER_VARIABLE: submission.user,
        provenance.TEAM_VARIABLE: submission.team,
    }
    commit = provenance.commit()
    if commit:
        variables[provenance.COMMIT_VARIABLE] = commit
    if os.environ.get(MIRROR_VARIABLE):
        variables[MIRROR_VARIABLE] = absolute(os.environ[MIRROR_VARIABLE])
    environment: dict[str, Any] = {"working_dir": str(root), "excludes": EXCLUDED, "env_vars": variables}
    if submission.packages == "lock":
        # Ray's own version is the cluster's; pip passes over what a node has already.
        packages = [f"{name}=={version}" for name, version in locked(root).items() if name != "ray"]
        environment["pip"] = {"packages": packages, "pip_check": False}
    return environment


def locked(root: Path) -> dict[str, str]:
    """The lock's versions by normalised name."""
    lines = (root / LOCK).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in pins}


def require_locked(root: Path) -> None:
    """Compare the packages that the code imports with the lock; a build's suffix (`+cu128`) is free.

    Raises:
        ConfigurationError: one is absent or has another version.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = sorted({canonicalize_name(Requirement(text).name) for text in project["dependencies"]})
    wanted = locked(root)
    found = {name: _installed(name) for name in names}
    differing = [
        f"{name} {version or 'absent'} (lock: {wanted[name]})"
        for name, version in found.items()
        if version is None or Version(version).public != Version(wanted[name]).public
    ]
    if differing:
        raise ConfigurationError(
            f"this node's packages are not the lock's: {', '.join(differing)}",
            where=LOCK,
            fix="submit with --packages lock, which installs what differs; Ray itself comes with the image",
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
