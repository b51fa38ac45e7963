"""`polysome submit`, `status`, `logs`, `stop`, `resume`, `runs`: work on a cluster, and what all runs came to."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError
from polysome.operations.jobs_client import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from polysome.operations.runs import RunRecord
    from polysome.operations.submit import ClusterJobs
    from polysome.serving.jobs_api import JobStatus

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file; see jobs/recipes/.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. seed=7 optimizer.clip=0.3")
]
RunsOption = Annotated[
    str, typer.Option("--runs", envvar="POLYSOME_RUNS", help="Folder or URL (any fsspec) that holds the runs.")
]
RunIdOption = Annotated[
    str | None, typer.Option("--run-id", help="Take up the run of this id, or give this id to a new one.")
]
AddressOption = Annotated[str, typer.Option("--address", envvar="POLYSOME_ADDRESS", help="The cluster's Jobs API.")]
SubmittedArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a submitted run.")]
SubmittedRunsOption = Annotated[
    str | None,
    typer.Option("--runs", help="See only runs in this folder, also those whose jobs the cluster has forgotten."),
]
FollowOption = Annotated[bool, typer.Option("--follow/--no-follow", help="Print the job's log until it ends.")]
COLOURS = {
    "finished": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "stopped": "yellow",
    "interrupted": "yellow",
}


def submit(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    address: AddressOption = DEFAULT_ADDRESS,
    runs: Annotated[
        str,
        typer.Option(
            "--runs",
            help="Required. Where the job writes: a URL, or an absolute path that every node of the cluster sees.",
        ),
    ] = "",
    run_id: RunIdOption = None,
    team: Annotated[
        str | None, typer.Option("--team", envvar="POLYSOME_TEAM", help="Whose job it is, for its turn and its cost.")
    ] = None,
    priority: Annotated[str, typer.Option("--priority", help="low, normal or high: whose turn is first.")] = "normal",
    packages: Annotated[
        str,
        typer.Option(
            "--packages", help="image: those of the nodes, if they are constraints.txt's; lock: install what differs."
        ),
    ] = "image",
    follow: FollowOption = True,
    as_json: JsonOption = False,
) -> None:
    """Send a recipe and this checkout to a Ray cluster, and follow the job's log.

    Whoever deployed the cluster (cluster.yaml, `ray up`) tells its address, its token (RAY_AUTH_TOKEN_PATH) and where
    runs go; `ray dashboard cluster.yaml` forwards the address to this machine.
    """
    from polysome.operations.submission import Packages, Priority
    from polysome.operations.submit import ClusterJobs, describe

    submission = describe(
        recipe,
        overrides or [],
        runs_root=runs,
        run_id=run_id,
        team=team,
        priority=_one_of("--priority", priority, Priority),
        packages=_one_of("--packages", packages, Packages),
    )
    jobs = ClusterJobs(address, runs_root=runs)
    _tell(jobs, jobs.submit(submission), runs, follow=follow, as_json=as_json)


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only this one.")] = None,
    address: AddressOption = DEFAULT_ADDRESS,
    runs: SubmittedRunsOption = None,
    team: Annotated[str | None, typer.Option("--team", help="Only this team's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how submitted jobs stand, newest first."""
    from polysome.operations.submit import ClusterJobs

    jobs = ClusterJobs(address, runs_root=runs)
    found = jobs.list(team=team) if run is None else [jobs.status(run)]
    if as_json:
        print_json([vars(item) for item in found] if run is None else vars(found[0]))
        return
    if not found:
        console().print(f"no submitted jobs at {address}", markup=False)
        next_step("polysome submit RECIPE --runs URL")
        return
    table = Table("run", "recipe", "status", "", "submitted (UTC)", "team", "user", "", box=None, pad_edge=False)
    for item in found:
        table.add_row(
            escape(item.id),
            escape(item.recipe),
            f"[{COLOURS[item.status]}]{item.status}[/]",
            "" if item.progress is None else f"{item.progress:.0%}",
            item.submitted[:19].replace("T", " "),
            escape(item.team),
            escape(item.user),
            escape(item.message.partition("\n")[0]),
        )
    console().print(table)
    ended = found[0].status in ("failed", "stopped", "interrupted")
    next_step(f"polysome {'resume' if ended else 'logs'} {shlex.quote(found[0].id)}")


