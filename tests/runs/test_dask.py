"""Runs on dask find what serial runs find, send little, and survive their workers."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold

from featpipe.cli import main
from featpipe.datasets import Responses, fingerprint
from featpipe.encoding import RidgeEncoder
from featpipe.errors import MissingDependency, RecipeError, RequestError, WorkError
from featpipe.model_selection import evaluate
from featpipe.runs import _workers, fit

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # which distributed needs
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning"
)  # distributed's own

BOTH_LAYERS = {"features__layers": [["stem"], ["head"]]}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def cluster():
    """A scheduler in this process and two workers in processes of their own."""
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
    }
    with distributed.LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


@pytest.fixture
def place(cluster, tmp_path):
    """A function that holds the place where tasks are computed: on the cluster's workers, with one BLAS thread."""
    (tmp_path / "cache").mkdir()

    def hold(y):
        return _workers.computing(
            y,
            out=str(tmp_path / "run"),
            cache=str(tmp_path / "cache"),
            dask=cluster.scheduler_address,
            n_jobs=1,
            threads=1,
            tell=lambda text: None,
        )

    return hold


@pytest.fixture
def study(rng):
    """Features and responses, and folds."""
    X = rng.standard_normal((40, 6))
    Y = (X @ rng.standard_normal((6, 9)) + rng.standard_normal((40, 9))).astype(np.float32)
    return X, Y, list(KFold(3).split(X))


def _files(run):
    return [(run.path / name).read_bytes() for name in ("summary.json", "scores.csv")]


def test_a_run_on_workers_has_the_bytes_of_a_serial_one(root, make_request, cluster, tmp_path):
    options = {"search": BOTH_LAYERS, "params": {"ridge__target_batch": 3}, "threads": 1}
    told, done = [], []
    serial = fit(make_request(root / "plain", tmp_path / "serial", **options))
    run = fit(
        make_request(root / "plain", tmp_path / "dask", dask=cluster.scheduler_address, **options),
        tell=told.append,
        fold_progress=lambda *counts: done.append(counts),
    )
    assert _files(run) == _files(serial)
    assert f"2 workers at {cluster.scheduler_address}, dashboard" in told[0]
    assert (done[0], done[-1]) == ((0, 5), (5, 5))
    for record, jobs in ((run.read_json("run.json"), None), (serial.read_json("run.json"), 1)):
        assert (record["jobs"], record["task_threads"]) == (jobs, 1)
        assert record["target_batch"] == {"ridge__target_batch": 3}
    assert run.read_json("run.json")["dask"]["n_workers"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"serial", "dask"}  # and no scratch


@pytest.mark.slow
def test_commands_start_and_end_workers_of_their_own(root, tmp_path, capfd):
    words = ["fit", "baseline_ridge", "--data", f"table:{root / 'plain'}", "--cache", str(root / "cache")]
    words += ["--set", 'features__layers="stem"', "--cv", "3", "--threads", "1", "--json"]
    scores = []
    for name, more in {"serial": [], "dask": ["--dask", "2"]}.items():
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", str(tmp_path / name), *more])
        out = capfd.readouterr().out
        assert (end.value.code, out.count("\n")) == (0, 1)
        scores.append(json.loads(out)["scores"])
    assert scores[0] == scores[1]
    assert {path.name for path in tmp_path.iterdir()} == {"serial", "dask"}


@pytest.fixture
def messages(monkeypatch):
    """Bytes of every message in and out of this process: the scheduler lives here, and so does the client."""
    sizes = []
    to_frames, from_frames = distributed.comm.tcp.to_frames, distributed.comm.tcp.from_frames

    async def sent(*args, **kwargs):
        frames = await to_frames(*args, **kwargs)
        sizes.append(sum(memoryview(frame).nbytes for frame in frames))
        return frames

    async def received(frames, **kwargs):
        sizes.append(sum(memoryview(frame).nbytes for frame in frames))
        return await from_frames(frames, **kwargs)

    monkeypatch.setattr(distributed.comm.tcp, "to_frames", sent)
    monkeypatch.setattr(distributed.comm.tcp, "from_frames", received)
    return sizes


@pytest.fixture
def large(rng):
    """A study with a target, coefficients, predictions and moments of more than a megabyte each."""
    X = rng.standard_normal((40, 100)).astype(np.float32)
    Y = rng.standard_normal((40, 40_000)).astype(np.float32)
    search = GridSearchCV(RidgeEncoder(alpha=1e3), {"fit_intercept": [True, False]}, cv=KFold(2))
    keep = {"return_predictions": True, "return_estimators": True}
    return search, X, Y, list(KFold(2).split(X)), keep


def test_nothing_large_passes_the_scheduler(large, place, messages):
    search, X, Y, folds, keep = large
    expected = evaluate(search, X, Y, cv=folds, threads=1, **keep)
    with place(Y) as there:
        found = evaluate(search, X, there.y, cv=folds, n_jobs=there.n_jobs, threads=1, **keep)
    assert len(messages) > 20
    assert max(messages) < MEGABYTE // 10
    for name, values in expected.scores.items():
        np.testing.assert_array_equal(found.scores[name], values)
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    np.testing.assert_array_equal(found.pooled_r, expected.pooled_r)
    for ours, theirs in zip(found.estimators, expected.estimators, strict=True):
        np.testing.assert_array_equal(ours.best_estimator_.coef_, theirs.best_estimator_.coef_)


