"""Failures of one kind have one fingerprint, whatever their numbers, ids and paths."""

from __future__ import annotations

import time

import pytest
from sandfleet_config.failure_kind import fingerprint_failure, generalize

SAME = [
    ("needs 512 MiB, host has 7.5 free", "needs 1024 MiB, host has 0.25 free"),
    ("no such file: /work/a/b.txt", "no such file: /data/other"),
    ("job 2f1c5a1e-9d0b-4c7e-8b1a-000000000000 died", "job aaaabbbb-9d0b-4c7e-8b1a-000000000001 died"),
    ("digest sha256:0a1b2c3d4e5f", "digest sha256:ffff2c3d4e50"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_failures_of_one_kind_have_one_fingerprint(one: str, other: str) -> None:
    assert generalize(one) == generalize(other)
    assert fingerprint_failure("TIMEOUT", one) == fingerprint_failure("TIMEOUT", other)


def test_other_kinds_have_others() -> None:
    kinds = {fingerprint_failure(code, text) for code in ("TIMEOUT", "INTERNAL") for text in ("", "a", "b")}
    assert len(kinds) == 6
    assert all(len(kind) == 12 for kind in kinds)
    assert fingerprint_failure("OK", "x") == ""
    assert generalize("accedes to defaced /") == "accedes to defaced /..."


def test_exit_codes_and_signals_are_kinds_of_their_own() -> None:
    for code, text in (("EXIT_NONZERO", "the program exited {}"), ("SIGNALED", "the program was killed by signal {}")):
        assert len({fingerprint_failure(code, text.format(number)) for number in (2, 3, 9)}) == 3


@pytest.mark.parametrize("text", ["/" * 500, "a-" * 250, "0-" * 250, "1." * 250, "deadbeef-" * 60])
def test_hostile_messages_take_little_time(text: str) -> None:
    begin = time.thread_time()
    for _ in range(10):
        generalize(text)
    assert time.thread_time() - begin < 0.1
