"""Keep redis-py from loading OpenTelemetry's metrics, which nobody reads in our programs.

redis-py 8 imports them where they are installed (`redis/observability/providers.py`): 30 ms of CPU
at each start of a command. `SANDFLEET_TRACES__ENDPOINT` needs OpenTelemetry, but none of that.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import MutableMapping

NOT_LOADED: Final = ("opentelemetry.sdk.metrics", "opentelemetry.metrics")


def skip_redis_telemetry() -> None:
    """Let imports of these modules fail, as if they were not installed. For ``main`` only."""
    modules = cast("MutableMapping[str, Any]", sys.modules)
    for name in NOT_LOADED:
        modules.setdefault(name, None)


def allow_telemetry() -> None:
    """Let them be imported again."""
    modules = cast("MutableMapping[str, Any]", sys.modules)
    for name in NOT_LOADED:
        if modules.get(name, "") is None:
            del modules[name]
