"""``python -m featpipe``."""

from featpipe.cli import main

main()
