"""The application: its commands, and how errors become exit codes."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import featpipe
from featpipe.cli._compare import compare_command
from featpipe.cli._compare_runs import compare_runs_command
from featpipe.cli._console import note, say
from featpipe.cli._extract import extract_command
from featpipe.cli._fit import fit_command, predict_command, recipes_command, report_command, score_command
from featpipe.cli._models import layers_command, models_command
from featpipe.cli._refused import is_out_of_memory, of_the_system, out_of_memory
from featpipe.cli._retention import retention_command
from featpipe.cli._submit import submit_command
from featpipe.cli.cache import cache_app
from featpipe.errors import FeatpipeError

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    name="featpipe",
    help="From images to scored encoding models: extract features to a cache, fit recipes on them, score them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"featpipe {featpipe.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of featpipe itself."""


@app.command("demo")
def demo_command(
    out: Annotated[str, typer.Option("--out", help="Folder for data, cache, runs and report.")] = "demo-run",
    images: Annotated[int, typer.Option("--images", min=40, help="How many image crops.")] = 208,
) -> None:
    """Offline, in minutes: images → cache → fit → scores → report.html."""
    from featpipe.demo import run_demo

    run_demo(out, n_stimuli=images, say=say)


app.command("models")(models_command)
app.command("layers")(layers_command)
app.command("extract")(extract_command)
app.add_typer(cache_app, name="cache")
app.command("compare")(compare_command)
app.command("compare-runs")(compare_runs_command)
app.command("fit")(fit_command)
app.command("predict")(predict_command)
app.command("score")(score_command)
app.command("retention")(retention_command)
app.command("submit")(submit_command)
app.command("report")(report_command)
app.command("recipes")(recipes_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit code 0 done, 1 the work failed, 2 the request is wrong."""
    warnings.showwarning = lambda message, *_, **__: note(f"featpipe: warning: {message}")
    try:
        with _ending_when_terminated():
            app(arguments)
    except FeatpipeError as error:
        note(f"featpipe: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        note(f"featpipe: {of_the_system(error)}")
        sys.exit(1)
    except (MemoryError, ImportError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"featpipe: {out_of_memory(error)}\n")  # with what memory is left
        sys.exit(1)
    except SystemExit as error:
        if error.code in (INTERRUPTED, TERMINATED):
            note("featpipe: interrupted; features that were committed are kept, and are not computed again.")
        raise


@contextmanager
def _ending_when_terminated() -> Iterator[None]:
    """Let SIGTERM, as schedulers send it, end the work as Ctrl-C does: claims and temporary files are cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there may handlers be set
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    sys.exit(TERMINATED)
