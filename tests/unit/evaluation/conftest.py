"""Fixtures for the tests of evaluation."""

from asked import in_process
from tiny_tasks import declare

__all__ = ["declare", "in_process"]
