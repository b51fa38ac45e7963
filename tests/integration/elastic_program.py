"""Trains a stage on a cluster of four nodes, of which one is killed on the way; run as a program by a test."""

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from polysome.training.config import StageConfig
from polysome.training.launch import train_stage

NODE = {"num_cpus": 2, "num_gpus": 2}


def main(config: str, folder: str, update: str) -> None:
    """Kill a node when `update` is logged; print how many workers each attempt had, and seconds."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False)
    metrics = Path(folder) / "metrics.jsonl"
    told = {}

    def kill() -> None:
        while not metrics.exists() or f'"update": {update},' not in metrics.read_text():
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        told["killed_after"] = round(time.monotonic() - began, 1)

    threading.Thread(target=kill, daemon=True).start()
    began = time.monotonic()
    result = train_stage(StageConfig.model_validate_json(Path(config).read_text()), folder)
    print(json.dumps({**told, "ended_after": round(time.monotonic() - began, 1), "export": result.export}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
