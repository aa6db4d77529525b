"""The words of a filter, such as ``batch:nightly code:TIMEOUT label.suite=s7 run:>10s "out of"``.

Pages, links and the command line have the same words. A word without a key is text to look for. A
value with spaces is quoted, as is text that has a colon.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.units import parse_seconds

from sandfleet.history.questions import HistoryFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_CHARS: Final = 4000
STATES: Final = ("queued", "waiting", "running", "ended")
LABEL: Final = "label."
_WORD: Final = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+')
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KEY: Final = re.compile(r"([a-z]+)([:.])(.*)", re.DOTALL)
_PLAIN: Final = re.compile(r"[^\s\"\\:]+")
_S = TypeVar("_S", bound=str)


class WordsInvalid(ValueError):
    """A word of a filter cannot be read; the message says how it is written."""


@dataclass(frozen=True)
class Words:
    """A filter as it was typed: `wanted` of ended runs, and `states` of jobs as Redis has them."""

    wanted: HistoryFilter = HistoryFilter()  # noqa: RUF009  frozen
    states: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether it leaves out nothing."""
        return self == Words()


def parse_words(text: str, *, now: float | None = None) -> Words:
    """Parse the words of a filter; times such as ``2h`` count from `now`.

    Raises:
        WordsInvalid: a word cannot be read.
    """
    if len(text) > MAX_CHARS:
        raise WordsInvalid(f"a filter has at most {MAX_CHARS} characters")
    words = _WORD.findall(text)
    if _WORD.sub("", text).strip():
        raise WordsInvalid("a quote is not closed")
    found = Words()
    at = time.time() if now is None else now
    for word in words:
        found = _add_word(found, word, at)
    return found


def format_words(words: Words) -> str:
    """Return the words that `parse_words` parses as the same filter."""
    wanted = words.wanted
    parts = [
        *_list_named({"batch": wanted.batch, "job": wanted.job_id}),
        *_list_named({"code": ",".join(sorted(wanted.codes)), "category": ",".join(sorted(wanted.categories))}),
        *(format_label(key, value) for key, value in sorted(wanted.labels.items())),
        *_list_named({"host": wanted.host, "queue": wanted.queue, "image": wanted.image}),
        *_list_named({"state": ",".join(sorted(words.states)), "fingerprint": wanted.fingerprint}),
        *([] if wanted.exit_code is None else [f"exit:{wanted.exit_code}"]),
        *([] if wanted.since is None else [f"since:{format_time(wanted.since)}"]),
        *([] if wanted.until is None else [f"until:{format_time(wanted.until)}"]),
        *([f"attempts:>{wanted.min_attempts - 1}"] if wanted.min_attempts else []),
        *([f"run:>{f'{wanted.min_seconds:.6f}'.rstrip('0').rstrip('.')}s"] if wanted.min_seconds else []),
        *(["newest:yes"] if wanted.is_newest else []),
        *([format_text(wanted.text)] if wanted.text else []),
    ]
    return " ".join(parts)


def format_word(key: str, value: str) -> str:
    """Return a word with a key, such as ``batch:nightly``; a value with spaces is quoted."""
    return f"{key}:{_quote(value)}"


def format_text(text: str) -> str:
    """Return the words of a text to look for: quoted, or it might be read as a word with a key."""
    return f'"{_escape(text)}"'


def format_label(key: str, value: str) -> str:
    """Return the word of a label, such as ``label.suite=s7``."""
    return f"{LABEL}{_quote(key)}={_quote(value)}"


def find_names(names: Iterable[str], known: Sequence[_S], kind: str) -> frozenset[_S]:
    """Return the members of `known` that are called so, without regard to case.

    Raises:
        WordsInvalid: there is none; the message names those that are.
    """
    return frozenset(_find_name(name, known, kind) for name in names)


