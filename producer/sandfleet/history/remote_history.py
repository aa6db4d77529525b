"""`RemoteHistory`: the history of a `sandfleet-web` over HTTP, with a token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from sandfleet.errors import HistoryUnavailable, QueryTooSlow
from sandfleet.history.fields import read_failure, read_point, read_run, read_status, read_times, read_usage
from sandfleet.history.questions import (
    FailureGroup,
    FailureKey,
    HistoryFilter,
    HistoryStatus,
    PastPage,
    PastRun,
    RollupKey,
    RollupPoint,
    RunTimes,
    UsageKey,
    UsageRow,
)
from sandfleet.history.words import Words, format_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from http.client import HTTPMessage
    from pathlib import Path

API_PATH: Final = "/fleet/api/v1"
TIMEOUT_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_TOKEN_BYTES: Final = 4096
_T = TypeVar("_T")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token goes to the address that was set, and to no other."""

    def redirect_request(  # noqa: PLR0917  urllib calls it
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Return no other request: the answer is an error."""


class RemoteHistory:
    """Asks the `sandfleet-web` at `url`, such as ``https://fleet.example``; safe for threads.

    `token_file` has the token on its first line. It is read for each question, so that a new token
    counts at once.
    """

    def __init__(self, url: str, token_file: Path | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise HistoryUnavailable("SANDFLEET_WEB_URL must be http://HOST:PORT or https://HOST, without a user")
        self._url, self._token_file, self._timeout = url.rstrip("/"), token_file, timeout_seconds
        self._opener = urllib.request.build_opener(_NoRedirect)

    def status(self) -> HistoryStatus:
        """Return how old and how complete it is."""
        return self._ask("history", {}, read_status)

    def find_runs(self, wanted: HistoryFilter, *, count: int = 50, cursor: str = "") -> PastPage:
        """Return the runs that match, newest end first.

        Raises:
            ValueError: `cursor` is none.
        """
        query = {"q": _words(wanted), "count": str(count), "cursor": cursor}
        return self._ask("jobs", query, lambda raw: PastPage(tuple(map(read_run, raw["jobs"])), str(raw["cursor"])))

    def count_runs(self, wanted: HistoryFilter) -> int:
        """Return how many match, at most `MAX_DEPTH` + 1."""
        return self._ask("count", {"q": _words(wanted)}, lambda raw: int(raw["count"]))

    def runs_of(self, job_id: str) -> Sequence[PastRun]:
        """Return the ended runs of a job, the newest first."""
        return self._ask("job", {"id": job_id}, lambda raw: [read_run(item) for item in raw["runs"]])

    def find_failures(
        self, wanted: HistoryFilter, *, by: FailureKey = "fingerprint", count: int = 100
    ) -> Sequence[FailureGroup]:
        """Group the runs that match and did not end OK, the largest group first."""
        query = {"q": _words(wanted), "by": by, "count": str(count)}
        return self._ask("failures", query, lambda raw: [read_failure(item) for item in raw["failures"]])

    def roll_up(self, by: RollupKey, *, since: float, until: float, step_seconds: int = 60) -> Sequence[RollupPoint]:
        """Count the ended runs of each step of time."""
        query = {"by": by, "since": repr(since), "until": repr(until), "step": str(step_seconds)}
        return self._ask("rollup", query, lambda raw: [read_point(item) for item in raw["points"]])

    def find_usage(
        self, by: UsageKey, wanted: HistoryFilter, *, label: str = "", count: int = 100
    ) -> Sequence[UsageRow]:
        """Sum up use, the most CPU first; `label` is the label's key."""
        query = {"q": _words(wanted), "by": by, "label": label, "count": str(count)}
        return self._ask("usage", query, lambda raw: [read_usage(item) for item in raw["usage"]])

    def find_times(self, wanted: HistoryFilter) -> Sequence[RunTimes]:
        """Return the times of all runs that match, then by code."""
        return self._ask("times", {"q": _words(wanted)}, lambda raw: [read_times(item) for item in raw["times"]])

    def _ask(self, name: str, query: Mapping[str, str], read: Callable[[Any], _T]) -> _T:
        """Ask, and read the answer.

        Raises:
            HistoryUnavailable, QueryTooSlow or ValueError: as `History` says.
        """
        given = {key: value for key, value in query.items() if value}
        address = f"{self._url}{API_PATH}/{name}?{urlencode(given)}"
        headers = {"Accept": "application/json", **self._read_token()}
        request = urllib.request.Request(address, headers=headers)  # noqa: S310  the scheme was checked
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                raw: bytes = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_refusal(error.code, error.read(MAX_ANSWER_BYTES))
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise HistoryUnavailable(f"cannot reach {self._url} ({reason}): check SANDFLEET_WEB_URL") from error
        try:
            return read(json.loads(raw))
        except (ValueError, TypeError, KeyError) as error:
            raise HistoryUnavailable(f"{self._url} gave an answer that is none: is it sandfleet-web?") from error

    def _read_token(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            with self._token_file.open("rb") as file:
                token = file.read(MAX_TOKEN_BYTES).split(b"\n", 1)[0].strip().decode("ascii")
        except OSError as error:
            raise HistoryUnavailable(f"SANDFLEET_WEB_TOKEN_FILE: {self._token_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable() or " " in token:
            raise HistoryUnavailable(f"SANDFLEET_WEB_TOKEN_FILE: {self._token_file} has no token on its first line")
        return {"Authorization": f"Bearer {token}"}

    def _raise_refusal(self, status: int, raw: bytes) -> NoReturn:
        """Raise the error that an answer tells."""
        kind, message = _parse_error(raw)
        if status in (401, 403):
            raise HistoryUnavailable(f"{self._url} refuses the token: set SANDFLEET_WEB_TOKEN_FILE to a file with one")
        if kind == "too_slow":
            raise QueryTooSlow(message)
        if status == 400:  # noqa: PLR2004  Bad Request
            raise ValueError(message or "the question was refused")
        raise HistoryUnavailable(f"{self._url} answers {status}: {message or 'is it sandfleet-web?'}")


def _words(wanted: HistoryFilter) -> str:
    return format_words(Words(wanted))


def _parse_error(raw: bytes) -> tuple[str, str]:
    """Return kind and message of an error of the API, both empty if it is none."""
    try:
        found: object = json.loads(raw)
    except ValueError:
        return "", ""
    fields = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return str(fields.get("error", "")), str(fields.get("message", ""))[:500]
