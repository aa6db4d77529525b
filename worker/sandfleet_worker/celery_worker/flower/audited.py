"""The line in the fleet's audit that an act on Flower's own pages leaves."""

from __future__ import annotations

import base64
from typing import Any

from sandfleet_config.audit import MAX_TEXT
from tornado import web

from sandfleet_worker.delivery.outages import REDIS_ERRORS


class Audited:
    """A handler that acts: each act leaves a line in the fleet's audit."""

    def read_reason(self, *, is_needed: bool) -> str:
        """Return the reason that was given.

        Raises:
            tornado.web.HTTPError: 400, it is missing, too long, or not one line.
        """
        handler: Any = self
        reason = handler.get_argument("reason", "").strip()
        if is_needed and not reason:
            raise web.HTTPError(400, "say why: the reason is missing")
        if len(reason) > MAX_TEXT or not reason.isprintable():
            raise web.HTTPError(400, f"the reason must be one line of at most {MAX_TEXT} characters")
        return str(reason)

    async def note(self, action: str, target: str, reason: str, result: str) -> str:
        """Leave the line, in the name of the user who asks; return `result`, and whether that failed."""
        handler: Any = self
        fields = {
            "by": self._name_user(),
            "role": "operator",
            "via": "flower",
            "action": action,
            "target": target,
            "count": "1",
            "reason": reason,
            "result": result,
        }
        try:
            await handler.run_blocking(
                f"audit.{action}", target, handler.application.add_audit, fields, connection_errors=REDIS_ERRORS
            )
        except web.HTTPError as error:  # it is done all the same
            return f"{result}; this left no line in the audit: {error.log_message or error}"
        return result

    def _name_user(self) -> str:
        """Return the name of a login; Flower itself only knows that there was one."""
        handler: Any = self
        if isinstance(handler.current_user, str):
            return handler.current_user
        kind, _, text = handler.request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return "flower"
        try:
            name = base64.b64decode(text).decode().partition(":")[0]
        except ValueError:
            return "flower"
        return name if name.isprintable() else "flower"
