"""The dashboard and the rules as Grafana and Prometheus take them; whether their metrics exist is asked elsewhere."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from polysome.cli import main
from polysome.config import ConfigurationError
from polysome.operations import dashboards

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)")


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    made = dashboards.dashboard()
    panels = made["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    assert {"Serving", "Training", "Evaluation and data", "Cost", "Cluster"} <= set(titles)
    # Every variable that an expression uses is there, beside Grafana's own.
    known = {variable["name"] for variable in made["templating"]["list"]} | {"__rate_interval", "__range"}
    for row in dashboards.rows():
        for query in (query for panel in row.panels for query in panel.queries):
            assert set(re.findall(r"\$(\w+)", query.expr)) <= known, query.expr


def test_what_is_exported_is_whole_and_touches_nothing_of_rays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rays = tmp_path / "prometheus" / "prometheus.yml"
    rays.parent.mkdir()
    rays.write_text("ray's own")
    assert main(["dashboards", "export", str(tmp_path), "--discovery", "/ray/discovery.json", "--json"]) == 0
    shown, prometheus, rules = (Path(path) for path in json.loads(capsys.readouterr().out)["files"])
    assert rays.read_text() == "ray's own"
    assert json.loads(shown.read_text()) == dashboards.dashboard()
    content = yaml.safe_load(prometheus.read_text())
    assert (prometheus.parent / content["rule_files"][0]) == rules
    assert content["scrape_configs"][0]["file_sd_configs"] == [{"files": ["/ray/discovery.json"]}]
    assert rules.read_text() == dashboards.RULES.read_text()
    assert main(["dashboards", "export", str(tmp_path)]) == 0
    assert f"next: prometheus --config.file={prometheus}" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "prometheus").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot write the dashboards"):
        dashboards.export(tmp_path, service_discovery="unused")


def test_every_alert_says_what_is_wrong_and_how_to_mend_it() -> None:
    alerts = [rule for group in yaml.safe_load(dashboards.RULES.read_text())["groups"] for rule in group["rules"]]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["fix"]


@needs_promtool
def test_prometheus_takes_configuration_and_rules(tmp_path: Path) -> None:
    discovery = tmp_path / "discovery.json"
    discovery.write_text("[]")
    _, prometheus, rules = dashboards.export(tmp_path, service_discovery=str(discovery))
    promtool("check", "config", prometheus)
    count = sum(len(group["rules"]) for group in yaml.safe_load(rules.read_text())["groups"])
    assert f"{count} rules found" in promtool("check", "rules", "--lint-fatal", rules)


# Series of Prometheus, a sample a minute, and the alerts that stand after an hour.
HOUR = {
    "errors": (
        {
            'ray_polysome_requests_total{model="base",code="500"}': "0+3x60",
            'ray_polysome_requests_total{model="base",code="200"}': "0+97x60",
            'ray_polysome_requests_total{model="good",code="500"}': "0+1x60",
            'ray_polysome_requests_total{model="good",code="200"}': "0+999x60",
        },
        {("PolysomeErrors", "base")},
    ),
    "no replica": (
        {
            'ray_serve_deployment_queued_queries{application="a",deployment="ModelPool"}': "3x60",
            'ray_serve_deployment_queued_queries{application="b",deployment="ModelPool"}': "3x60",
            'ray_serve_replica_processing_queries{application="b",deployment="ModelPool",replica="1"}': "0x60",
        },
        {("PolysomeNoReplica", "a")},
    ),
    "slow": (
        {
            f'ray_polysome_ttft_seconds_bucket{{model="{model}",le="{bound}"}}': f"0+{count}x60"
            for model, counts in {"late": (5, 90, 100), "soon": (99, 100, 100)}.items()
            for bound, count in zip(("10.0", "30.0", "+Inf"), counts, strict=True)
        },
        {("PolysomeSlowFirstToken", "late")},
    ),
    "training": (
        {
            'ray_polysome_training_update{run="hangs"}': "0+1x10 10x50",
            'ray_polysome_training_update{run="runs"}': "0+1x60",
            'ray_polysome_training_skipped{run="hangs"}': "0x60",
            'ray_polysome_training_skipped{run="runs"}': "0x40 0+1x20",
            'ray_polysome_training_data_wait_share{run="hangs"}': "0.01x60",
            'ray_polysome_training_data_wait_share{run="runs"}': "0.5x60",
        },
        {
            ("PolysomeTrainingStands", "hangs"),
            ("PolysomeTrainingSkips", "runs"),
            ("PolysomeTrainingWaitsForData", "runs"),
        },
    ),
}


@needs_promtool
@pytest.mark.parametrize("name", HOUR)
def test_an_alert_comes_where_it_should_and_nowhere_else(name: str, tmp_path: Path) -> None:
    series, expected = HOUR[name]
    alerts = [
        rule["alert"] for group in yaml.safe_load(dashboards.RULES.read_text())["groups"] for rule in group["rules"]
    ]
    subject = {"errors": "model", "no replica": "application", "slow": "model", "training": "run"}[name]
    queries = {alert: f'count by ({subject}) (ALERTS{{alertname="{alert}",alertstate="firing"}})' for alert in alerts}
    samples = {
        alert: [{"labels": f'{{{subject}="{who}"}}', "value": 1} for found, who in sorted(expected) if found == alert]
        for alert in alerts
    }
    checks = [{"expr": queries[alert], "eval_time": "60m", "exp_samples": samples[alert]} for alert in alerts]
    shutil.copy(dashboards.RULES, tmp_path / "rules.yaml")
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", tmp_path / "test.yaml")
