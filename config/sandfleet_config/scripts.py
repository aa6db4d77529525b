r"""The Lua scripts that both sides run in Redis. Each file says its arguments and its answers.

Keys, all under `KEY_PREFIX`:

    <queue>, <queue>\x06\x16<step>   lists of messages, as kombu has them: LPUSH adds, RPOP takes;
                    steps 0, 3, 6 and 9, smaller first
    job:<id>        hash, the record of a job. From submit on: state (queued|waiting|running|ended;
                    a claimed job is waiting until its program may have started, then running),
                    queue, step, batch, key, fingerprint, expires (ms), queue_ttl (ms),
                    max_attempts, record, needs (JSON with contract, image, requires, datasets and
                    the limits it asks for: see `wire.encode_needs`). submitted (ms): of a stock
                    producer's job, or of a later run. Of the claim: claim, owner, flag
                    (start|cancelled|expired). Of attempts: attempts (JSON list, from the first
                    claim on; `charged` absent is true), message (while the job waits for another
                    attempt), avoid and avoid_until (the host of a failed attempt), suspect (JSON
                    {host, boot, ms}: the job may have killed its worker, after a run of so many
                    ms), suspect_until (ms: until then it runs apart from other suspects),
                    lost_waits (the number of workers that died before the job started). Of runs:
                    run (absent: 1), pin (the digest of the image that the earlier run had),
                    ended_by (the claim that ended the last ended run), code, end_entry (of its end
                    in ends:<batch>), in_queue (it ended in the queue, and its message is still
                    there), relisted ("1": it may be in batch:<name> twice, since a retry found no
                    record of it). Of placing: why and why_at (ms): why the job waits in the queue, as the
                    last host that checked it says; short_since (ms): since when it has waited for
                    memory; kept_by: the host that keeps its memory for it; refused_by: workers that
                    could not run it although they had announced that they could, with a space after
                    each. Of batches: parked (the sorted set that the queued job is in instead of a
                    list), place (its rank there), failed (the round in which its batch has counted
                    its failure), after (JSON: what it waits for), awaited ("1": others wait for
                    it). Of a later run: sha1 (of its message; a claim drops any other)
    run:<n>:<id>    Celery's result record of run n, of a job that was run again since; it keeps its
                    TTL
    spec:<id>       the message of a job whose newest run did not end OK, whole, so that a person
                    can run it again: with env and stdin. Lives as long as the outcome; never shown
    specs           sorted set: bytes and id of each kept message -> when it expires (ms).
                    specs_sum: hash, with bytes, of all of them (256 MiB at most, 16 MiB in a Redis
                    that is 80 % full; the oldest are dropped first), and dropped, how many were
                    dropped early or not kept
    idem:<key>      the job id of an idempotency key
    cancel:<id>     the cancel mark of a job
    batch:<name>    list of a batch's job ids, in the order of submit
    ends:<name>     stream of a batch's ends: id, run, code; one entry for each ended job, of its
                    newest run
    counts:<name>   hash: the number of jobs that ended with each code; sealed ("1" once all are
                    submitted), dropped, imported: see batch_keys.lua
    done:<name>     list of the ids of ended jobs, in the order of the ends of their first runs;
                    read by producers of release e5bcdee and written by its workers. These four live
                    for 30 days after the last submit or end, and for result_ttl once all jobs have
                    ended. Jobs whose records have expired are dropped from each while the batch is
                    used.
    batches         sorted set of the names of batches by their last submit or retry (ms): 10,000 at
                    most, for 30 days
    pins:<name>     hash: name of an image -> the digest that it means for all jobs of a batch, as
                    its first job found it; 1,000 names at most, jobs of more names look them up
                    each for itself. Lives as long as the batch
    on_done:<name>  hash: endpoint, the name of what a sender of webhooks tells when the batch is
                    done; told: the newest end that it was told of. Lives as long as the batch
    webhooks:due    sorted set: id of a webhook -> when a sender takes it next (ms); webhooks:dead:
                    sorted set of those that are given up, by time. At most 10,000 each; the oldest
                    go first
    webhook:<id>    hash, one webhook until it is delivered: batch, endpoint, at (ms), total, codes
                    (JSON). Of its attempts: attempts (their number), first (ms, of the first one),
                    token (of the sender that has it), reason (of the last failure). All keys of
                    webhooks expire after 8 days
    webhooks:awaiting   sorted set: batch with an endpoint that is not done -> when a sender checks
                    it next (ms), since workers of release e5bcdee queue no webhooks. At most 10,000
    webhooks:log    stream of attempts: id, batch, endpoint, result, reason; about the last 10,000
    limits:<batch>  hash, the limits of a batch: at_most, max_failures, fail_fast, deadline (ms),
                    deadline_ms and deadline_text (as it was asked for), kill, hold, failures (their
                    number), round (how often they were counted anew), stopped (why) and stop_code,
                    swept ("1": a sweep has ended what waited), next (the next place), awaited ("1":
                    others wait for the batch), set. active:<batch>: set of its jobs that workers
                    have, with at_most also of those that are let go: they have a place. Both expire
                    with the batch
    parked:<batch>  sorted set of its jobs that may not start now: job id -> step and place. Goes
                    with its last job
    limited         sorted set: batch with limits -> when a sweep checks it next (ms)
    after:<group>   hash: after (what the jobs of the group wait for, as JSON; the group is the
                    SHA-1 of it), next (the next place), "ok job <id>" and "ok batch <name>" for
                    what has ended OK. awaiting:<group>: sorted set of these jobs. awaited:job:<id>,
                    awaited:batch:<name>: sets of the groups that wait for it. All are deleted when
                    the group's jobs may start or have ended, or expire after 30 days
    groups          sorted set: group -> when a sweep checks it next (ms)
    live:<id>       stream, the newest output of a running job that asked for it (`output.live`):
                    stream (stdout|stderr), attempt, run, offset (of the first byte in all that the
                    attempt wrote there), data (bytes as they are). Of the newest attempt only, 1 MiB
                    at most; expires 10 minutes after the last write, and a silent job renews it
    live_streams:bytes   hash: job id -> what its stream counts; the field without a name has the
                    sum (64 MiB at most, 8 MiB in a Redis that is 80 % full; the streams that nobody
                    wrote to for longest go first). live_streams:expiring: sorted set of them -> when
                    (ms) it expires. Both expire with the last of them
    live_batch:<name>    sorted set: job id of a batch -> when (ms) its stream expires, which tells
                    readers what has grown. Expires with the last of them
    queues          set of the queues that may hold jobs; wake: a stream on which idle workers block
    owners          sorted set: worker (host:pid:token) -> end of its lease (ms of Redis's clock)
    boot:<host>     the id of the host's boot. The jobs of a worker that died under another boot id
                    are no suspects
    hosts           hash: worker -> what its host has (JSON: see placing.lua); images:<owner>: set
                    of the names and digests of its images, and of its datasets with /data/ before
                    each. Both are deleted with the lease, or expire 2 minutes after the worker's
                    last beat
    status:<owner>  what a worker said of itself at its last beat, as JSON of at most 2 KB: state
                    (up|cordoned|draining|drained|stopping), queues, slots and busy (of its host),
                    running, waiting, warm (spares by image), prepared (starts, misses by reason,
                    quarantined), load, memory_free, memory_budget, disk_free, version, runsc,
                    platform, started, unenforced, labels; at (ms). Expires after 3 leases
    running:<owner>   the jobs that a worker had then, as JSON: id, slot (-1: none), start (unix time;
                    0: it waits); 256 at most. Expires likewise
    host_images:<host>   the images of a host, as JSON: name, digest, bytes, last use (unix time); 200
                    at most. Written each minute; expires after 180 s
    cordons         hash: host that starts no more jobs -> JSON with by, at, reason, and of a drain
                    deadline (unix time). paused: hash: queue of which no job starts -> JSON with by,
                    at, note. At most 10,000 each; no TTL: an operator takes a mark away
    audit           stream of what operators did: by, role, via, action, target, count, reason,
                    result; about the last 10,000. Expires a year after the last
    keeps:<host>    the job for which a host keeps its memory: it takes no smaller job meanwhile.
                    Expires after 5 s, and is renewed at each claim
    claims:<owner>  hash: claim id -> message. An id with "taken-" at its start is a claim of a dead
                    worker that was taken over and is not decided yet
    delayed         sorted set: job id -> when it may be tried again; expiring: job id -> end of its
                    queue_ttl
    dead            sorted set of dead letters by time; dead:<id>: hash of each, with message,
                    reason, code, at, queue, attempts, batch, run, image_digest (of the image that
                    it ran)
    dead_sizes      hash: job id -> bytes of its dead letter; dead_bytes: their sum. Messages that
                    are no job do not count
    dead_dropped    the number of dead letters that were dropped before their TTL, because the
                    number or the size of all was above its bound (`MAX_DEAD_LETTERS`,
                    `MAX_DEAD_BYTES`)
    malformed       sorted set by time of those dead letters that are messages without a usable id
    malformed_count the number of such messages, kept or not
    settled:<claim> how a claim was settled, for a repeated call: "given back", or "fenced" if it
                    was no longer the caller's
    store:refs      sorted set: SHA-256 of an object -> until when (ms) jobs refer to it. An entry
                    goes a day after that time, the set with its last entry
    store:pins      sorted set without scores: SHA-256 and owner, such as "image:python", of objects
                    that the store keeps until they are unpinned. No TTL
    shared_images   hash: name of an image that hosts may take from the store -> its digest, the
                    SHA-256 of the object with its facts, which has that of the image file. At most
                    1000 names. No TTL
    shared_images:earlier   sorted set: such a name and a digest that it had before -> until when
                    (ms) hosts take that, too: two days. At most 1000. It lives as long as the last
                    of them
    store:deleting  sorted set: SHA-256 of an object that the garbage collector is deleting -> until
                    when (ms) uploads of it wait
    store:fleet     the id of this fleet, which the store it collects garbage in has, too. No TTL
    store:object:<sha256>   an object of the store in Redis, of 1 MiB at most. It expires a day
                    after its reference
    store:sizes     hash: SHA-256 of each such object -> its bytes; sum -> their sum.
                    store:expiring: sorted set of them -> when (ms) it expires. Both live as long as
                    the longest of them
    duplicates      stream of runs and messages that did not count: job, owner, claim, kind, code.
                    Kind "outcome": an outcome came after another worker had taken the job over.
                    "run": such a run was killed, or failed and would have been tried again, or
                    Redis has lost how it ended; the code says why. "message": a second message of a job was dropped; code is a
                    sentence
    ended_runs      stream of ended runs, from which the history is made: n, the number of the run, and
                    run, its summary (JSON of at most 1 KiB: see ended_run.py), never env, stdin or
                    output. 64 MiB at most, 8 MiB in a Redis that is 80 % full; expires 7 days after
                    one of the last 32 ends
    ended_runs:last   the number of the newest ended run. One that the stream does not have is lost to
                    the history. Expires 30 days after one of the last 32 ends. One that is no number,
                    below 1 or above 10^15 is made anew by the next end, with one number left out; so
                    is a stream of another type
    ended_runs:forgotten   sorted set: name of a forgotten batch -> when (ms): the history deletes its
                    runs that ended before. At most 10,000, for 40 days after the last
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
"""Size of all dead letters together; the oldest are dropped first."""
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@cache
def read_script(name: str, package: str = "sandfleet_config") -> str:
    """Return the text of the script ``lua/<name>.lua`` of `package`.

    A line ``-- include: part`` stands for the text of ``lua/part.lua``, of the same package or else
    of this one: ``prelude`` has the clock.
    """
    file = resources.files(package).joinpath("lua", f"{name}.lua")
    if not file.is_file():
        file = resources.files("sandfleet_config").joinpath("lua", f"{name}.lua")
    return _INCLUDE.sub(lambda found: read_script(found[1], package), file.read_text())


@cache
def step_of(priority: int) -> int:
    """Return kombu's step of `priority`, which names the list of its messages; 0 comes first."""
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
    # The status comes first: a producer's decoder needs it before the result.
    return f'{{"status":"{status}","result":{result},{json.dumps(rest)[1:]}'


def _encode(outcome: Outcome) -> str:
    try:
        # Twice as fast as plain values and `json`; every job is encoded here.
        return outcome.model_dump_json()
    except ValueError:
        # Half a UTF-16 pair, from a file name that is not UTF-8. JSON can escape it.
        return json.dumps(outcome.to_json())