def parse_time(text: str, now: float) -> float:
    """Return the unix time of ``2h`` (so long before `now`), a day or an ISO 8601 time in UTC.

    Raises:
        WordsInvalid: it is none of these.
    """
    try:
        return now - parse_seconds(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise WordsInvalid(
            f"{_show(text)} is no time: write 30m, 2h or 3d for so long ago, or 2026-01-31T12:00 in UTC"
        ) from None


def format_time(at: float) -> str:
    """Return a unix time as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _add_word(found: Words, word: str, now: float) -> Words:
    key, separator, value = _split(word)
    if not separator:
        text = f"{found.wanted.text} {value}" if found.wanted.text else value
        return replace(found, wanted=replace(found.wanted, text=text))
    if not value:
        raise WordsInvalid(f"{key}: has no value")
    if key == "label":
        return replace(found, wanted=replace(found.wanted, labels=_add_label(found.wanted.labels, value)))
    if key == "state":
        return replace(found, states=found.states | find_names(_split_list(value), STATES, "state"))
    if key not in _READERS:
        near = difflib.get_close_matches(key, [*_READERS, "label", "state"], 1)
        hint = f"did you mean {near[0]}:?" if near else f"there are {', '.join(_READERS)}, label.KEY=, state"
        raise WordsInvalid(
            f'there is no {_show(key)}: in a filter ({hint}); quote text that has a colon: "{_show(word)}"'
        )
    return replace(found, wanted=_READERS[key](found.wanted, value, now))


def _split(word: str) -> tuple[str, str, str]:
    """Return key, separator and value of a word, unquoted; text has neither key nor separator."""
    parts = _KEY.fullmatch(word)
    if parts is None or (parts[2] == "." and parts[1] != "label"):
        return "", "", _unquote(word)
    return parts[1], parts[2], _unquote(parts[3])


def _add_label(labels: Mapping[str, str], word: str) -> dict[str, str]:
    key, separator, value = word.partition("=")
    if not separator or not key:
        raise WordsInvalid("a label is written label.KEY=VALUE")
    if labels.get(key, value) != value:
        raise WordsInvalid(f"no job has two values of label {_show(key)}")
    return {**labels, key: value}


def _read_codes(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    return replace(wanted, codes=wanted.codes | find_names(_split_list(value), list(ErrorCode), "code"))


def _read_categories(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    return replace(wanted, categories=wanted.categories | find_names(_split_list(value), list(Category), "category"))


def _read_exit(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    if not value.isdecimal() or len(value) > len("255"):
        raise WordsInvalid("exit: takes the number of an exit code, such as exit:3")
    return replace(wanted, exit_code=int(value))


def _read_attempts(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    found = re.fullmatch(r">(=?)(\d{1,3})", value)
    if found is None:
        raise WordsInvalid("attempts: takes a least number, such as attempts:>1")
    return replace(wanted, min_attempts=int(found[2]) + (not found[1]))


def _read_run(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    try:
        seconds = parse_seconds(value.removeprefix(">").removeprefix("="))
    except ValueError:
        seconds = math.nan
    if not value.startswith(">") or not math.isfinite(seconds):
        raise WordsInvalid("run: takes a least duration, such as run:>10s")
    return replace(wanted, min_seconds=seconds)


def _read_newest(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
    if value != "yes":
        raise WordsInvalid("newest: takes yes, and leaves out runs that a later one replaced")
    return replace(wanted, is_newest=True)


def _one(name: str) -> Callable[[HistoryFilter, str, float], HistoryFilter]:
    def read(wanted: HistoryFilter, value: str, _: float) -> HistoryFilter:
        if getattr(wanted, name) not in ("", value):
            raise WordsInvalid(f"give one {name.removesuffix('_id')} only")
        changes: dict[str, Any] = {name: value}
        return replace(wanted, **changes)

    return read


_READERS: Final[Mapping[str, Callable[[HistoryFilter, str, float], HistoryFilter]]] = {
    "batch": _one("batch"),
    "job": _one("job_id"),
    "code": _read_codes,
    "category": _read_categories,
    "host": _one("host"),
    "queue": _one("queue"),
    "image": _one("image"),
    "fingerprint": _one("fingerprint"),
    "exit": _read_exit,
    "since": lambda wanted, value, now: replace(wanted, since=parse_time(value, now)),
    "until": lambda wanted, value, now: replace(wanted, until=parse_time(value, now)),
    "attempts": _read_attempts,
    "run": _read_run,
    "newest": _read_newest,
}


def _find_name(name: str, known: Sequence[_S], kind: str) -> _S:
    found = next((one for one in known if one.casefold() == name.casefold()), None)
    if found is None:
        near = difflib.get_close_matches(name.upper(), [one.upper() for one in known], 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
        raise WordsInvalid(f"there is no {kind} {_show(name)}: {hint}")
    return found


def _split_list(value: str) -> list[str]:
    return [part for part in value.split(",") if part]


def _unquote(text: str) -> str:
    return _QUOTED.sub(lambda found: re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL), text)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _quote(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else f'"{_escape(text)}"'


def _list_named(values: Mapping[str, str]) -> list[str]:
    return [format_word(name, value) for name, value in values.items() if value]


def _show(text: str) -> str:
    return ascii(text[:80])[1:-1]
