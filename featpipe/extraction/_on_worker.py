"""What a worker of dask holds of an extraction, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin, get_worker, secede

from featpipe.errors import FeatpipeError, RequestError
from featpipe.extraction._parcel import Done, Parcel, Settled, ShardTask

if TYPE_CHECKING:
    from featpipe.extraction._line import ShardLine


class ExtractionPlugin(WorkerPlugin):
    """Tells every worker, also one that comes later, what is extracted; the network is built once it is needed.

    Parameters
    ----------
    parcel : Parcel
    """

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel

    def setup(self, worker: Any) -> None:
        """Remember what the worker may use."""
        self._address, self._threads = worker.address, worker.state.nthreads
        self._line: ShardLine | None = None
        self._lock = Lock()

    def teardown(self, worker: Any) -> None:
        """Let go of the network."""
        if self._line is not None:
            self._line.close()

    def line(self) -> ShardLine:
        """Return the line of this process; raises `RequestError` where it would compute something else."""
        from featpipe.extraction._line import ShardLine  # torch, which dask's own threads do without

        with self._lock:
            if self._parcel.version != version("featpipe"):
                raise RequestError(
                    f"Worker {self._address} cannot take part: it has featpipe {version('featpipe')}, not "
                    f"{self._parcel.version}. Install the same version."
                )
            if self._line is None:
                self._line = ShardLine(self._parcel, self._threads)
            return self._line


def settle(name: str) -> Settled | FeatpipeError:
    """Find out what all workers have to do alike; `name` is that of the plugin."""
    return _or_error(lambda: _line(name).settle())


def make_shard(name: str, task: ShardTask) -> Done | FeatpipeError:
    """Make and commit a shard. While it computes, the worker may already begin with the next."""
    return _or_error(lambda: _line(name).make(task, secede))


def _line(name: str) -> ShardLine:
    line: ShardLine = get_worker().plugins[name].line()
    return line


def _or_error(work: Callable[[], Any]) -> Any:
    """Return an error that would come again: dask would log it and keep its traceback."""
    try:
        return work()
    except FeatpipeError as error:
        return error.with_traceback(None)
