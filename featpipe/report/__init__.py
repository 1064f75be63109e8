"""A run folder, or what a cache holds, as one HTML page that a person can open, send and keep."""

from __future__ import annotations

from featpipe.report._catalog import write_catalog
from featpipe.report._write import write_report

__all__ = ["write_catalog", "write_report"]
