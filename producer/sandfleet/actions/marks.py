"""Cordon, drain and pause: acts that take capacity away, and give it back."""

from __future__ import annotations

from typing import Final

from sandfleet_config.queues import check_queue

from sandfleet.actions.actor import Acts, check_host, check_text
from sandfleet.actions.results import ActionResult, HostPreview, QueuePreview
from sandfleet.channel.fleet_state import Cordon, Pause
from sandfleet.errors import ActionRefused

HOUR_SECONDS: Final = 3600
DAY_SECONDS: Final = 86400
MAX_DRAIN_SECONDS: Final = 30 * DAY_SECONDS


class MarkActs(Acts):
    """Acts on hosts and queues. Marks are durable: they outlive workers, Redis and us."""

    def preview_host(self, host: str) -> HostPreview:
        """Return what runs on a host now, and its mark.

        Raises:
            ActionRefused: it is no name of a host.
        """
        check_host(host)
        summary = self._channel.fleet_state.read_summary()
        workers = [worker for worker in summary.workers if worker.host == host and worker.state != "late"]
        return HostPreview(
            host=host,
            is_known=bool(workers),
            workers=len(workers),
            running=sum(worker.running for worker in workers),
            waiting=sum(worker.waiting for worker in workers),
            cordon=next((cordon for cordon in summary.cordons if cordon.host == host), None),
        )

    def cordon(self, host: str, reason: str) -> ActionResult:
        """Let a host start no more jobs; what runs goes on. A drain becomes a cordon.

        Raises:
            ActionRefused: the reason is missing, the name is no host's, or too many are marked.
        """
        return self._mark_host("cordon", check_host(host), check_text(reason, "reason"), None)

    def drain(self, host: str, reason: str, deadline_seconds: float) -> ActionResult:
        """Cordon a host, and give back after `deadline_seconds` what still runs there.

        Raises:
            ActionRefused: as `cordon`, or the deadline is none from 0 s to 30 days.
        """
        if not 0 <= deadline_seconds <= MAX_DRAIN_SECONDS:
            raise ActionRefused("a drain's deadline is from 0 seconds to 30 days")
        return self._mark_host("drain", check_host(host), check_text(reason, "reason"), deadline_seconds)

    def _mark_host(self, action: str, host: str, reason: str, deadline_seconds: float | None) -> ActionResult:
        preview, now = self.preview_host(host), self._channel.fleet_state.read_summary().at
        deadline = None if deadline_seconds is None else now + deadline_seconds
        try:
            self._channel.fleet_state.cordon(Cordon(host, self._actor.name, now, reason, deadline))
        except ValueError as error:
            raise ActionRefused(str(error)) from None
        result = preview.text if deadline_seconds is None else f"deadline in {deadline_seconds:g} s; {preview.text}"
        self._note(action, f"host:{host}", count=preview.running, reason=reason, result=result)
        return ActionResult(done=1, text=result)

    def uncordon(self, host: str, reason: str = "") -> ActionResult:
        """Let a host start jobs again, also in the middle of a drain; nothing happens without a mark.

        Raises:
            ActionRefused: it is no name of a host.
        """
        known = check_text(reason, "reason", is_needed=False)
        was_marked = self._channel.fleet_state.uncordon(check_host(host))
        return self._note_removal("uncordon", f"host:{host}", known, f"{host} was not cordoned", is_done=was_marked)

    def preview_queue(self, queue: str) -> QueuePreview:
        """Return how many jobs wait in a queue, and how many would expire while it is paused.

        Raises:
            ActionRefused: no queue can have this name.
        """
        _check_queue(queue)
        state = self._channel.fleet_state
        summary = state.read_summary()
        found = next((known for known in summary.queues if known.name == queue), None)
        return QueuePreview(
            queue=queue,
            waiting=found.total if found else 0,
            expire_in_hour=state.count_expiring(queue, summary.at + HOUR_SECONDS),
            expire_in_day=state.count_expiring(queue, summary.at + DAY_SECONDS),
            pause=found.pause if found else None,
        )

    def pause(self, queue: str, note: str) -> ActionResult:
        """Let no job of a queue start; submits go on, and jobs expire as ever.

        Raises:
            ActionRefused: the note is missing, the name is no queue's, or too many are paused.
        """
        known, preview = check_text(note, "note"), self.preview_queue(queue)
        now = self._channel.fleet_state.read_summary().at
        try:
            self._channel.fleet_state.pause(Pause(queue, self._actor.name, now, known))
        except ValueError as error:
            raise ActionRefused(str(error)) from None
        self._note("pause", f"queue:{queue}", count=preview.waiting, reason=known, result=preview.text)
        return ActionResult(done=1, text=preview.text)

    def resume(self, queue: str, note: str = "") -> ActionResult:
        """Let jobs of a queue start again; nothing happens if it is not paused.

        Raises:
            ActionRefused: no queue can have this name.
        """
        known = check_text(note, "note", is_needed=False)
        was_paused = self._channel.fleet_state.resume(_check_queue(queue))
        return self._note_removal("resume", f"queue:{queue}", known, f"{queue} was not paused", is_done=was_paused)

    def _note_removal(self, action: str, target: str, reason: str, why_not: str, *, is_done: bool) -> ActionResult:
        result = "the mark is gone" if is_done else why_not
        self._note(action, target, reason=reason, result=result)
        return ActionResult(done=int(is_done), skipped=int(not is_done), text=result)


def _check_queue(name: str) -> str:
    try:
        return check_queue(name)
    except ValueError as error:
        raise ActionRefused(str(error)) from None
