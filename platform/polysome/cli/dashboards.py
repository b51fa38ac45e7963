"""`polysome dashboards`: what the team's Grafana and Prometheus read."""

from typing import Annotated

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json

app = typer.Typer(help="Grafana dashboard and Prometheus rules of a cluster.", no_args_is_help=True)


@app.command()
def export(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="E.g. /tmp/ray/session_latest/metrics, beside Ray's own.")
    ],
    discovery: Annotated[
        str, typer.Option(help="Where Ray's head lists what to scrape.")
    ] = "/tmp/ray/prom_metrics_service_discovery.json",
    as_json: JsonOption = False,
) -> None:
    """Write the dashboard, the alert rules, and a configuration of Prometheus that reads them."""
    from polysome.operations import dashboards

    written = [str(path) for path in dashboards.export(folder, service_discovery=discovery)]
    if as_json:
        print_json({"files": written})
        return
    for path in written:
        console().print(path, markup=False, soft_wrap=True)
    next_step(f"prometheus --config.file={written[1]}")
