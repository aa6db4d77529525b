"""Asynchronous twins of calls that ask Redis or the store once: the same call in a thread.

A call that waits for jobs has no thread while it waits: see `sandfleet.collect.steps`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Owner = TypeVar("Owner")
Params = ParamSpec("Params")
Result = TypeVar("Result")


def in_thread(
    call: Callable[Concatenate[Owner, Params], Result],
) -> Callable[Concatenate[Owner, Params], Coroutine[Any, Any, Result]]:
    """Return the asynchronous twin of a method: same arguments, same result, same errors.

    A twin that is cancelled raises at once; its call goes on to its end in the other thread.
    """

    async def twin(self: Owner, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return await asyncio.to_thread(call, self, *args, **kwargs)

    twin.__module__ = call.__module__
    twin.__name__ = f"{call.__name__}_async"
    twin.__qualname__ = f"{call.__qualname__}_async"
    twin.__doc__ = f"Do what `{call.__name__}` does and leave the event loop free."
    return twin
