"""cluster.yaml and serve/kuberay/, checked without a cloud: fields, tokens, spot with fallback, what they start."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from polysome.config import validate
from polysome.operations.cluster import SERVING, THREAD_PINS
from polysome.serving.config import ServeConfig

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "serve" / "kuberay"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay_schema.yaml").read_text())
CUSTOM = ["raycluster", "rayjob", "rayservice"]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())


def cluster_of(content: dict[str, Any]) -> dict[str, Any]:
    spec = content["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(content)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def launch(demand: dict[str, float], count: int, refused: dict[str, float], *, reverse: bool) -> dict[str, int]:
    """How many nodes of which kind Ray's autoscaler starts for `count` times `demand`; kinds in the order of their
    names or the reverse, which decides between equals."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    content["available_node_types"] = dict(sorted(content["available_node_types"].items(), reverse=reverse))
    config = AutoscalingConfig(content, skip_content_hash=True)
    asked = ResourceRequestByCount(request=ResourceRequestUtil.make(demand), count=count)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        disable_launch_config_check=True,
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[asked],
        recoverable_resource_availabilities=refused,
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    assert not reply.infeasible_resource_requests
    return {item.instance_type: item.count for item in reply.to_launch}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["gpu", "data"])
def test_spot_comes_first_and_what_it_cannot_give_comes_on_demand(kind: str, reverse: bool) -> None:
    demand, per_node = ({"GPU": 1}, 8) if kind == "gpu" else ({"CPU": 1}, 16)
    assert launch(demand, per_node, refused={}, reverse=reverse) == {f"{kind}_spot": 1}
    assert launch(demand, per_node, refused={f"{kind}_spot": 0.0}, reverse=reverse) == {kind: 1}


def test_nothing_is_kept_that_has_no_work() -> None:
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    workers = {name: node for name, node in types.items() if name != "head"}
    assert all(node["min_workers"] == 0 and 60 <= node["idle_timeout_s"] <= 1800 for node in workers.values())
    spot = {name for name, node in workers.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {name for name in workers if name.endswith("_spot")}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_workers_on_a_node_have_the_variables_of_a_local_ray(kind: str) -> None:
    start = yaml.safe_load((ROOT / "cluster.yaml").read_text())[f"{kind}_start_ray_commands"][-1].split()
    assert {f"{name}={value}" for name, value in (THREAD_PINS | SERVING).items()} <= set(start[: start.index("ray")])
    # Where `import_path: serve.app:application` is found.
    assert "PYTHONPATH=/home/ray/polysome" in start


def test_the_nodes_install_what_is_locked() -> None:
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 2
    assert "--require-hashes -r /home/ray/polysome/locks/cuda.txt" in installs[0]
    assert all("--no-deps" in command for command in installs)


@pytest.mark.parametrize("name", CUSTOM)
def test_a_manifest_has_the_fields_of_its_kind(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest(name))


@pytest.mark.parametrize("change", [{"authOption": {}}, {"autoscalerOptions": {"version": 2}}, {"headGroupSpec": {}}])
def test_the_schema_refuses_what_kuberay_would_not_understand(change: dict[str, Any]) -> None:
    content = manifest("raycluster")
    content["spec"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(content)


@pytest.mark.parametrize("name", CUSTOM)
def test_a_cluster_asks_for_a_token_grows_and_runs_unprivileged(name: str) -> None:
    cluster = cluster_of(manifest(name))
    assert cluster["authOptions"]["mode"] == "token"
    # KubeRay refuses a token without the version, and other idle time-outs than the cluster's without autoscaler v2.
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert f"ray=={cluster['rayVersion']}" == pinned
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(
        group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in cluster["workerGroupSpecs"]
    )
    for pod in pods_of(manifest(name)):
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["image"] in {f"your-registry/polysome:{variant}" for variant in ("cpu", "cuda", "vllm")}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        for container in pod["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests == limits, "Ray takes the limits for what there is"
            assert ("nvidia.com/gpu" in limits) <= container["image"].endswith((":cuda", ":vllm"))


def test_the_job_runs_a_recipe_of_the_image() -> None:
    words = manifest("rayjob")["spec"]["entrypoint"].replace("'", "").split()
    recipe = words[words.index("run") + 1]
    assert (ROOT / recipe).is_file()
    assert words[words.index("--run-id") + 1] == manifest("rayjob")["metadata"]["name"]


def test_the_service_is_one_that_serve_and_the_gateway_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    known = ServeDeploySchema.model_validate(content)
    # Serve takes keys that it does not know without a word; what it read must be what is written.
    written = known.model_dump(mode="json", exclude_unset=True)
    assert written.keys() == content.keys()
    assert written["http_options"].keys() == content["http_options"].keys()
    [application] = content["applications"]
    assert written["applications"][0].keys() == application.keys()
    assert application["import_path"] == "serve.app:application"
    assert (ROOT / "serve" / "app.py").is_file()
    config = validate(ServeConfig, application["args"], where="serveConfigV2")
    assert config.host == content["http_options"]["host"]
    assert config.port == content["http_options"]["port"]
    assert config.request_timeout_seconds < content["http_options"]["request_timeout_s"]
    assert config.gateway_replicas >= 2
    # What others reach needs keys, and every pod that may hold a gateway has them.
    assert config.keys is not None
    for pod in pods_of(manifest("rayservice")):
        assert any(mount["mountPath"] == "/keys" for mount in pod["containers"][0]["volumeMounts"])


def test_prometheus_finds_the_pods() -> None:
    content = manifest("podmonitor")
    assert content["kind"] == "PodMonitor"
    assert content["spec"]["selector"]["matchExpressions"] == [{"key": "ray.io/cluster", "operator": "Exists"}]
    # The name that KubeRay gives the metrics port of its pods.
    assert [endpoint["port"] for endpoint in content["spec"]["podMetricsEndpoints"]] == ["metrics"]
