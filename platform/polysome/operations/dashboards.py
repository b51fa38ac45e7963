"""The team's dashboard for Grafana and the alert rules for Prometheus, made of the two files in `dashboard/`."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from polysome.config import Config, ConfigurationError
from polysome.storage import write_json

_FILES = Path(__file__).with_name("dashboard")
_ACROSS, _HEIGHT = 3, 8
_WIDTH = 24 // _ACROSS
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

RULES = _FILES / "rules.yaml"
"""Prometheus' rule file."""


class Query(Config):
    """One line, or one for each value of the labels in its legend."""

    legend: str
    expr: str


class Panel(Config):
    """One graph."""

    title: str
    unit: Literal["short", "s", "percent", "percentunit", "reqps", "tokens/s", "rows/s", "currency"]
    queries: list[Query]
    help: str = ""


class Row(Config):
    """Graphs under one heading."""

    title: str
    panels: list[Panel]


def rows() -> list[Row]:
    """What the dashboard shows."""
    return TypeAdapter(list[Row]).validate_python(yaml.safe_load((_FILES / "panels.yaml").read_text(encoding="utf-8")))


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model of the dashboard (schema version 39, Grafana 10 and newer)."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows():
        panels.append(_placed(panels, 0, top, 24, 1, {"type": "row", "title": row.title, "panels": []}))
        top += 1
        for index, panel in enumerate(row.panels):
            left = index % _ACROSS * _WIDTH
            panels.append(_placed(panels, left, top + index // _ACROSS * _HEIGHT, _WIDTH, _HEIGHT, _graph(panel)))
        top += -(-len(row.panels) // _ACROSS) * _HEIGHT
    return {
        "uid": "polysome",
        "title": "Polysome",
        "tags": ["polysome"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": panels,
    }


def export(folder: str | Path, *, service_discovery: str) -> list[Path]:
    """Write `grafana/dashboards/polysome.json`, `prometheus/polysome-rules.yml`, and `prometheus/polysome.yml`, which
    scrapes the cluster and reads the rules. These are the places of Ray's own files in `<session>/metrics`; none of
    those is touched.

    Args:
        folder: made where it is missing.
        service_discovery: file in which Ray's head lists the nodes' metrics ports.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    root = Path(folder)
    rules, prometheus = root / "prometheus" / "polysome-rules.yml", root / "prometheus" / "polysome.yml"
    shown = root / "grafana" / "dashboards" / "polysome.json"
    scraping = {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": [rules.name],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [service_discovery]}]}],
    }
    try:
        for path in (rules, shown):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(str(shown), dashboard())
        rules.write_text(RULES.read_text(encoding="utf-8"), encoding="utf-8")
        prometheus.write_text(yaml.safe_dump(scraping, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the dashboards: {error}", where=str(root), fix="name a folder that can be written"
        ) from error
    return [shown, prometheus, rules]


def _graph(panel: Panel) -> dict[str, Any]:
    unit = {"tokens/s": "suffix: tokens/s", "rows/s": "suffix: rows/s", "currency": "short"}.get(panel.unit, panel.unit)
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"fillOpacity": 5}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _placed(
    before: list[dict[str, Any]], left: int, top: int, width: int, height: int, panel: dict[str, Any]
) -> dict[str, Any]:
    return {"id": len(before) + 1, "gridPos": {"x": left, "y": top, "w": width, "h": height}, **panel}


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, label: str, metric: str) -> dict[str, Any]:
        query = f"label_values({metric}, {name})"
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            # Also what has no such label, such as a request that named no model.
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }

    def price(name: str, label: str, value: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "textbox",
            "query": value,
            "current": {"text": value, "value": value},
        }

    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}},
        labels("model", "Model", "ray_polysome_requests_total"),
        labels("run", "Run", "ray_polysome_training_update"),
        price("cpu_hour", "Cost of a CPU-hour", "0.05"),
        price("gpu_hour", "Cost of a GPU-hour", "3"),
    ]
