"""Whether a job that ran into a limit is tried again with a higher one, and where it can be.

The spec's `retry_with` says how the limits rise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError
from sandfleet_config.units import format_limit
from sandfleet_config.wire import encode_needs, join_needs

from sandfleet_worker.delivery.claim import Flag
from sandfleet_worker.sandbox.policy import admit

if TYPE_CHECKING:
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import JobMessage
    from sandfleet_worker.host import Host


@dataclass(frozen=True)
class Raise:
    """The next attempt's `needs` (JSON) and its raised limits as text; or why no host allows them.

    Only live hosts count.
    """

    needs: str = ""
    text: str = ""
    refusal: str = ""


def find_raise(host: Host, message: JobMessage, claim: Claim, code: ErrorCode) -> Raise | None:
    """Return how the limits are raised after an end with `code`.

    None if they are not, or no attempt is left.
    """
    request = message.request
    if request is None or claim.flag is not Flag.START or claim.is_last_attempt:
        return None
    spec = request.spec.raised({code})
    if spec is request.spec:
        return None
    needs = join_needs(request.contract, encode_needs(spec))
    text = _describe(spec, request.spec)
    if _is_admitted(spec, host) or host.intake.has_other_host(needs, claim):
        return Raise(needs, text)
    return Raise(refusal=f"it was not tried again: no live host allows {text}, as retry_with asks")


def _is_admitted(spec: SandboxSpec, host: Host) -> bool:
    try:
        admit(spec, host.abilities.find_settings())
    except SandboxError:
        return False
    return True


def _describe(spec: SandboxSpec, before: SandboxSpec) -> str:
    if spec.resources.memory_bytes != before.resources.memory_bytes:
        return f"{format_limit('memory_bytes', spec.resources.memory_bytes)} of memory"
    return f"a timeout of {format_limit('timeout', spec.timeout)}"
