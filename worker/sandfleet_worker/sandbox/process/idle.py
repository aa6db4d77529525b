"""The idle time of a sandbox: its sentry is stopped where it would poll, and resumed for a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.sentry import Sentry

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.runsc import SandboxPaths


class IdleState:
    """Whether one sandbox is warm: up, idle, and stopped where that is needed."""

    def __init__(self, paths: SandboxPaths) -> None:
        self._paths = paths
        self._sentry: Sentry | None = None
        self.is_warm = False

    def stop(self) -> bool:
        """Tell the sentry to stop; return False if it cannot be found.

        `check_stopped` sees the stop. The sentry of runsc 20240729 polls: each idle sandbox takes 2
        % of a core (gVisor issue 13361). Stopped it takes none.
        """
        self._sentry = Sentry.find(self._paths)
        return self._sentry is not None and self._sentry.stop()

    @property
    def is_stopping(self) -> bool:
        """Whether the sentry was told to stop, and has not been seen stopped yet."""
        return self._sentry is not None and not self.is_warm

    def check_stopped(self) -> bool:
        """Mark the sandbox as warm if its sentry has stopped; False if that takes too long."""
        assert self._sentry is not None
        self.is_warm = self._sentry.is_stopped
        return self.is_warm or not self._sentry.is_late

    def mark_warm(self) -> bool:
        """Mark a sandbox as warm whose sentry need not stop; return False if it cannot be found."""
        self._sentry = Sentry.find(self._paths)
        self.is_warm = self._sentry is not None
        return self.is_warm

    def resume(self) -> bool:
        """Resume the sentry for a job; return False if it has died, or is about to."""
        if self._sentry is None:
            return True
        if not self._sentry.is_told_to_stop:
            return not self._sentry.is_dying
        return (self._sentry.is_stopped or not self.is_warm) and self._sentry.resume()

    def close(self) -> None:
        """Close the hold on the sentry; idempotent."""
        if self._sentry is not None:
            self._sentry.close()
            self._sentry = None
