"""Functions that a test makes fail, and that work again."""

from __future__ import annotations

from typing import Any


class Failing:
    """Stands for a function of a thread's that raises one error so many times, and then works."""

    def __init__(self, owner: Any, name: str, error: Exception, times: float) -> None:
        self._function, self._error, self._times = getattr(owner, name), error, times
        self.calls = 0
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return self._function(*args, **kwargs)


class Forward:
    """A bound method that can be replaced by name."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name

    def __call__(self, *args: Any) -> Any:
        return getattr(self._owner, self._name)(*args)
