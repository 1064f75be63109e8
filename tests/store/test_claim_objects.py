"""Claims in an object store: one owner at a time, age by the store's clock, a robbed owner harmless."""

from __future__ import annotations

import secrets
import time

import pytest

from featpipe.errors import RequestError
from featpipe.store import Claims, claim_storage, exclusive_claim

pytest.importorskip("obstore")
WORK = "a" * 64
FOREVER = 1e9


@pytest.fixture(params=["memory", "s3"])
def url(request):
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}/cache"
    return f"{request.getfixturevalue('s3_bucket')}/cache"


def claims(url, expiry=FOREVER):
    return Claims(claim_storage(url, WORK), expiry=expiry)


def test_one_owner_at_a_time(url):
    with claims(url) as one, claims(url) as other:
        assert one.take("0")
        assert other.take("1")
        assert not other.take("0")
        one.release("0")
        assert other.take("0")


def test_nothing_is_left(url):
    storage = claim_storage(url, WORK)
    with Claims(storage, expiry=FOREVER) as one:
        assert one.take("0")
        assert storage.look("0").owner.pid
    assert storage.look("0") is None


def test_age_is_that_of_the_store(url):
    storage = claim_storage(url, WORK)
    with claims(url) as one:
        one.take("0")
        assert -2 <= storage.look("0").age < 60
        assert storage.look("1") is None


def test_a_touch_makes_it_young_and_another_version(url):
    storage = claim_storage(url, WORK)
    with claims(url) as one:
        held = storage.take("0", one._owner)
        before = storage.look("0")
        held.touch()
        after = storage.look("0")
        assert after.version != before.version
        assert after.owner == before.owner
        storage.remove("0", before)  # what was seen before is not there any more
        assert storage.look("0") is not None


def test_an_expired_claim_is_taken_over_and_its_owner_leaves_it_alone(url):
    storage = claim_storage(url, WORK)
    silent = claims(url)  # not entered: it has no heartbeat, as if it were suspended
    assert silent.take("0")
    time.sleep(1.1)
    with claims(url, expiry=1.0) as thief:
        assert thief.take("0")
        silent._held["0"].touch()
        silent.release("0")
        assert storage.look("0").owner == thief._owner


def test_an_exclusive_claim_is_one(url):
    with exclusive_claim(url, WORK), claims(url) as other:
        assert not other.take("array")


def test_behind_a_web_server_nothing_is_claimed():
    with pytest.raises(RequestError, match="can only be read"):
        claim_storage("http://127.0.0.1:9/cache", WORK)
