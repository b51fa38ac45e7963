"""What a run ran on: versions, commit, user and command, free of host names and addresses."""

import getpass
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import polysome

COMMIT_VARIABLE = "POLYSOME_COMMIT"
USER_VARIABLE = "POLYSOME_USER"
TEAM_VARIABLE = "POLYSOME_TEAM"
_PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "tokenizers", "pyarrow", "numpy")


def checkout() -> Path | None:
    """Root of the checkout that this code runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "platform" / "polysome").is_dir() else None


def versions() -> dict[str, str]:
    """Versions of Python, Polysome and the packages that decide a result; absent packages are left out."""
    found = {"python": platform.python_version(), "polysome": polysome.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Git commit of the checkout, with `+dirty` when tracked files differ; None outside a checkout with a commit.

    A submitted job has no `.git`; there the commit travels in `POLYSOME_COMMIT`.
    """
    declared = os.environ.get(COMMIT_VARIABLE)
    if declared:
        return declared
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+dirty" if changed else head


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None when git is absent or refuses (no commit yet, a checkout of another user)."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def user() -> str:
    """Who runs this: `POLYSOME_USER` (set by `polysome submit`), else the login name."""
    declared = os.environ.get(USER_VARIABLE)
    if declared:
        return declared
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that no user database knows.
        return f"uid-{os.getuid()}"


def team() -> str:
    """Whose run it is: `POLYSOME_TEAM`; empty when that is not set."""
    return os.environ.get(TEAM_VARIABLE, "")


def command() -> str:
    """The command line, the program by its name alone; `python -m polysome.cli` is the same program."""
    program = Path(sys.argv[0])
    name = "polysome" if program.parts[-3:] == ("polysome", "cli", "__main__.py") else program.name
    return shlex.join([name or "python", *sys.argv[1:]])
