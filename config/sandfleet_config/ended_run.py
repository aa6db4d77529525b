"""The summary of an ended run, as the history of the fleet reads it.

Whoever ends a run makes it (`run_summary`); `finish.lua` appends it to the stream `ended_runs`. It
has facts alone, never env, stdin or output, and at most `MAX_SUMMARY_BYTES`. Anybody who may write
Redis may have written it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Final, NoReturn, cast

from sandfleet_config.codes import CODE_NAME, Category, ErrorCode, read_code
from sandfleet_config.queues import JOB_ID

STREAM: Final = "ended_runs"
"""Key of the stream, after `KEY_PREFIX`; of the newest number, and of the forgotten batches."""
LAST: Final = "ended_runs:last"
FORGOTTEN: Final = "ended_runs:forgotten"
MAX_SUMMARY_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 120
"""Longest batch, queue, host or image, as JSON; see `cut_name`."""
MAX_TRIES: Final = 5
"""Attempts that are described: the first, and the newest."""
MAX_NUMBER: Final = 1 << 62
FINGERPRINT_DIGITS: Final = 12
STEPS: Final = ("queued", "image", "create", "run", "collect", "cleanup")
_MILLI: Final = 1000
_HASH_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Try:
    """An attempt of an ended run; times are unix times, 0.0 where they are not known."""

    host: str
    worker: str = ""
    code: str = ""
    started: float = 0.0
    ended: float = 0.0
    charged: bool = True
    slot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run as its summary tells it. When it ended is the time of its entry in the stream.

    `attempts` is their number; `tries` are the first and the newest of them. `steps` are seconds.
    """

    job_id: str
    run: int
    code: str
    category: str
    batch: str = ""
    queue: str = ""
    host: str = ""
    image: str = ""
    image_digest: str = ""
    spec_sha256: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    line: str = ""
    message: str = ""
    fingerprint: str = ""
    exit_code: int | None = None
    signal: int | None = None
    start: str = ""
    submitted: float = 0.0
    started: float = 0.0
    steps: Mapping[str, float] = field(default_factory=dict[str, float])
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    memory_bytes: int = 0
    attempts: int = 0
    tries: tuple[Try, ...] = ()


def cut_name(name: str) -> str:
    """Return the name as the history has it: a long one is cut, and ends with digits of its hash."""
    if len(name) <= MAX_NAME_BYTES and name.isascii() and _is_plain(name):
        return name
    if count_packed(name) <= MAX_NAME_BYTES:
        return name
    digits = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_HASH_DIGITS]
    return f"{cut_text(name, MAX_NAME_BYTES - _HASH_DIGITS - 1)}~{digits}"


def parse_summary(raw: bytes) -> EndedRun:
    """Return the run of a summary.

    Raises:
        ValueError: it is none; the message says why.
    """
    fields = _parse_object(raw)
    code = _read_code(fields)
    return EndedRun(
        job_id=_read_id(fields),
        run=max(1, _number(fields, "run")),
        code=code.value,
        category=code.category.value,
        batch=_text(fields, "batch"),
        queue=_text(fields, "queue"),
        host=_text(fields, "host"),
        image=_text(fields, "image"),
        image_digest=_text(fields, "digest"),
        spec_sha256=_text(fields, "spec"),
        labels=_read_labels(fields),
        line=_text(fields, "line"),
        message=_text(fields, "message"),
        fingerprint=_text(fields, "kind")[:FINGERPRINT_DIGITS],
        exit_code=_number_or_none(fields, "exit"),
        signal=_number_or_none(fields, "signal"),
        start=_text(fields, "start"),
        submitted=_number(fields, "submitted") / _MILLI,
        started=_number(fields, "started") / _MILLI,
        steps=_read_steps(fields),
        cpu_seconds=None if (cpu := fields.get("cpu")) is None else _check_seconds(cpu, "cpu"),
        memory_peak_bytes=_number_or_none(fields, "peak"),
        memory_bytes=_number(fields, "memory"),
        attempts=_number(fields, "attempts"),
        tries=_read_tries(fields),
    )


pack: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def count_packed(value: object) -> int:
    """Return the bytes of a text in JSON, without its quotes."""
    return len(pack(value).encode("utf-8", "replace")) - 2


