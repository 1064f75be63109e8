"""``featpipe cache``: look into a cache, check it, tidy it, bring arrays in and out. One file a command."""

from __future__ import annotations

import typer

from featpipe.cli.cache._catalog import catalog_command
from featpipe.cli.cache._export import export_command
from featpipe.cli.cache._gc import gc_command
from featpipe.cli.cache._import import import_command
from featpipe.cli.cache._ls import ls_command
from featpipe.cli.cache._pull import pull_command
from featpipe.cli.cache._push import push_command
from featpipe.cli.cache._rm import rm_command
from featpipe.cli.cache._show import show_command
from featpipe.cli.cache._verify import verify_command

cache_app = typer.Typer(
    help="Look into a cache, check it, tidy it, bring arrays into it and out of it.", no_args_is_help=True
)
cache_app.command("ls")(ls_command)
cache_app.command("show")(show_command)
cache_app.command("verify")(verify_command)
cache_app.command("rm")(rm_command)
cache_app.command("gc")(gc_command)
cache_app.command("import")(import_command)
cache_app.command("export")(export_command)
cache_app.command("catalog")(catalog_command)
cache_app.command("push")(push_command)
cache_app.command("pull")(pull_command)
