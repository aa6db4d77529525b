"""Acts: first the count and a question, then, by POST, the act and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet.channel.fleet_state import MAX_NOTE
from sandfleet_config.units import parse_seconds
from tornado import web

from sandfleet_web.pages.acts import MAX_AT_ONCE, TYPED_ABOVE, VERBS, Preview, Verb, Wish
from sandfleet_web.pages.handler import MAX_ARGUMENT, Page, PageHandler
from sandfleet_web.pages.text import clean, link

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS: Final = ("target", "batch", "job", "code")
MAX_SEEN_SECONDS: Final = 3600.0
"""How long a shown count may be acted on."""


class ActPage(PageHandler):
    """Asks, and acts."""

    async def get(self) -> None:
        """Show what would be done."""
        if self.viewer is None or not self.viewer.may_act:
            raise web.HTTPError(403, reason="Viewers may not act")
        await self.answer(self._ask(self.get_query_argument))

    async def post(self) -> None:
        """Do it, if it still may be done as it was shown."""
        await self.answer(self._act())

    async def _ask(self, read: Callable[..., str | None], fault: str = "", status: int = 200) -> Page:
        verb, wish = self._read_wish(read)
        preview = await self.site.reads.run(lambda: self.site.sources.acts.preview(wish))
        values: dict[str, Any] = {
            "verb": verb,
            "wish": wish,
            "preview": preview,
            "fault": fault,
            "typed": preview.count > TYPED_ABOVE,
            "limit": MAX_AT_ONCE,
            "seen": f"{self.site.clock():.3f}",
            "back": _find_back(wish, verb),
        }
        return Page("ask.html", verb.title, "", values, refresh=0, status=status, uses_history=False)

    async def _act(self) -> Page:
        read = self.get_body_argument
        verb, wish = self._read_wish(read)
        if not self.site.clock() - MAX_SEEN_SECONDS < wish.seen <= self.site.clock() + 1:
            return await self._ask(read, "What was shown is too old: look again.", 409)
        if verb.takes_away and not wish.reason:
            return await self._ask(read, "A reason is needed: it takes capacity or work away.", 400)
        fault = await self._check_count(wish, read("typed", "") or "", read("shown", "") or "")
        if fault:
            return await self._ask(read, fault, 400)
        viewer = self.viewer
        if viewer is None:
            raise web.HTTPError(401)
        done = await self.site.reads.run(lambda: self.site.sources.acts.perform(wish, viewer))
        self.site.reads.forget()
        values: dict[str, Any] = {"verb": verb, "wish": wish, "done": done, "back": _find_back(wish, verb)}
        return Page("done.html", verb.title, "", values, refresh=0, uses_history=False)

    async def _check_count(self, wish: Wish, typed: str, shown: str) -> str:
        """Return why a large act is not done: the number that was shown must be typed.

        More than were shown are acted on by a cancel alone: jobs of a batch that runs come and go.
        """
        if VERBS[wish.verb].target not in {"jobs", "dead letters"}:
            return ""
        is_shown = shown.isdecimal() and len(shown) < len("1000000000")
        is_typed = is_shown and (int(shown) <= TYPED_ABOVE or typed.replace(",", "").strip() == shown)
        if wish.verb == "cancel" and is_typed:
            return ""  # it is not counted again: whole queues take a while
        preview: Preview = await self.site.reads.run(lambda: self.site.sources.acts.preview(wish))
        told = int(shown) if is_shown else preview.count
        if told > TYPED_ABOVE and typed.replace(",", "").strip() != str(told):
            return f"Type the number of jobs, {preview.count:,}: it was not typed."
        if wish.verb != "cancel" and preview.count > told:
            return f"{preview.count:,} match now, more than the {told:,} that were shown."
        return ""

    def _read_wish(self, read: Callable[..., str | None]) -> tuple[Verb, Wish]:
        """Read what is asked for.

        Raises:
            tornado.web.HTTPError: there is no such act, or it has no target.
        """
        given = {name: (read(name, "") or "").strip() for name in (*FIELDS, "verb", "q", "reason", "deadline", "seen")}
        if any(len(value) > MAX_ARGUMENT for value in given.values()):
            raise web.HTTPError(400, reason="A field is too long")
        verb = VERBS.get(given["verb"])
        if verb is None:
            raise web.HTTPError(400, reason="There is no such act")
        is_of_target = verb.target in {"host", "queue"}
        if is_of_target and not given["target"]:
            raise web.HTTPError(400, reason=f"Which {verb.target}?")
        if verb.target == "jobs" and not any(given[name] for name in ("batch", "job", "q")):
            raise web.HTTPError(400, reason="An empty filter would be all jobs: name a batch, a job or a search")
        return verb, Wish(
            verb=given["verb"],
            **{name: given[name] for name in FIELDS},
            words=given["q"],
            reason=given["reason"][:MAX_NOTE],
            deadline_seconds=_parse_deadline(given["deadline"]) if given["verb"] == "drain" else None,
            seen=_parse_seen(given["seen"]),
        )


def _parse_deadline(text: str) -> float:
    try:
        return min(max(0.0, parse_seconds(text or "30m")), 7 * 86400.0)
    except ValueError as error:
        raise web.HTTPError(400, reason=clean(f"deadline: {error}", 200)) from None


def _parse_seen(text: str) -> float:
    try:
        return float(text) if text and len(text) < 20 else 0.0  # noqa: PLR2004
    except ValueError:
        return 0.0


def _find_back(wish: Wish, verb: Verb) -> str:
    """Return the page that the act was asked for on."""
    if verb.target in {"host", "queue"}:
        return link(verb.target, name=wish.target)
    if wish.job:
        return link("job", id=wish.job)
    if wish.batch:
        return link("batch", name=wish.batch)
    return link("jobs", q=wish.words) if wish.words else "failures"
