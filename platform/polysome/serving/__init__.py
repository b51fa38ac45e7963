"""Serving: a stateless gateway in front of an autoscaled pool of model replicas, on Ray Serve."""
