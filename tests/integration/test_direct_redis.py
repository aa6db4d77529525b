"""`DirectRedis` answers as redis-py does: after a restart, a late answer, a missing script."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sandfleet_worker.delivery.direct_redis import DirectRedis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def direct(url: str, client: Any) -> Iterator[Any]:
    with DirectRedis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=0.3) as direct:
        yield direct


def test_it_keeps_one_connection_and_parses_answers(direct: Any) -> None:
    assert direct.ping() is True
    assert direct.info("server")["redis_version"]
    assert direct.client_id() == direct.client_id()


def test_an_error_is_an_answer_and_the_connection_goes_on(direct: Any) -> None:
    before = direct.client_id()
    with pytest.raises(redis.ResponseError, match="unknown command"):
        direct.execute_command("NOSUCH")
    assert direct.client_id() == before


def test_a_connection_that_redis_closed_is_opened_again_before_the_call(direct: Any, client: Any) -> None:
    before = direct.client_id()
    client.client_kill_filter(_id=before)
    assert direct.client_id() != before


def test_a_late_answer_is_not_taken_for_that_of_the_next_call(direct: Any, client: Any) -> None:
    direct.ping()
    client.client_pause(600, all=True)
    with pytest.raises(redis.TimeoutError):
        direct.echo("late")
    client.client_unpause()
    assert direct.echo("next") == b"next"


def test_a_script_that_redis_lacks_is_loaded(direct: Any, client: Any) -> None:
    script = direct.register_script("return ARGV[1]")
    assert script(keys=[], args=["a"]) == b"a"
    client.script_flush()
    assert script(keys=[], args=["b"]) == b"b"


def test_a_lock_of_redis_py_works_by_it(direct: Any) -> None:
    with direct.lock("a lock", timeout=5, blocking=False) as lock:
        assert lock.owned()
        assert direct.lock("a lock").acquire(blocking=False) is False
    assert not direct.exists("a lock")


def test_calls_at_once_have_a_connection_each(direct: Any) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(direct.echo, map(str, range(200)))) == [str(at).encode() for at in range(200)]
    assert len(direct.connection_pool._in_use_connections) <= 8


def test_while_redis_is_away_a_call_connects_once(direct: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    direct.ping()
    connection = direct._idle[0]
    connection.disconnect()
    tries: list[int] = []

    def refuse() -> None:
        tries.append(1)
        raise ConnectionRefusedError

    monkeypatch.setattr(connection, "_connect", refuse)
    with pytest.raises((redis.ConnectionError, ConnectionRefusedError)):
        direct.ping()
    assert len(tries) == 1, "a host that does not answer would take its timeout twice"
