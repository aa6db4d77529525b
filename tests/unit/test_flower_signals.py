"""Flower ends at SIGTERM wherever its main thread is."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from sandfleet_worker.celery_worker.flower.app import stop_on_sigterm
from tornado.ioloop import IOLoop


class Signalling:
    """Gets SIGTERM while it is destroyed, where Python drops every exception."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_sigterm_in_a_destructor_stops_flower() -> None:
    def handle(*_: object) -> NoReturn:  # as Flower's own
        raise SystemExit(0)

    previous, loop = signal.signal(signal.SIGTERM, handle), IOLoop(make_current=False)
    late: list[float] = []

    def give_up() -> None:
        late.append(loop.time())
        loop.stop()

    try:
        stop_on_sigterm(loop)
        loop.add_callback(Signalling)
        loop.call_later(10, give_up)
        loop.start()
    finally:
        loop.close(all_fds=True)
        signal.signal(signal.SIGTERM, previous)
    assert not late, "SIGTERM was lost"
