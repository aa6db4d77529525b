"""The words of a filter: as people type them, and back."""

from __future__ import annotations

import random

import pytest
from sandfleet.history.questions import HistoryFilter
from sandfleet.history.words import Words, WordsInvalid, format_words, parse_words
from sandfleet_config.codes import Category, ErrorCode

NOW = 1_800_000_000.0


def test_every_word_of_the_grammar_is_read() -> None:
    text = (
        'batch:nightly code:timeout,WORKER_LOST category:host label.suite=s7 label."a b"="c d" host:host-07 queue:rl'
        " image:docker://python:3.13 state:ended exit:3 since:2h until:2027-01-15T08:00 attempts:>1 run:>10s out of"
    )

    words = parse_words(text, now=NOW)

    assert words.states == {"ended"}
    assert words.wanted == HistoryFilter(
        batch="nightly",
        codes=frozenset({"TIMEOUT", "WORKER_LOST"}),
        categories=frozenset({"host"}),
        labels={"suite": "s7", "a b": "c d"},
        host="host-07",
        queue="rl",
        image="docker://python:3.13",
        exit_code=3,
        since=NOW - 7200,
        until=NOW,
        min_attempts=2,
        min_seconds=10.0,
        text="out of",
    )


def test_no_words_leave_out_nothing() -> None:
    assert parse_words("  ").is_empty
    assert format_words(Words()) == ""


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cod:OK", "did you mean code:?"),
        ("http://x", 'quote text that has a colon: "http://x"'),
        ("code:TIMOUT", "did you mean TIMEOUT?"),
        ("category:hots", "did you mean HOST?"),
        ("state:ended,gone", "one of queued"),
        ("batch:", "batch: has no value"),
        ("batch:a batch:b", "give one batch only"),
        ("label.suite", "label.KEY=VALUE"),
        ("label.a=1 label.a=2", "no job has two values of label a"),
        ("exit:-1", "such as exit:3"),
        ("attempts:2", "such as attempts:>1"),
        ("run:10s", "such as run:>10s"),
        ("run:>soon", "such as run:>10s"),
        ("since:yesterday", "30m, 2h or 3d"),
        ('"open', "a quote is not closed"),
        ("x" * 5000, "at most 4000 characters"),
        ("newest:no", "takes yes"),
    ],
)
def test_a_wrong_word_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(WordsInvalid) as refused:
        parse_words(text, now=NOW)

    assert hint in str(refused.value)


def new_words(chance: random.Random) -> Words:
    def text(*, most: int = 12) -> str:
        return "".join(chance.choices("ab:\"\\ .=,é<>'%_", k=chance.randrange(most))).strip()

    def maybe(value: object) -> object:
        return value if chance.random() < 0.4 else None

    wanted = HistoryFilter(
        batch=text(),
        job_id=str(maybe("job-1") or ""),
        codes=frozenset(chance.sample(list(ErrorCode), chance.randrange(3))),
        categories=frozenset(chance.sample(list(Category), chance.randrange(3))),
        labels={key.replace("=", ""): text() for key in (text(), text()) if key.replace("=", "")},
        host=text(),
        queue=text(),
        image=text(),
        exit_code=chance.randrange(256) if maybe(1) else None,
        fingerprint=str(maybe("0123abcd") or ""),
        text=" ".join(text().split()),
        since=NOW - chance.randrange(10**6) / 8 if maybe(1) else None,
        until=NOW + chance.randrange(10**6) if maybe(1) else None,
        min_attempts=chance.randrange(4),
        min_seconds=chance.choice((0.0, 0.5, 10.0, 3600.0, 0.001)),
        is_newest=chance.random() < 0.3,
    )
    return Words(wanted, frozenset(chance.sample(("queued", "running", "ended"), chance.randrange(3))))


@pytest.mark.parametrize("seed", range(200))
def test_the_words_of_any_filter_are_read_back_as_that_filter(seed: int) -> None:
    words = new_words(random.Random(seed))  # noqa: S311  no secret

    assert parse_words(format_words(words), now=NOW) == words