def _is_plain(text: str) -> bool:
    return text.isprintable() and '"' not in text and "\\" not in text


def cut_text(text: str, max_bytes: int) -> str:
    """Return the beginning of `text` that takes at most `max_bytes` in JSON."""
    text = text[:max_bytes]
    while count_packed(text) > max_bytes:
        text = text[: len(text) * 3 // 4]
    return text


def _parse_object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_SUMMARY_BYTES:
        _refuse(f"it has {len(raw)} bytes")
    try:
        found: object = json.loads(raw)
    except (ValueError, RecursionError):
        _refuse("it is not JSON")
    if not isinstance(found, dict):
        _refuse("it is no object")
    return cast("dict[str, Any]", found)


def _refuse(why: str) -> NoReturn:
    raise ValueError(why) from None


def _read_id(fields: Mapping[str, Any]) -> str:
    found = fields.get("id")
    if not isinstance(found, str) or not JOB_ID.match(found):
        _refuse("it has no id of a job")
    return found


def _read_code(fields: Mapping[str, Any]) -> ErrorCode:
    found, category = fields.get("code"), fields.get("category")
    if not isinstance(found, str) or not CODE_NAME.fullmatch(found):
        _refuse("it has no code")
    return read_code(found, category if isinstance(category, str) else Category.HOST.value, None)


def _text(fields: Mapping[str, Any], name: str) -> str:
    found = fields.get(name, "")
    if not isinstance(found, str):
        _refuse(f"its {name} is no text")
    return _clean(found)


def _clean(text: str) -> str:
    """Return `text` without halves of UTF-16 pairs and NUL, which a database does not take."""
    return text if text.isprintable() else text.encode("utf-8", "replace").decode().replace("\0", "�")


def _number(fields: Mapping[str, Any], name: str) -> int:
    return _number_or_none(fields, name) or 0


def _number_or_none(fields: Mapping[str, Any], name: str) -> int | None:
    found = fields.get(name)
    return None if found is None else _check_number(found, name)


def _check_number(found: object, name: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= MAX_NUMBER:
        _refuse(f"its {name} is no such number")
    return found


def _check_seconds(found: object, name: str) -> float:
    """Return a number of seconds; NaN is none."""
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found <= MAX_NUMBER:
        _refuse(f"its {name} are no seconds")
    return float(found)


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    found: object = fields.get(name, [])
    if not isinstance(found, list):
        _refuse(f"its {name} are no list")
    return cast("list[object]", found)


def _read_labels(fields: Mapping[str, Any]) -> dict[str, str]:
    found: object = fields.get("labels", {})
    labels: dict[str, Any] = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": None}
    if not all(isinstance(value, str) for value in labels.values()):
        _refuse("its labels are no texts")
    return {_clean(key): _clean(value) for key, value in labels.items()}


def _read_steps(fields: Mapping[str, Any]) -> dict[str, float]:
    steps = zip(STEPS, _list(fields, "steps"), strict=False)
    return {name: _check_seconds(value, name) for name, value in steps if value is not None}


def _read_tries(fields: Mapping[str, Any]) -> tuple[Try, ...]:
    """Return the attempts. Their slots are beside them: earlier releases read the attempts alone."""
    slots = _list(fields, "slots")[:MAX_TRIES]
    numbers = [None if slot is None else _check_number(slot, "slot") for slot in slots]
    tries = [_read_try(item) for item in _list(fields, "tries")[:MAX_TRIES]]
    return tuple(replace(one, slot=slot) for one, slot in zip_longest(tries, numbers[: len(tries)]))


def _read_try(item: object) -> Try:
    parts: list[Any] = cast("list[object]", item) if isinstance(item, list) else []
    if len(parts) != 6:  # noqa: PLR2004  see `run_summary`
        _refuse("a try of it is none")
    host, worker, code, started, ended, charged = parts
    if not all(isinstance(text, str) for text in (host, worker, code)):
        _refuse("a try of it has no texts")
    times = [_check_number(value, "try") / _MILLI for value in (started, ended)]
    name = f"{host}.{worker}" if worker.isdigit() else worker
    return Try(_clean(host), _clean(name), _clean(code), times[0], times[1], bool(charged))
