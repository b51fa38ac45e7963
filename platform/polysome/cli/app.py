"""The `polysome` command: arguments in; tables for people or JSON for programs out; exit codes 0, 1, 2, 3.

Results go to standard output, logs and errors to standard error. Nothing heavy is imported before a command needs it.
"""

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli import adapters, dashboards, datasets, evaluate, evaluation, grade, keys, plan, predict, tokens
from polysome.cli import jobs as job_commands
from polysome.cli.console import JsonOption, console, next_step, print_json, report_error, told
from polysome.cli.jobs import OverridesArgument, RecipeArgument, RunIdOption, RunsOption
from polysome.config import ConfigurationError, PolysomeError, ResourceError

if TYPE_CHECKING:
    from polysome.operations.recipes import Job
    from polysome.operations.runs import Run
    from polysome.serving.config import ServeConfig

app = typer.Typer(
    name="polysome",
    help="Data, training, evaluation and serving of multi-omics language models on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(datasets.app, name="datasets")
app.add_typer(tokens.app, name="tokens")
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(dashboards.app, name="dashboards")
app.command("plan")(plan.plan)

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        import polysome

        print(polysome.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks and debug logs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what workers log.")] = False,
) -> None:
    """Options that stand before the command."""
    global _debug
    _debug = debug or bool(os.environ.get("POLYSOME_DEBUG"))
    level = logging.DEBUG if _debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("polysome").setLevel(level)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine and installation; each finding says how to mend it."""
    from polysome.operations.doctor import examine

    findings = examine()
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if as_json:
        print_json({"ok": not failed, "findings": [vars(finding) for finding in findings]})
    else:
        table = Table("", "what", "found", "how to mend it", box=None, pad_edge=False)
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for finding in findings:
            verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
            table.add_row(verdict, finding.subject, escape(finding.detail), escape(finding.fix))
        console().print(table)
        next_step("polysome doctor" if failed else "make demo")
    if failed:
        raise typer.Exit(ResourceError.exit_code)


def _add_job(name: str, job: "Job | None", summary: str) -> None:
    """A command that runs a recipe; `job` is what the recipe must be for, None takes any."""

    def command(
        recipe: RecipeArgument,
        overrides: OverridesArgument = None,
        runs: RunsOption = "runs",
        run_id: RunIdOption = None,
        as_json: JsonOption = False,
    ) -> None:
        _run_job(job, recipe, overrides, runs, run_id, as_json)

    app.command(name, help=summary)(command)


_add_job("prepare", "prepare", "Prepare data: read, clean, render, tokenize and pack into a committed folder.")
_add_job("train", "train", "Train one stage on a prepared folder.")
app.command("evaluate")(evaluate.evaluate)
app.command("report")(evaluation.report)
app.command("compare")(evaluation.compare)
app.command("grade")(grade.grade)
datasets.app.command("export-harness")(evaluation.export_harness)
_add_job("run", None, "Run any recipe, whatever its job.")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL|RECIPE", help="A model folder, or a recipe with job: serve.")],
    overrides: OverridesArgument = None,
    port: Annotated[int | None, typer.Option(help="Default: the recipe's, or 8000.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model over HTTP until Ctrl-C."""
    from polysome.config import validate
    from polysome.operations.recipes import load_recipe
    from polysome.serving.config import ServeConfig

    extra = [*(overrides or []), *([f"port={port}"] if port is not None else [])]
    if model.endswith((".yaml", ".yml")):
        config: Any = load_recipe(model, extra, job="serve").config
    else:
        from polysome.config import apply_overrides

        config = validate(ServeConfig, apply_overrides({"model": model}, extra), where=f"polysome serve {model}")
    _serve(config, as_json)


def _serve(config: Any, as_json: bool) -> None:
    from polysome.operations import jobs

    def ready(url: str, served: "ServeConfig") -> None:
        if as_json:
            print_json({"url": url, "model": served.name, "folder": served.model})
        else:
            screen = console()
            screen.print(f"[bold]{served.name}[/] is served at [bold]{url}[/]; Ctrl-C ends it")
            path, body = _example_request(served)
            key = ' -H "Authorization: Bearer $POLYSOME_API_KEY"' if served.keys else ""
            command = f"curl -s {url}{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
            screen.print(command, markup=False, soft_wrap=True)
            next_step(f"polysome predict --url {url} --task TASK SEQUENCE")
        sys.stdout.flush()

    jobs.serve(config, ready)


def _example_request(config: "ServeConfig") -> tuple[str, str]:
    from polysome.data.render import messages

    asked = "<dna>GCCGACATATAAAAGGCGGATGTATCCAGATAC</dna> Is there a promoter?"
    return "/v1/chat/completions", json.dumps({"model": config.name, "messages": messages(config.prompt, asked)})


app.command("predict")(predict.predict)


app.command("submit")(job_commands.submit)
app.command("status")(job_commands.status)
app.command("logs")(job_commands.logs)
app.command("stop")(job_commands.stop)
app.command("resume")(job_commands.resume)
app.command("runs")(job_commands.runs)


@app.command("config-schema")
def config_schema(
    job: Annotated[
        str | None, typer.Argument(help="One of prepare, train, evaluate, pipeline, serve, dataset.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of recipes and data set specs (always JSON)."""
    from polysome.operations.recipes import schemas

    found = schemas()
    if job is not None and job not in found:
        raise ConfigurationError(f"no schema {job!r}", where="config-schema", fix=f"choose one of {', '.join(found)}")
    print_json(found if job is None else found[job])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, and says on standard error what went wrong."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in argv
    from polysome.operations.program import terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        result = app(args=argv, prog_name="polysome", standalone_mode=False)
    except PolysomeError as error:
        report_error(told(error), as_json)
        if _debug:
            raise
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:
        if not argv:
            print(error.format_message())
            return error.exit_code
        # A wrong option or argument; with no argument at all the message is the help.
        report_error({"type": "UsageError", "text": error.format_message(), "exit_code": error.exit_code}, as_json)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe closed it (`polysome runs | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _debug:
            raise
        text = (
            f"{type(error).__name__}: {error}\n  fix:   this is not expected; `polysome --debug …` prints the traceback"
        )
        report_error({"type": type(error).__name__, "text": text, "exit_code": 1}, as_json)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return result if isinstance(result, int) else 0


def _run_job(
    job: "Job | None", recipe: str, overrides: list[str] | None, runs: str, run_id: str | None, as_json: bool
) -> None:
    from polysome.operations import jobs
    from polysome.operations.program import announcer
    from polysome.operations.recipes import load_recipe

    loaded = load_recipe(recipe, overrides or [], job=job)
    if loaded.job == "serve":
        _serve(loaded.config, as_json)
        return
    announce = announcer(sys.stderr if as_json else sys.stdout)
    done = jobs.execute(loaded, runs, run_id=run_id, announce=announce)
    _tell_run(done, runs, as_json)


def _tell_run(done: "Run", runs: str, as_json: bool) -> None:
    record = done.record
    if as_json:
        print_json({"folder": done.folder, **record.model_dump(mode="json")})
        return
    screen = console()
    if done.reusable:
        screen.print(f"{record.id} had finished before; nothing was done", markup=False)
    if record.job != "pipeline":
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in record.results.items():
            if isinstance(value, dict | list):
                # Tables of their own stand in the run's files.
                continue
            table.add_row(name, escape(f"{value:g}" if isinstance(value, float) else str(value)))
        screen.print(table)
    screen.print(f"run {done.folder}", markup=False, soft_wrap=True)
    following = {
        "prepare": f"polysome train RECIPE data={record.results.get('data', done.folder)}",
        "train": f"polysome serve {record.results.get('export', done.folder)}",
        "pipeline": f"polysome runs --runs {shlex.quote(runs)}",
    }
    next_step(following.get(record.job, f"polysome runs {record.id} --runs {shlex.quote(runs)}"))


if __name__ == "__main__":
    sys.exit(main())
