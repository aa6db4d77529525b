"""The audit: who did what, to how many jobs, and why."""

from __future__ import annotations

import re
from typing import Any, Final

from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.paging import ROWS

ENTRY: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}\Z")


class AuditPage(PageHandler):
    """The newest acts first."""

    async def get(self) -> None:
        """Show a page of them."""
        before = self.argument("before")
        await self.answer(self._new_page(before if ENTRY.match(before) else ""))

    async def _new_page(self, before: str) -> Page:
        site = self.site
        read = site.sources.state.read_audit
        entries = await site.reads.read(("audit", before, ROWS), lambda: read(ROWS + 1, before))
        has_more = len(entries) > ROWS
        shown = entries[:ROWS]
        values: dict[str, Any] = {"entries": shown, "next": shown[-1].entry_id if has_more else "", "before": before}
        return Page("audit.html", "Audit", "Audit", values, refresh=15, uses_history=False)
