from __future__ import annotations

import sys
from typing import Literal

from rows import each_row
from sandfleet_worker.sandbox.process.capture import Capture


def captured(data: bytes, limit: int, keep: Literal["head", "tail", "both"], chunk: int = 7) -> Capture:
    capture = Capture(limit, keep)
    for start in range(0, len(data), chunk):
        capture.feed(data[start : start + chunk])
    return capture


@each_row("keep", ["head", "tail", "both"])
@each_row("chunk", [1, 7, 1000])
def test_output_within_the_limit_is_kept_unchanged(keep: Literal["head", "tail", "both"], chunk: int) -> None:
    data = bytes(range(256)) * 2
    output = captured(data, 512, keep, chunk).to_output()
    assert output.bytes == data
    assert (output.total_bytes, output.truncated, output.encoding) == (512, False, "base64")


def test_head_and_tail_are_cut_to_the_cap() -> None:
    data = b"abcdefghij" * 100
    assert captured(data, 10, "head").to_output().bytes == b"abcdefghij"
    assert captured(data, 15, "tail").to_output().bytes == b"fghijabcdefghij"
    output = captured(data, 10, "tail").to_output()
    assert (output.total_bytes, output.truncated) == (1000, True)


def test_both_says_how_much_is_missing() -> None:
    output = captured(b"a" * 500 + b"b" * 500, 20, "both").to_output()
    assert output.text == "a" * 10 + "\n... 980 bytes omitted ...\n" + "b" * 10
    assert output.truncated
    longer = captured(b"a" * 21, 20, "both").to_output()
    assert (len(longer.bytes) > longer.total_bytes, longer.truncated) == (True, True)


def test_a_cut_character_does_not_turn_text_into_base64() -> None:
    text = "äöü€" * 100
    for limit in range(20, 40):
        for keep in ("head", "tail", "both"):
            output = captured(text.encode(), limit, keep).to_output()
            assert output.encoding == "utf-8", (limit, keep)


def test_memory_stays_bounded_with_chunks_of_any_size() -> None:
    capture = Capture(1000, "both")
    for _ in range(100_000):
        capture.feed(b"x")
    assert capture.total_bytes == 100_000
    assert sys.getsizeof(capture._head) + sys.getsizeof(capture._tail) < 4000
