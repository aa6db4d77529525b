"""A sender of webhooks that kills itself by SIGKILL at one step: `dying_sender.py STEP`.

It is `sandfleet-web notify` but for that. It ends when it has come to the step for the second time,
so that another webhook is behind that step already, or for the first time at ``taken``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from sandfleet_web.cli import main
from sandfleet_web.notify import sender
from sandfleet_web.notify.connecting import CheckedBackend, DeadlineStream
from sandfleet_web.notify.queue import WebhookQueue

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS: Final[dict[str, tuple[Any, str, bool]]] = {
    "before it takes": (WebhookQueue, "take", False),
    "taken": (WebhookQueue, "take", True),
    "before it connects": (CheckedBackend, "connect_tcp", False),
    "connected": (CheckedBackend, "connect_tcp", True),
    "half of the request sent": (DeadlineStream, "write", True),
    "request sent": (DeadlineStream, "read", False),
    "answered": (sender, "send", True),
    "recorded": (WebhookQueue, "settle", True),
}
"""By step: where the function is, its name, and whether the process dies after the call."""
AT_FIRST: Final = {"taken"}
_lock = threading.Lock()


def dying(step: str, call: Callable[..., Any], *, is_after: bool) -> Callable[..., Any]:
    """Return `call` with a death before or after it."""
    left = 1 if step in AT_FIRST else 2

    def die(found: object) -> None:
        nonlocal left
        if step == "taken" and not found[0]:  # type: ignore[index]
            return
        with _lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def replaced(*args: Any, **options: Any) -> Any:
        if not is_after:
            die(None)
        found = call(*args, **options)
        if is_after:
            die(found)
        return found

    return replaced


if __name__ == "__main__":
    step = sys.argv[1]
    place, name, is_after = STEPS[step]
    setattr(place, name, dying(step, getattr(place, name), is_after=is_after))
    main(["notify"])
