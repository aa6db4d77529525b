"""`Actor`: who acts, and the line that each act leaves in the audit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet.channel.fleet_state import MAX_NOTE, AuditEntry
from sandfleet.errors import ActionRefused

if TYPE_CHECKING:
    from sandfleet.channel.protocol import Channel

log = logging.getLogger(__name__)
OPERATOR: Final = "operator"
MAX_NAME: Final = 253
"""Longest name of a host."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who acts: name, role (``viewer`` or ``operator``), and ``cli`` or ``web``."""

    name: str
    role: str = OPERATOR
    via: str = "cli"


class Acts:
    """The part that all acts share."""

    def __init__(self, channel: Channel, actor: Actor) -> None:
        """Act on a fleet.

        Raises:
            ActionRefused: the actor's role may not act.
        """
        if actor.role != OPERATOR:
            raise ActionRefused(f"{check_text(actor.name, 'name')} is a {actor.role}, and only operators act")
        check_text(actor.name, "name")
        self._channel, self._actor = channel, actor

    def _note(self, action: str, target: str, *, count: int = 0, reason: str = "", result: str = "") -> None:
        """Append the act to the audit, and log it."""
        actor = self._actor
        entry = AuditEntry(
            by=actor.name,
            role=actor.role,
            via=actor.via,
            action=action,
            target=target[:MAX_NOTE],
            count=count,
            reason=reason,
            result=result[:MAX_NOTE],
        )
        facts = {"action": action, "user": actor.name, "target": entry.target, "count": count, "reason": reason}
        log.info(
            "%s: %s %s: %s", actor.name, action, entry.target, entry.result, extra=facts | {"result": entry.result}
        )
        self._channel.fleet_state.add_audit(entry)


def check_text(text: str, kind: str, *, is_needed: bool = True) -> str:
    """Return a reason, a note or a name without spaces around it.

    Raises:
        ActionRefused: it is missing, too long, or has control characters.
    """
    found = text.strip()
    if is_needed and not found:
        raise ActionRefused(f"say why: the {kind} is missing" if kind != "name" else "the name is missing")
    if len(found) > MAX_NOTE:
        raise ActionRefused(f"the {kind} has {len(found)} characters, {MAX_NOTE} are the most")
    if not found.isprintable():
        raise ActionRefused(f"the {kind} must be one line without control characters")
    return found


def check_host(name: str) -> str:
    """Return the name of a host.

    Raises:
        ActionRefused: no host can have it.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable() or any(sign.isspace() for sign in name):
        raise ActionRefused(f"{name[:MAX_NAME]!a} is no name of a host: see `sandfleet hosts`")
    return name
