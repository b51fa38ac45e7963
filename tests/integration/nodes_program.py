"""Prepares a folder on a cluster of three nodes, of which one is killed on the way; run as a program by a test."""

import json
import sys

import ray
import yaml
from ray.cluster_utils import Cluster

from polysome.data.config import PrepareConfig
from polysome.data.prepare import prepare


def main(recipe: str, folder: str) -> None:
    """Kill a node after the third shard; print the fingerprint of what came out."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    killed = []

    def kill(progress):
        if progress.shards >= 3 and not killed:
            killed.append(progress.shards)
            cluster.remove_node(nodes[0], allow_graceful=False)

    with open(recipe) as handle:
        config = PrepareConfig(**yaml.safe_load(handle))
    manifest = prepare(config, folder, report=kill)
    print(json.dumps({"fingerprint": manifest.fingerprint, "killed_after": killed}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
