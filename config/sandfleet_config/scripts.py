r"""The Lua scripts that both sides run in Redis; each file says its arguments and what it answers.

Keys, all under `KEY_PREFIX`:

    <queue>, <queue>\x06\x16<step>   lists of messages, kombu's own: LPUSH in, RPOP out; steps 0, 3, 6, 9, smaller first
    job:<id>        hash: state queued|waiting|running|ended, queue, step, batch, key, fingerprint, expires (ms), queue_ttl (ms),
                    max_attempts, record, attempts (JSON list, from the first claim on; `charged` absent is true), code, claim,
                    owner, flag (start|cancelled|expired, while claimed), message (while it waits for another try), avoid,
                    avoid_until (the host of a failed attempt); submitted (ms), of a stock producer's job or of a later run;
                    suspect (JSON {host, boot, ms}: it may have killed its worker, after a run of so long), suspect_until (ms:
                    while it runs apart from other suspects); lost_waits (how many workers died while
                    it waited for its start); run (absent: 1); ended_by (the claim that ended the last run that
                    has ended), end_entry (of its end in ends:<batch>); needs (JSON, from the submit on: contract, image,
                    requires and the limits that it asks for, see `wire.encode_needs`); why, why_at (ms): why it waits in the
                    queue, as the host that looked at it last says; short_since (ms), kept_by: since when it has waited for
                    memory, and the host that keeps its own for it; refused_by (workers that could not run it, whatever they
                    had said of their hosts, a space after each). Waiting: claimed, and its program has not started;
                    running: it may have
    run:<n>:<id>    Celery's result record of run n of a job that was run again since, with the TTL that it had
    idem:<key>      the job id of an idempotency key
    cancel:<id>     the mark of a cancel
    batch:<name>    list of a batch's job ids, in the order of their submit
    ends:<name>     stream of its ends: id, run, code; one entry for each job that has ended, of its newest run
    counts:<name>   hash: how many of its jobs ended with each code; sealed ("1" once all are submitted), dropped, imported: see
                    batch_keys.lua
    done:<name>     list of ids as their first runs ended: producers of release e5bcdee read it, and its workers write it.
                    These four live for 30 days after the last submit or end, for result_ttl once all jobs have ended. What ended
                    so long ago that its record is gone is dropped from each as the batch goes on.
    queues          set of the queues that may hold jobs; wake: a stream that idle workers block on
    owners          sorted set: worker (host:pid:token) -> end of its lease (ms of Redis's clock)
    boot:<host>     the id of the host's boot: of a worker that died under another one, no job did it
    hosts           hash: worker -> what its host has (JSON: see placing.lua); images:<owner>: set of the names and digests of its
                    images. Both go with the lease, or 2 minutes after the last beat of their own
    keeps:<host>    the job that a host keeps its memory for: it takes no smaller one meanwhile. For 5 s, and again at each claim
    claims:<owner>  hash: claim id -> message; ids that begin with "taken-" are a dead worker's, not decided yet
    delayed         sorted set: job id -> when it may be tried again; expiring: job id -> end of its queue_ttl
    dead            sorted set of dead letters by time, dead:<id> a hash each: message, reason, code, at, queue, attempts,
                    batch, run
    dead_sizes      hash: job id -> bytes of its dead letter, dead_bytes: their sum; messages that are no job are not in it
    dead_dropped    how many letters were dropped before their time, since there were more than `MAX_DEAD_LETTERS`, or larger ones
    malformed       sorted set of those dead letters that are messages without a usable id, by time
    malformed_count how many such messages there were, kept or not
    settled:<claim> how a claim was settled, for who asks again: "given back", or "fenced" where it was not the caller's any more
    duplicates      stream of what did not count, one entry each: job, owner, claim, kind, code. Kind "outcome": a run's outcome
                    came after another worker had taken its job over; "run": such a run was killed, or had failed and would have
                    been tried again (code: why); "message": a second message of a job was dropped (code: a sentence)
    celery-task-meta-<id>   Celery's result record
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from sandfleet_config.errors import error_class

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome

PRIORITY_STEPS = (0, 3, 6, 9)
DEAD_TTL_SECONDS = 7 * 86400
MAX_DEAD_LETTERS = 10_000
MAX_DEAD_BYTES = 64 << 20
"""Of all dead letters together; the oldest go first."""
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@cache
def read_script(name: str, package: str = "sandfleet_config") -> str:
    """Return the text of the script ``lua/<name>.lua`` of `package`.

    A line ``-- include: part`` stands for the text of ``lua/part.lua``, of the same package or else of
    this one: ``prelude`` has the clock.
    """
    file = resources.files(package).joinpath("lua", f"{name}.lua")
    if not file.is_file():
        file = resources.files("sandfleet_config").joinpath("lua", f"{name}.lua")
    return _INCLUDE.sub(lambda found: read_script(found[1], package), file.read_text())


@cache
def step_of(priority: int) -> int:
    """Return the list a priority goes to: kombu's steps, 0 first."""
    return max(step for step in PRIORITY_STEPS if step <= priority)


def stored_result(outcome: Outcome, faults: Sequence[Mapping[str, str]] = ()) -> str:
    """Return `outcome` as the record that Celery's own backend would have stored for the task.

    `faults` are those of a refused request; without them, those of the outcome.
    """
    faults = faults or outcome.faults
    result = _encode(outcome)
    if not outcome.code.is_own_end:
        error = error_class(outcome.code)
        more = f",{json.dumps(list(faults))}" if faults else ""
        message = f"[{json.dumps(outcome.code.value)},{json.dumps(outcome.message)},{result}{more}]"
        result = f'{{"exc_type":"{error.__name__}","exc_message":{message},"exc_module":"{error.__module__}"}}'
    status = "SUCCESS" if outcome.code.is_own_end else "FAILURE"
    rest: dict[str, object] = {
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": outcome.job_id,
    }
    # The status first: a producer that has passed over the result to find it reads all of it twice.
    return f'{{"status":"{status}","result":{result},{json.dumps(rest)[1:]}'


def _encode(outcome: Outcome) -> str:
    try:
        # Twice as fast as plain values and `json`: each job pays for this.
        return outcome.model_dump_json()
    except ValueError:
        # Half a UTF-16 pair, which a file name of odd bytes becomes in a message. It is no UTF-8, but may be escaped.
        return json.dumps(outcome.to_json())
