"""The command line. Only here is anything printed."""

from featpipe.cli._app import app, main

__all__ = ["app", "main"]
