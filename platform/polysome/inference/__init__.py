"""Inference: the one door to a model, used by evaluation and by serving alike."""
