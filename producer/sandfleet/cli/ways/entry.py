"""One job that a way of submit found, before it is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Entry(NamedTuple):
    """The fields of a spec, and where they were read.

    `place` is for people, such as ``line 3``. `most_bytes` is an upper bound of the encoded spec
    without its files. Fields that the spec's model has checked already may be its own objects.
    """

    place: str
    fields: dict[str, Any]
    most_bytes: int


class Fault(NamedTuple):
    """A mistake at one place of the input."""

    place: str
    text: str

    def __str__(self) -> str:
        """Return it as one line for people."""
        return f"{self.place}: {self.text}" if self.place else self.text


class InputInvalid(Exception):
    """The input of a submit is faulty; `faults` has every mistake. Nothing was queued."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


class Faults(list[Fault]):
    """The mistakes of several parts of the input, which are told together."""

    def collect(self, read: Callable[[], T]) -> T | None:
        """Return what `read` returns; if it raises `InputInvalid`, add its faults and return None."""
        try:
            return read()
        except InputInvalid as error:
            self += error.faults
            return None

    def new_error(self) -> InputInvalid:
        """Return the error that has all of them."""
        return InputInvalid(*self)
