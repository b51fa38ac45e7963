"""Bounds of the serving recipe."""

import pytest
from pydantic import ValidationError

from polysome.serving.config import ServeConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
        {"limits": {"default_max_tokens": 100, "max_tokens": 10}},
        {"name": "../x"},
        {"port": 70000},
        {"limits": {"records": 65}, "max_queued_requests": 64},
    ],
)
def test_values_that_cannot_be_served_are_refused(wrong):
    with pytest.raises(ValidationError):
        ServeConfig.model_validate({"model": "m", **wrong})


def test_the_url_is_one_that_a_client_here_can_open():
    assert ServeConfig(model="m", host="0.0.0.0").url == "http://127.0.0.1:8000"
    assert ServeConfig(model="m", host="::1", port=81).url == "http://[::1]:81"
