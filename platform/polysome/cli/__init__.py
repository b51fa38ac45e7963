"""The `polysome` command: arguments in; tables for people or JSON for programs out; exit codes 0, 1, 2, 3."""

from polysome.cli.app import main

__all__ = ["main"]
