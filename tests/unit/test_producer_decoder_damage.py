"""Damaged results are read as pydantic reads them."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import Outcome
from sandfleet.channel.decoder import decode_outcome
from stored_outcomes import OK, OOM, assert_same, encode, parse_by_pydantic

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBERS = ["-0", "-0.0", "1", "1.0", "1.5", "1E2", "1e400", "-1e400", "1e-400", "1" + "0" * 400, "9007199254740993"]
NUMBERS += [
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "01",
    "1.",
    ".5",
    "+1",
    "NaN",
    "Infinity",
]
TEXTS = ["", "x", "1", "true", "null", "OK", "ok", "NEW_CODE", "host", "soft", "base64", "utf-16", "\n", "\x7f"]
TEXTS += [r"\ud800", r"\udc00x", r"\ud83d\ude00", r"\q", r"\u0000", "1767225600", "2026-01-01", "2026-01-01T00:00"]
TEXTS += ["2026-01-01T00:00:00Z", "2026-01-01 00:00:00+02:00", "2026-01-01T00:00:00-0530", "2026-01-01T00:00:00,5z"]
TEXTS += ["2026-01-01T24:00:00Z", "2026-01-01T23:59:60Z", "2026-02-29T00:00:00Z", "0000-01-01T00:00:00Z"]
TEXTS += ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999-01:00"]
OTHERS = [
    "null",
    "true",
    "tru",
    "[]",
    "[1]",
    '["a"]',
    "[[]]",
    "{}",
    '{"a": 1}',
    '{"a": "b", "a": "c"}',
    '{"a": null}',
    "",
]
OTHERS += ["1,", "[" * 3000 + "]" * 3000, '{"a": ' * 3000 + "1" + "}" * 3000, '{"value": 1, "enforced": 1}']
VALUES = ["true", '"1"', "null", "NaN", "1e400", "1" * 30]
OTHERS += ['{"x": {"enforced": true}}', *(f'{{"x": {{"value": {value}, "enforced": true}}}}' for value in VALUES)]
DAMAGES = [*NUMBERS, *(f'"{text}"' for text in TEXTS), *OTHERS]


def find_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*place, key)
        yield from find_places(item, (*place, key))


def open_at(record: dict[str, Any], place: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Return the record's JSON before and behind the value at `place`."""
    changed = copy.deepcopy(record)
    target: Any = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = "@@"
    before, _, behind = json.dumps(changed).encode().partition(b'"@@"')
    return before, behind


@pytest.mark.parametrize("outcome", [OK, OOM], ids=["success", "failure"])
def test_nothing_is_decoded_that_pydantic_refuses_or_reads_otherwise(outcome: Outcome) -> None:
    record = json.loads(encode(outcome, newer={"a": ["b"]}))
    decoded = refused = 0
    for place in find_places(record):
        before, behind = open_at(record, place)
        for text in DAMAGES:
            raw = b"%s%s%s" % (before, text.encode(), behind)
            found = decode_outcome(raw)
            if found is None:
                refused += 1
                continue
            decoded += 1
            assert_same(found, parse_by_pydantic(raw))
    assert decoded > 500
    assert refused > 2000


def test_records_with_a_byte_too_few_too_many_or_another_are_read_as_pydantic_reads_them() -> None:
    raw, chance = encode(OK), random.Random(7)  # noqa: S311  a sample
    for at in range(0, len(raw), 7):
        assert decode_outcome(raw[:at]) is None
    for _ in range(2000):
        at = chance.randrange(len(raw))
        byte = bytes([chance.choice(b'"\\{}[],:-.01eEntu\n\x00')])
        changed = raw[:at] + byte + raw[at + chance.choice((0, 1, 2)) :]
        found = decode_outcome(changed)
        if found is not None:
            assert_same(found, parse_by_pydantic(changed))
