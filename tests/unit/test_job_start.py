"""Which digest an image's name means for a job, before its start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rows import each_row
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.job_start import JobStart
from sandfleet_worker.sandbox.process.cancellation import Cancellation

DIGEST = f"sha256:{'a' * 64}"


def new_start(pinned: str, batch: str = "nightly", *, run: int = 1, earlier: str = "") -> JobStart:
    """Return a job's start: Redis has `pinned` for its batch, `earlier` for its earlier run."""
    intake: Any = SimpleNamespace(pin_image=lambda *_: pinned, read_pin=lambda _: earlier)
    claim = Claim("claim", "job", Flag.START, b"", run=run)
    start = JobStart(intake, intake, claim, Cancellation(), lambda: None)
    start.batch = batch
    return start


def test_the_batch_says_what_a_name_means() -> None:
    start = new_start(DIGEST)
    assert start.find_digest("python") == start.pinned == DIGEST
    assert new_start("").find_digest("python") == ""
    assert new_start(DIGEST, batch="").find_digest("python") == ""


def test_a_later_run_keeps_the_digest_of_the_earlier_one() -> None:
    other = f"sha256:{'b' * 64}"
    start = new_start("", batch="", run=2, earlier=DIGEST)
    assert start.find_digest("python") == start.pinned == DIGEST
    assert new_start("", run=2, earlier=DIGEST).find_digest("python") == DIGEST
    assert new_start(other, run=2, earlier=DIGEST).find_digest("python") == other, "the batch decides for all its jobs"
    assert new_start("", batch="", run=1, earlier=DIGEST).find_digest("python") == ""


@each_row("forged", ["../../../tmp/evil", "sha256:../x", DIGEST.upper(), "\x1b[2J"])
def test_what_is_no_digest_in_redis_is_refused(forged: str) -> None:
    for start in (new_start(forged), new_start("", batch="", run=2, earlier=forged)):
        with pytest.raises(ImageInvalid, match="which is no digest: submit again") as refused:
            start.find_digest("python")
        assert refused.value.message.isprintable()
