"""A Ray in which everything is measured: each expression of the dashboard and the rules finds its metrics there."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from polysome.operations import dashboards

pytestmark = pytest.mark.ray

PROGRAM = Path(__file__).with_name("metrics_program.py")
PROMETHEUS = shutil.which("prometheus")
PATIENCE = 90.0
SELECTOR = re.compile(r"\bray_\w+(?:\{[^}]*\})?")
# Grafana's variables, and an interval that suits a test's scraping.
VALUES = {"model": ".*", "run": ".*", "cpu_hour": "0.05", "gpu_hour": "3", "__rate_interval": "15s", "__range": "1h"}


def expressions() -> dict[str, str]:
    """Title or alert -> expression, variables replaced."""
    found = {}
    for row in dashboards.rows():
        for panel in row.panels:
            for query in panel.queries:
                found[f"{panel.title}: {query.legend}"] = re.sub(r"\$(\w+)", lambda name: VALUES[name[1]], query.expr)
    for group in yaml.safe_load(dashboards.RULES.read_text())["groups"]:
        found |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return found


def of_gpus() -> set[str]:
    """What Ray tells of nodes with GPUs alone: declared in Ray's reporter, and not to be had here."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    return {f"ray_{name}" for name in METRICS_GAUGES if name.startswith(("node_gpu", "node_gram"))}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


def wait_until_empty(missing: Callable[[], object]) -> None:
    """Fail with what is still missing when patience ends."""
    deadline = time.monotonic() + PATIENCE
    while (left := missing()) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left, left


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the metrics of a Ray that runs `metrics_program`."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment |= {
            "HOME": str(home),
            "RAY_TMPDIR": short,
            "RAY_AUTH_MODE": "disabled",
            # 10 seconds by default.
            "RAY_metrics_report_interval_ms": "500",
            "PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2] / "platform"), os.environ.get("PYTHONPATH", "")]),
        }
        log = home / "program.log"
        with log.open("w") as output:
            program = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(free_port())],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            address = next((line for line in program.stdout if re.fullmatch(r"[\d.]+:\d+\n", line)), "").strip()
            assert address, log.read_text()[-3000:]
            yield address
        finally:
            program.stdin.close()
            try:
                program.wait(timeout=60)
            except subprocess.TimeoutExpired:
                program.kill()


@pytest.mark.timeout(300)
def test_every_expressions_metrics_are_exported(exporter: str) -> None:
    names = {text.split("{")[0] for expression in expressions().values() for text in SELECTOR.findall(expression)}
    assert {"ray_polysome_requests_total", "ray_polysome_gpu_seconds_total"} <= names

    def missing() -> set[str]:
        families = text_string_to_metric_families(read(f"http://{exporter}/metrics"))
        return names - {sample.name for family in families for sample in family.samples} - of_gpus()

    wait_until_empty(missing)
    # And the other way round: nothing that serving measures is left without a place on the dashboard.
    families = text_string_to_metric_families(read(f"http://{exporter}/metrics"))
    told = {family.name for family in families if family.name.startswith("ray_polysome_")}
    shown = {re.sub(r"_(total|bucket)$", "", name) for name in names}
    assert {name for name in told - shown if "_training_" not in name and "_prepare_" not in name} == set()


@pytest.mark.timeout(300)
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (apt-get install prometheus)")
def test_prometheus_finds_data_for_every_expression(exporter: str, tmp_path: Path) -> None:
    discovery = tmp_path / "discovery.json"
    discovery.write_text(json.dumps([{"targets": [exporter]}]))
    _, config, _ = dashboards.export(tmp_path, service_discovery=str(discovery))
    content = yaml.safe_load(config.read_text())
    content["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config.write_text(yaml.safe_dump(content))
    port = free_port()
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("w") as output:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output)
    try:

        def ask(expression: str) -> list[object]:
            url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
            return json.loads(read(url))["data"]["result"]

        # A panel shows what its expression gives; an alert is mostly silent, so there every series that it looks at.
        asked = {}
        for name, expression in expressions().items():
            selectors = SELECTOR.findall(expression)
            if not any(selector.split("{")[0] in of_gpus() for selector in selectors):
                alert = name.startswith("Polysome")
                asked |= {f"{name}: {text}": text for text in selectors} if alert else {name: expression}

        def missing() -> list[str]:
            try:
                return [name for name, expression in asked.items() if not ask(expression)]
            except OSError as error:
                assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
                return [str(error)]

        wait_until_empty(missing)

        def amiss() -> list[str]:
            groups = json.loads(read(f"http://127.0.0.1:{port}/api/v1/rules"))["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            stirred = {rule["name"] for rule in rules if rule["state"] != "inactive"}
            # The program answers every second request with an error.
            return [rule["name"] for rule in rules if rule["health"] != "ok"] + sorted({"PolysomeErrors"} - stirred)

        wait_until_empty(amiss)
    finally:
        server.terminate()
        server.wait(timeout=30)
