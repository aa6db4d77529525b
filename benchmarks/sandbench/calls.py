"""Record the calls that a worker makes to Redis, so that many can be sent in one pipeline.

Sent one by one they are bound by round trips and by Python: Redis would idle, below its limit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis
    from sandfleet_config.outcome import Outcome
    from sandfleet_worker.delivery.identity import Identity

RESULT_TTL_SECONDS = 3600
QUEUE = "sandfleet"


class TakenDown(Exception):
    """Carry a script's hash and arguments out of the ledger's method before it reads an answer."""

    def __init__(self, sha: str, arguments: Sequence[Any]) -> None:
        super().__init__(sha)
        self.sha, self.arguments = sha, arguments


class Scribe:
    """Replace the ledger's client."""

    def __init__(self) -> None:
        self.scripts: dict[str, str] = {}

    def register_script(self, text: str) -> Callable[..., Any]:
        """Return what the ledger calls for the script `text`."""
        sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  Redis names its scripts so
        self.scripts[sha] = text

        def take_down(*, keys: Sequence[Any], args: Sequence[Any]) -> None:
            raise TakenDown(sha, [len(keys), *keys, *args])

        return take_down


class Calls:
    """The claims and ends of one worker, as its ledger sends them."""

    def __init__(self, identity: Identity) -> None:
        self._scribe = Scribe()
        self._ledger = Ledger(cast("redis.Redis", self._scribe), identity, RESULT_TTL_SECONDS)

    def load(self, client: redis.Redis) -> None:
        """Let Redis know the scripts."""
        for text in self._scribe.scripts.values():
            client.script_load(text)

    def claim(self, claim_id: str) -> TakenDown:
        """Return the call that claims a job."""
        return _take_down(lambda: self._ledger.claim(claim_id, [QUEUE]))

    def finish(self, claim_id: str, outcome: Outcome) -> TakenDown:
        """Return the call that ends a claimed job."""
        claim = Claim(claim_id, outcome.job_id, Flag.START, b"")
        return _take_down(lambda: self._ledger.finish(claim, outcome))


def send(client: redis.Redis, calls: Sequence[TakenDown]) -> list[Any]:
    """Send `calls` in one round trip, and return their answers."""
    pipe: Any = client.pipeline(transaction=False)
    for call in calls:
        pipe.evalsha(call.sha, *call.arguments)
    answers: list[Any] = pipe.execute()
    return answers


def _take_down(call: Callable[[], object]) -> TakenDown:
    try:
        call()
    except TakenDown as taken:
        return taken
    raise RuntimeError("the ledger asked Redis for nothing")
