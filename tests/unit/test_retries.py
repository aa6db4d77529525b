"""The number of runs that a job may have after the soak's retries."""

from __future__ import annotations

from retries import Retries


def test_a_job_has_as_many_runs_as_retries_were_started() -> None:
    found = Retries()
    found.asked["clicked"] |= {1, 2}  # two producers at once count as one: both saw the same run
    found.answered["clicked"] |= {1, 2}
    found.asked["unanswered"].add(1)
    found.queued["batch"] = 1
    found.unsure["again"] = 1
    found.lost["b"] = 1
    batch_of = {"lost": "b", "never": "a"}
    allowed = {"clicked": {3}, "unanswered": {1, 2}, "batch": {2}, "again": {1, 2}, "lost": {1, 2}, "never": {1}}
    for job_id, wanted in allowed.items():
        taken = {run for run in range(1, 5) if not found.find_miscounts({job_id: run}, batch_of)}
        assert taken == wanted, job_id
