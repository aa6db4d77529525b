"""Which jobs that have not ended match the words of a filter."""

from __future__ import annotations

import pytest
from sandfleet.channel.job_facts import FACT_FIELDS, JobFacts, parse_facts
from sandfleet.history.open_filter import may_be_open, names_jobs, takes_open
from sandfleet.history.words import Words, format_words, parse_words

NOW = 1_800_000_000.0


def new_job(state: str = "running") -> JobFacts:
    values = [state.encode() if name == "state" else None for name in FACT_FIELDS]
    found = parse_facts("job-1", values)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "is_expected"),
    [
        ("", True), ("batch:b", True), ("state:running", True), ("state:running,ended", True), ("state:ended", False),
        ("code:TIMEOUT", False), ("state:running code:TIMEOUT", False), ("category:host", False), ("exit:3", False),
        ("fingerprint:abc", False), ("since:2h", False), ("state:queued until:1h", False),
    ],
)  # fmt: skip
def test_words_about_an_end_match_no_job_that_has_not_ended(text: str, *, is_expected: bool) -> None:
    words = parse_words(text, now=NOW)
    assert may_be_open(words) is is_expected
    if not is_expected:
        assert not takes_open(new_job("running"), words, NOW)
        assert not takes_open(new_job("queued"), words, NOW)


@pytest.mark.parametrize(
    ("text", "is_of_ended", "is_expected"),
    [
        ("", False, False), ('""', False, False), ("newest:yes", False, False), ("state:running", False, True),
        ("state:ended", True, False), ("newest:yes", True, False), ("batch:b", True, True), ("exit:0", True, True),
    ],
)  # fmt: skip
def test_words_that_leave_out_nothing_name_no_jobs(text: str, *, is_of_ended: bool, is_expected: bool) -> None:
    assert names_jobs(parse_words(text), is_of_ended=is_of_ended) is is_expected


def test_a_text_that_looks_like_a_word_stays_a_text() -> None:
    words = parse_words('"label.suite" "code:OK"')
    assert words.wanted.text == "label.suite code:OK"
    assert parse_words(format_words(words)) == words


def test_a_job_that_waits_on_a_host_is_of_that_host() -> None:
    words: Words = parse_words("host:host-1")
    assert not takes_open(new_job("waiting"), words, NOW)
    assert takes_open(new_job("waiting"), words, NOW, is_on_host=True)
