"""Call in another thread what may hang, so that its caller can leave it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

POLL_SECONDS: Final = 0.1


class _Call(Generic[T]):
    """A call and its end."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self._results.append(self._act())
        except BaseException as error:  # noqa: BLE001  the caller raises it
            self._error = error
        finally:
            self.ended.set()

    def get(self) -> T:
        if self._error is not None:
            raise self._error
        return self._results[0]


def call_detached(act: Callable[[], T], pause: Callable[[float], object]) -> T:
    """Return what `act` returns, and raise what it raises.

    It runs in a thread that does not keep the process from its end: a request to a server that no
    longer answers cannot be cancelled. `pause` is called with 0 a few times a second; what it
    raises is raised, and leaves `act` to itself.
    """
    call = _Call(act)
    try:
        threading.Thread(target=call.run, name="store", daemon=True).start()
    except RuntimeError:  # no thread is left
        return act()
    while not call.ended.wait(POLL_SECONDS):
        pause(0)
    return call.get()
