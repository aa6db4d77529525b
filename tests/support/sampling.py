"""Sample something in a thread while a block runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self

POLL_SECONDS = 0.01


class Sampling(ABC):
    """Calls `sample` again and again from ``with`` to its end."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.sample()

    @abstractmethod
    def sample(self) -> None:
        """Look once."""
