"""Polysome: a Ray platform for data, training, evaluation and serving of multi-omics language models."""

__version__ = "0.3.0"
