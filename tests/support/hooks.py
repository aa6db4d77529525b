"""Done batches, and senders of their webhooks: in this process, and as processes of their own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from receivers import SenderProcess, endpoint_env, write_secret
from sandfleet import Fleet, Outcome, SandboxSpec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_config.web_settings import WebSettings
from sandfleet_web.notify.endpoint import read_endpoints
from sandfleet_web.notify.queue import WebhookQueue
from sandfleet_web.notify.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.delivery.ledger import Ledger

SPEC = SandboxSpec(image="x", command=["true"], env=["KEY=s3cret-env"], labels={"name": "s3cret-label"})


class Hooks:
    """A fleet on a database of its own, and what is sent from it."""

    def __init__(self, url: str, fleet: Fleet, ledger: Ledger, folder: Path) -> None:
        self.url, self.fleet, self.ledger, self.folder = url, fleet, ledger, folder
        self._batches = 0
        self._processes: list[SenderProcess] = []

    def end_batch(self, endpoint: str = "ci", count: int = 2, name: str = "") -> str:
        """Submit a batch and end its jobs; return its name."""
        self._batches += 1
        name = name or f"batch-{self._batches}"
        self.fleet.submit_many([SPEC] * count, batch=name, on_done=endpoint)
        for number in range(count):
            claim, _ = self.ledger.claim(f"{name}-{number}", [DEFAULT_QUEUE])
            assert claim is not None
            assert self.ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0))
        return name

    def endpoint(self, port: int, **fields: Any) -> dict[str, Any]:
        """Return the settings of an endpoint on this machine."""
        secret = str(write_secret(self.folder))
        return {"url": f"http://127.0.0.1:{port}/hook", "secret_file": secret, "allow_private": True, **fields}

    @contextmanager
    def sender(self, endpoints: dict[str, dict[str, Any]], **settings: Any) -> Iterator[Sender]:
        """Run a sender in a thread of this process."""
        web = {"endpoints": endpoints, **settings}
        known = WebSettings.model_validate({"redis_url": SecretStr(self.url), "web": web})
        queue = WebhookQueue(known)
        sender = Sender(queue, read_endpoints(known), known.web)
        thread = threading.Thread(target=sender.run)
        thread.start()
        try:
            yield sender
        finally:
            sender.stop()
            thread.join(30)
            queue.close()
            assert not thread.is_alive()

    def start(self, endpoints: dict[str, dict[str, Any]], *, step: str = "", **settings: object) -> SenderProcess:
        """Start `sandfleet-web notify`; with `step`, it kills itself there."""
        log = self.folder / f"notify-{len(self._processes)}.log"
        self._processes.append(SenderProcess(endpoint_env(self.url, endpoints, **settings), log, step))
        return self._processes[-1]

    def close(self) -> None:
        for process in self._processes:
            process.close()
