"""A stage in this process: one worker, without Ray; what a run that was disturbed is held against."""

from pathlib import Path
from typing import Any

import pytest
import torch

from polysome.data.manifest import read_manifest
from polysome.training import stage
from polysome.training.config import StageConfig
from polysome.training.engine import Place
from polysome.training.health import source_names


def train_here(config: StageConfig, folder: Path, **arguments: Any) -> stage.Outcome:
    """Train the stage with plain data parallelism over one worker, with the batch that its workers would have."""
    manifest = read_manifest(config.data)
    folder.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POLYSOME_CACHE", str(folder / "cache"))
            patch.setattr(stage, "_prepare_process", lambda _: Place(0, 1, torch.device("cpu")))
            return stage.run_stage(
                {
                    "config": config.model_copy(update={"zero": 0, "offload": False}).model_dump(mode="json"),
                    "folder": str(folder),
                    "fingerprint": config.fingerprint(manifest.fingerprint),
                    "sources": source_names(manifest),
                    "numeric": [],
                    "questions": None,
                    "watched": False,
                    **arguments,
                }
            )
    finally:
        torch.set_num_threads(threads)
