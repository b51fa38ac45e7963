"""Training: one stage, from a prepared folder and a model to an exported model, on Ray Train and DeepSpeed."""