def logs(
    run: SubmittedArgument,
    address: AddressOption = DEFAULT_ADDRESS,
    runs: SubmittedRunsOption = None,
    tail: Annotated[int | None, typer.Option("--tail", min=1, help="Only the last lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a submitted job has written."""
    from polysome.operations.submit import ClusterJobs

    if follow and (tail is not None or as_json):
        raise ConfigurationError(
            "--follow prints the whole log as it comes", where="command line", fix="leave out --tail and --json"
        )
    jobs = ClusterJobs(address, runs_root=runs)
    if follow:
        code = jobs.follow(run, _show)
        if code:
            raise typer.Exit(code)
        return
    text = jobs.logs(run, tail=tail)
    if as_json:
        print_json({"id": run, "logs": text})
    else:
        sys.stdout.write(text)


def stop(
    run: SubmittedArgument,
    address: AddressOption = DEFAULT_ADDRESS,
    runs: SubmittedRunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a submitted job to write a checkpoint and end."""
    from polysome.operations.submit import ClusterJobs

    stopped = ClusterJobs(address, runs_root=runs).stop(run)
    if as_json:
        print_json(vars(stopped))
        return
    console().print(f"{run} is asked to stop", markup=False)
    next_step(f"polysome resume {shlex.quote(run)}")


def resume(
    run: SubmittedArgument,
    address: AddressOption = DEFAULT_ADDRESS,
    runs: SubmittedRunsOption = None,
    follow: FollowOption = True,
    as_json: JsonOption = False,
) -> None:
    """Submit a run again that was stopped, failed or lost, so that it goes on from what it has."""
    from polysome.operations.submit import ClusterJobs

    jobs = ClusterJobs(address, runs_root=runs)
    _tell(jobs, jobs.resume(run), runs, follow=follow, as_json=as_json)


def runs(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Show this run alone, whole.")] = None,
    runs: RunsOption = "runs",
    team: Annotated[str | None, typer.Option("--team", help="Only this team's.")] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="CPU- and GPU-hours, their cost where the runs have a rates.json, and sums.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the runs, read from their folders alone."""
    from polysome.operations import runs as registry
    from polysome.operations.usage import by_team, read_rates
    from polysome.storage import join

    if run_id is not None:
        record = registry.read_run(join(runs, run_id))
        print_json(record.model_dump(mode="json"))
        if not as_json:
            next_step(f"polysome runs --runs {shlex.quote(runs)}")
        return
    found = [(folder, record) for folder, record in registry.list_runs(runs) if team in (None, record.team)]
    sums = by_team(record for folder, record in found if not _is_step(folder, record)) if cost else {}
    rates = read_rates(runs) if cost else None
    if as_json:
        listed = [{"folder": folder, **record.model_dump(mode="json")} for folder, record in found]
        teams = {name: {**usage.model_dump(), "cost": spent} for name, (usage, spent) in sums.items()}
        print_json({"runs": listed, "teams": teams} if cost else listed)
        return
    table = Table("run", "job", "status", "started (UTC)", "took", "user", "team", box=None, pad_edge=False)
    for name in ("CPU-hours", "GPU-hours", f"cost {rates.currency if rates else ''}".rstrip()) if cost else ("commit",):
        table.add_column(name, justify="right" if cost else "left")
    for folder, record in found:
        commit = (record.commit or "-")[:9] + ("+dirty" if (record.commit or "").endswith("+dirty") else "")
        used = record.usage
        table.add_row(
            f"{'  ' if _is_step(folder, record) else ''}{record.id}",
            record.job,
            f"[{COLOURS[record.status]}]{record.status}[/]",
            record.started[:19].replace("T", " "),
            _duration(record.started, record.finished),
            escape(record.user),
            escape(record.team),
            *(_hours(used.cpu_hours, used.gpu_hours, record.cost) if cost else (commit,)),
        )
    for name, (usage, spent) in sums.items():
        figures = _hours(usage.cpu_hours, usage.gpu_hours, spent)
        table.add_row("all", "", "", "", "", "", escape(name or "(no team)"), *figures, style="bold")
    if found:
        console().print(table)
    else:
        console().print(f"no runs in {runs}", markup=False)
    next_step(
        f"polysome runs {found[0][1].id} --runs {shlex.quote(runs)}" if found else "polysome run jobs/recipes/demo.yaml"
    )


def _tell(jobs: "ClusterJobs", job: "JobStatus", runs: str | None, *, follow: bool, as_json: bool) -> None:
    """A job that was just submitted, followed to its end where that is asked for."""
    _show(f"run {job.id} submitted to {jobs.address}\n", as_json)
    code = jobs.follow(job.id, lambda piece: _show(piece, as_json)) if follow else 0
    ended = jobs.status(job.id) if follow else job
    if as_json:
        print_json({**vars(ended), "address": jobs.address, "exit_code": code})
    elif not follow:
        next_step(f"polysome logs --follow {shlex.quote(job.id)} --address {jobs.address}")
    elif code == 0:
        next_step(f"polysome runs --runs {shlex.quote(runs)}" if runs else f"polysome status {shlex.quote(job.id)}")
    else:
        print(f"run {job.id} {ended.status}: {ended.message.partition(chr(10))[0]}", file=sys.stderr)
        next_step(f"polysome resume {shlex.quote(job.id)} --address {jobs.address}")
    if code:
        raise typer.Exit(code)


def _show(piece: str, as_json: bool = False) -> None:
    stream = sys.stderr if as_json else sys.stdout
    stream.write(piece)
    stream.flush()


def _one_of(option: str, text: str, kind: Any) -> Any:
    known = get_args(kind)
    if text not in known:
        raise ConfigurationError(f"{option} {text!r}", where="command line", fix=f"choose one of {', '.join(known)}")
    return text


def _is_step(folder: str, record: "RunRecord") -> bool:
    """Whether the run stands in the folder of a pipeline that it belongs to."""
    return folder.rstrip("/").rsplit("/", 2)[-2] in record.parents


def _hours(cpu: float, gpu: float, cost: float | None) -> tuple[str, str, str]:
    return f"{cpu:.2f}", f"{gpu:.2f}", "-" if cost is None else f"{cost:.2f}"


def _duration(started: str, finished: str | None) -> str:
    from datetime import UTC, datetime

    end = datetime.fromisoformat(finished) if finished else datetime.now(UTC)
    seconds = int((end - datetime.fromisoformat(started)).total_seconds())
    hours, rest = divmod(max(0, seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
