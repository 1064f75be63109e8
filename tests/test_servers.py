"""The servers that tests of remote caches talk to: what they promise, and that they go away."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from featpipe.testing import file_server, proxy, s3_environment

obstore = pytest.importorskip("obstore")
CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "files"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "data").write_bytes(CONTENT)
    (folder.parent / "secret").write_text("outside")
    (folder / "link").symlink_to(folder.parent / "secret")
    with file_server(folder) as server:
        yield server


@pytest.fixture
def plain(files):
    """The file server, well-behaved and with no requests so far."""
    files.misbehave()
    files.forget()
    return files


def ask(port, path="/below/data", method="GET", **headers):
    """Return the answer to one request, its body read as ``body``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        answer.body = answer.read()
        return answer
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=1048570-", 1048570, 1 << 20), ("bytes=-5", (1 << 20) - 5, 1 << 20)],
)
def test_a_range_is_answered_with_it(plain, asked, start, stop):
    answer = ask(plain.port, Range=asked)
    assert (answer.status, answer.body) == (206, CONTENT[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


def test_a_range_behind_the_end_is_refused(plain):
    answer = ask(plain.port, Range=f"bytes={len(CONTENT)}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


def test_head_says_what_get_would(plain):
    head, get = ask(plain.port, method="HEAD"), ask(plain.port)
    names = ("Content-Length", "ETag", "Last-Modified")
    assert [head.headers[name] for name in names] == [get.headers[name] for name in names]
    assert (head.body, get.body) == (b"", CONTENT)


@pytest.mark.parametrize(
    "path",
    [
        "/below/../../secret",
        "/%2e%2e/secret",
        "/below%2F..%2F..%2Fsecret",
        "/link",
        "/",
        "/below",
        "//etc/passwd",
    ],
)
def test_nothing_outside_the_folder_and_no_listing(plain, path):
    answer = ask(plain.port, path)
    assert (answer.status, answer.body) == (404, b"")


def test_requests_are_counted_and_a_connection_lives_on(plain):
    connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=10)
    for part in ("bytes=0-1", "bytes=2-3"):
        connection.request("GET", "/below/data", headers={"Range": part})
        assert connection.getresponse().read()
        assert connection.sock is not None  # kept by both
    connection.close()
    seen = [(r["method"], r["path"], r["range"], r["status"]) for r in plain.requests()]
    assert seen == [("GET", "/below/data", "bytes=0-1", 206), ("GET", "/below/data", "bytes=2-3", 206)]


def test_faults_are_done_as_ordered_and_end_when_taken_back(plain):
    plain.misbehave(redirect={"/below/": "http://elsewhere.invalid/x/"})
    answer = ask(plain.port)
    assert (answer.status, answer.headers["Location"]) == (302, "http://elsewhere.invalid/x/data")
    plain.misbehave(status={"/below/": 503}, times=1)
    assert [ask(plain.port).status for _ in range(2)] == [503, 200]
    plain.misbehave(ignore_range=True)
    assert ask(plain.port, Range="bytes=0-9").status == 200
    plain.misbehave(shift_range=3)
    assert ask(plain.port, Range="bytes=0-9").body == CONTENT[3:13]
    plain.misbehave(length_off=7)
    with pytest.raises(http.client.IncompleteRead, match="7 more expected"):
        ask(plain.port)
    plain.misbehave()
    assert ask(plain.port, Range="bytes=0-9").body == CONTENT[:10]


def test_a_proxy_delays_each_way(plain):
    with proxy(plain.url, latency=0.1) as between:
        start = time.perf_counter()
        assert ask(between.port).body == CONTENT
        assert 0.2 <= time.perf_counter() - start < 5


def test_a_proxy_limits_bandwidth(plain):
    with proxy(plain.url, bandwidth=len(CONTENT) * 4) as between:
        start = time.perf_counter()
        assert ask(between.port).body == CONTENT
        assert time.perf_counter() - start >= 0.2


def test_a_proxy_cuts_so_many_connections_and_no_more(plain):
    with proxy(plain.url, drop_after=1000, drops=2) as between:
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="reset by peer"):
                ask(between.port)
        assert ask(between.port).body == CONTENT
        counts = between.counts()
    assert (counts["connections"], counts["dropped"]) == (3, 2)


def test_a_proxy_cuts_every_second_connection(plain):
    with proxy(plain.url, drop_after=0, drop_every=2, reset=False) as between:
        assert ask(between.port).body == CONTENT
        with pytest.raises(http.client.RemoteDisconnected, match="without response"):
            ask(between.port)
    assert len(plain.requests()) == 2  # the request got through, only its answer was lost


def test_a_proxy_can_let_no_request_through_or_keep_still(plain):
    with proxy(plain.url, drop_upload_after=0) as between:
        with pytest.raises(ConnectionResetError, match="reset by peer"):
            ask(between.port)
        between.change(hold=True)
        with socket.create_connection(("127.0.0.1", between.port), timeout=0.2) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError, match="timed out"):
                client.recv(1)
    assert plain.requests() == []


@pytest.fixture
def bucket(s3_bucket):
    return obstore.store.from_url(s3_bucket)


def test_s3_creates_only_where_nothing_is(bucket):
    obstore.put(bucket, "once", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError, match="once already exists"):
        obstore.put(bucket, "once", b"second", mode="create")
    assert obstore.get(bucket, "once").bytes() == b"first"


def test_s3_has_one_winner_among_many_creators(bucket):
    def create(number):
        try:
            obstore.put(bucket, "raced", bytes(number), mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(32)) if number is not None]
    assert [len(obstore.get(bucket, "raced").bytes())] == winners


def test_s3_replaces_only_what_is_as_expected(bucket):
    tag = obstore.put(bucket, "tagged", b"1")["e_tag"]
    obstore.put(bucket, "tagged", b"2", mode={"e_tag": tag})
    with pytest.raises(obstore.exceptions.PreconditionError, match="412"):
        obstore.put(bucket, "tagged", b"3", mode={"e_tag": tag})
    assert obstore.get(bucket, "tagged").bytes() == b"2"


def test_s3_is_reached_through_a_proxy(s3, s3_bucket, bucket, monkeypatch):
    obstore.put(bucket, "behind", CONTENT)
    with proxy(s3.url) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_environment(between.url)["AWS_ENDPOINT_URL"])
        store = obstore.store.from_url(s3_bucket)
        assert obstore.get_range(store, "behind", start=100, length=50) == CONTENT[100:150]
        assert between.counts()["down"] > 50


def test_servers_end_with_whoever_started_them(tmp_path):
    """Also when that was killed, and could close nothing."""
    code = f"""
from featpipe.testing import file_server
with file_server({str(tmp_path)!r}) as server:
    print(server.port, flush=True)
    import os, signal; os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    port = int(done.stdout)
    for _ in range(50):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.1)
    pytest.fail("it still listens after 5 s")
