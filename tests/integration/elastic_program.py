"""Trains a stage on a cluster of four nodes, of which one is killed on the way; run as a program by a test."""

import json
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from polysome.training.config import StageConfig
from polysome.training.launch import train_stage

NODE = {"num_cpus": 2, "num_gpus": 2}
METERS = {"training_loss", "gpu_seconds_total"}


def main(config: str, folder: str, update: str) -> None:
    """Kill a node when `update` is logged; print when that was and when it ended, in seconds, where the export lies,
    and whether the training's loss and the GPUs that it holds were seen where Prometheus would read them."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False)
    metrics = Path(folder) / "metrics.jsonl"
    told = {"metered": False}

    def kill() -> None:
        while not metrics.exists() or f'"update": {update},' not in metrics.read_text():
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        told["killed_after"] = round(time.monotonic() - began, 1)

    def look() -> None:
        ports = [node["MetricsExportPort"] for node in ray.nodes()]
        seen: set[str] = set()
        while not told["metered"]:
            for port in ports:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                    text = reply.read().decode()
                    seen |= {name for name in METERS if f"ray_polysome_{name}" in text}
            told["metered"] = seen == METERS
            time.sleep(0.5)

    for watch in (kill, look):
        threading.Thread(target=watch, daemon=True).start()
    began = time.monotonic()
    result = train_stage(StageConfig.model_validate_json(Path(config).read_text()), folder)
    print(json.dumps({**told, "ended_after": round(time.monotonic() - began, 1), "export": result.export}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