def test_the_messages_of_a_stock_backend_are_seen_to_be_large(study, cluster, messages):
    """Or the test above would pass for want of sight."""
    X, _, folds = study
    Y = np.zeros((40, 40_000), dtype=np.float32)
    with distributed.Client(cluster) as client, joblib.parallel_config("dask", client=client):
        evaluate(Ridge(), X, Y, cv=folds)
    assert max(messages) > MEGABYTE


def _estimators(folder):
    """Classes that workers cannot import, as those of a recipe's own file: they travel with the task."""

    class Seen(RegressorMixin, BaseEstimator):
        """Leaves a file with the process that fitted it, and takes its time."""

        def __init__(self, alpha=1.0, wait=0.0):
            self.alpha = alpha
            self.wait = wait

        def fit(self, X, y):
            time.sleep(self.wait)
            (folder / f"{os.getpid()}-{time.monotonic_ns()}.{self.alpha}").touch()
            self.ridge_ = Ridge(self.alpha).fit(X, y)
            return self

        def predict(self, X):
            return self.ridge_.predict(X)

    class Deadly(Seen):
        """Ends the process that fits it the first time, or every time."""

        def __init__(self, alpha=1.0, wait=0.0, times=1):
            super().__init__(alpha, wait)
            self.times = times

        def fit(self, X, y):
            deaths = len(list(folder.glob("death-*")))
            if deaths < self.times:
                (folder / f"death-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().fit(X, y)

    return Seen, Deadly


def test_candidates_of_one_fold_run_on_all_workers(study, place, tmp_path):
    X, Y, folds = study
    Seen, _ = _estimators(tmp_path)
    search = GridSearchCV(Seen(wait=0.1), {"alpha": [1.0, 2.0, 3.0, 4.0]}, cv=2, scoring="r2", refit=True)
    with place(Y) as there:
        found = evaluate(search, X, there.y, cv=folds[:1], n_jobs=there.n_jobs, threads=1)
    fitted = [path.name.partition("-")[0] for path in tmp_path.glob("*-*.*.0")]
    assert len(fitted) == 4 * 2 + 1
    assert len(set(fitted)) == 2
    assert str(os.getpid()) not in fitted
    assert set(found.chosen[0]) == {"alpha"}


@pytest.mark.parametrize("searched", [False, True])
def test_a_worker_that_dies_is_survived(study, place, tmp_path, searched):
    X, Y, folds = study
    Seen, Deadly = _estimators(tmp_path)
    found = []
    for model in (Seen(), Deadly()):
        estimator = GridSearchCV(model, {"alpha": [1.0, 50.0]}, cv=2) if searched else model
        with place(Y) as there:
            found.append(evaluate(estimator, X, there.y, cv=folds, n_jobs=there.n_jobs, threads=1))
    assert (tmp_path / "death-0").exists()
    np.testing.assert_array_equal(found[1].scores["r2"], found[0].scores["r2"])
    assert found[1].chosen == found[0].chosen


def test_a_task_that_ends_every_worker_is_given_up(study, place, cluster, tmp_path, monkeypatch):
    X, Y, folds = study
    _, Deadly = _estimators(tmp_path)
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(WorkError, match="given up because 1 workers died"), place(Y) as there:
        evaluate(Deadly(times=99), X, there.y, cv=folds, n_jobs=there.n_jobs, threads=1)
    assert not list(tmp_path.glob(".run.dask-*"))


def test_an_error_of_a_task_is_the_error_of_the_run(study, place):
    X, Y, folds = study
    with pytest.raises(RequestError, match="scoring must be one of"), place(Y) as there:
        evaluate(RidgeEncoder(scoring="rho"), X, there.y, cv=folds, n_jobs=there.n_jobs)


def test_responses_are_written_for_workers_only_where_no_file_has_them(place, study, tmp_path):
    *_, Y = study[:2]
    with place(Y) as there:
        assert there.y.path.startswith(str(tmp_path / ".run.dask-"))
        np.testing.assert_array_equal(np.asarray(there.y), Y)
    assert not os.path.exists(there.y.path)
    own = Responses.write(tmp_path / "own.npy", Y)
    with place(np.load(own.path, mmap_mode="r")[5:]) as there:
        assert there.y.path == own.path
        assert there.y == own[5:]


def test_a_worker_of_another_version_is_named(place, study, monkeypatch):
    monkeypatch.setattr("featpipe.__version__", "0.0.0")
    with pytest.raises(
        RequestError, match=r"Worker tcp://\S+ cannot take part: it has featpipe .*, not 0.0.0"
    ):
        place(study[1]).__enter__()


def test_what_a_worker_does_not_see_is_named(tmp_path):
    file, folder, seen = tmp_path / "there.npy", tmp_path / "cache", tmp_path / "seen.json"
    np.save(file, np.zeros(4))
    (folder / "arrays" / "key").mkdir(parents=True)

    def look(**changes):
        same = {"folders": {str(folder): ["arrays", "arrays/key"]}, "files": {str(file): fingerprint(file)}}
        seen.write_text(json.dumps({"version": _workers.featpipe.__version__, **same, **changes}))
        return _workers._look(str(seen))

    assert look() is None
    (folder / "arrays" / "newer").mkdir()
    assert look() is None
    assert "cache is something else there" in look(folders={str(folder): ["arrays/another"]})
    assert "there.npy is something else there" in look(files={str(file): "another"})
    assert "does not see a file" in look(files={str(tmp_path / "away.npy"): ""})


def test_a_scheduler_without_workers_is_waited_for_and_named(study, tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "PATIENCE", 0.2)
    told = []
    options = {
        "n_workers": 0,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    where = {"out": str(tmp_path / "run"), "cache": str(tmp_path), "n_jobs": 1, "threads": 1}
    with (
        distributed.LocalCluster(**options) as empty,
        pytest.raises(WorkError, match="had no worker for"),
        _workers.computing(study[1], dask=empty.scheduler_address, tell=told.append, **where),
    ):
        pass
    assert "waiting for workers" in told[0]
    assert not list(tmp_path.glob(".run.dask-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "message"), [("worker", "workers are gone"), ("scheduler", "scheduler was lost")]
)
def test_losing_the_cluster_ends_the_run(study, tmp_path, monkeypatch, victim, message):
    monkeypatch.setattr(_workers, "PATIENCE", 15.0)
    X, Y, folds = study
    Seen, _ = _estimators(tmp_path)
    where = {"out": str(tmp_path / "run"), "cache": str(tmp_path), "n_jobs": 1, "threads": 1}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "dask"]
    file = tmp_path / "scheduler.json"
    parts = {}
    words = [
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    parts["scheduler"] = subprocess.Popen([*dask, *words], **quiet)
    try:
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        words = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        parts["worker"] = subprocess.Popen([*dask, *words], cwd=tmp_path, **quiet)
        threading.Thread(target=_kill_once_begun, args=(tmp_path, parts[victim]), daemon=True).start()
        with (
            pytest.raises(WorkError, match=message),
            _workers.computing(
                Y,
                dask=address,
                tell=lambda text: "dashboard" in text and monkeypatch.setattr(_workers, "PATIENCE", 1.0),
                **where,
            ) as there,
        ):
            evaluate(Seen(wait=2.0), X, there.y, cv=folds, n_jobs=there.n_jobs, threads=1)
    finally:
        for part in parts.values():
            part.kill()
            part.wait()
    assert not list(tmp_path.glob(".run.dask-*"))


def _kill_once_begun(folder, process):
    while not list(folder.glob("*-*.1.0")):
        time.sleep(0.05)
    process.kill()


SLOW_RECIPE = """
import time
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline
from featpipe import CachedFeatures, RidgeEncoder
from featpipe.recipes import Recipe


class Slow(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        open({begun!r}, "w").close()
        time.sleep(60)

    def transform(self, X):
        return X


steps = [("features", CachedFeatures(layers=["stem"])), ("slow", Slow()), ("ridge", RidgeEncoder())]
RECIPE = Recipe(summary="Takes its time", citation="None", pipeline=Pipeline(steps))
"""


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing(root, tmp_path):
    """Also: what a recipe's own file defines reaches the workers, which cannot import it."""
    begun = tmp_path / "begun"
    (tmp_path / "slow.py").write_text(SLOW_RECIPE.format(begun=str(begun)))
    words = [
        "fit",
        str(tmp_path / "slow.py"),
        "--data",
        f"table:{root / 'plain'}",
        "--cache",
        str(root / "cache"),
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "featpipe", *words, "--dask", "2", "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in a shell's background would hand on that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not begun.exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    workers = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    told = run.communicate()[1]
    assert run.returncode == 130, told
    assert "dask: 2 workers at tcp://127.0.0.1:" in told
    assert {path.name for path in tmp_path.iterdir()} == {"slow.py", "begun"}
    _, left = psutil.wait_procs(workers, timeout=5)
    assert not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dask": "many"}, "neither a number of workers nor the address"),
        ({"dask": "0"}, "neither a number of workers"),
        ({"dask": "2", "n_jobs": 2}, "--jobs and --dask are two ways"),
        ({"threads": 0}, "--threads is 0"),
    ],
)
def test_what_cannot_be_asked_for_is_named(make_request, root, tmp_path, given, message):
    with pytest.raises(RecipeError, match=message):
        make_request(root / "plain", tmp_path / "run", **given)


def test_no_scheduler_at_an_address_is_named(make_request, root, tmp_path):
    import dask

    request = make_request(root / "plain", tmp_path / "run", dask="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(RequestError, match=r"no dask scheduler at tcp://127\.0\.0\.1:9"),
    ):
        fit(request)


def test_without_dask_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"featpipe\[dask\]"):
        _workers.asked_workers("2")


def test_dask_is_not_imported_before_it_is_asked_for():
    code = "import sys, featpipe, featpipe.runs, featpipe.cli; assert not {'dask', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
