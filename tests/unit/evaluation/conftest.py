"""Fixtures for the tests of evaluation."""

from tiny_tasks import declare

__all__ = ["declare"]
