"""Workers of dask: started on this machine, or found at the address of a scheduler."""

from featpipe.workers._cluster import asked_workers, connected, dashboard, described, wait_for_workers
from featpipe.workers._hand_out import hand_out
from featpipe.workers._outcome import LOST, PATIENCE, Tell, outcome, workers_are_gone

__all__ = [
    "LOST",
    "PATIENCE",
    "Tell",
    "asked_workers",
    "connected",
    "dashboard",
    "described",
    "hand_out",
    "outcome",
    "wait_for_workers",
    "workers_are_gone",
]
