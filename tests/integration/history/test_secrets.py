"""Env, stdin and output of a job are neither in the stream nor in the file; its labels are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from past import STREAM, Past
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet.history.questions import HistoryFilter

if TYPE_CHECKING:
    from pathlib import Path

    from stage import Stage


def test_secrets_of_a_job_stay_out_of_the_history(module_stage: Stage, tmp_path: Path) -> None:
    script = 'echo "$KEY"; cat; echo s3cret-out; echo s3cret-err >&2; exit 3'
    spec = SandboxSpec.model_validate(
        {
            "image": "busybox",
            "command": ["sh", "-c", script.replace("s3cret", "s3c''ret"), "--token=s3cret-arg"],
            "env": {"KEY": "s3cret-env"},
            "stdin": "s3cret-in\n",
            "labels": {"owner": "l4bel"},
        }
    )
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        outcome = fleet.submit(spec, batch="secrets").outcome(60)
        assert {"s3cret-env", "s3cret-in", "s3cret-out"} <= set(outcome.stdout.text.split())
        past = Past(module_stage.redis_url, fleet, None, tmp_path)
        try:
            past.write_all()
            (row,) = past.history.find_runs(HistoryFilter(batch="secrets")).rows
            past.fold_journal()
            stored = past.file.read_bytes()
            sent = repr(past.redis.xrange(STREAM)).encode()
        finally:
            past.close()

    assert (row.code, row.exit_code, row.labels) == ("EXIT_NONZERO", 3, {"owner": "l4bel"})
    for raw in (stored, sent):
        assert b"s3cret" not in raw
        assert b"l4bel" in raw


def test_a_run_of_a_real_worker_has_all_of_its_facts(module_stage: Stage, tmp_path: Path) -> None:
    spec = SandboxSpec.model_validate(
        {
            "image": "busybox",
            "command": ["sh", "-c", "exit 0"],
            "resources": {"memory_bytes": "64MiB"},
            "labels": {"a": "b"},
        }
    )
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        job = fleet.submit(spec, batch="facts")
        outcome = job.outcome(60)
        past = Past(module_stage.redis_url, fleet, None, tmp_path)
        try:
            past.write_all()
            (run,) = past.history.runs_of(job.id)
        finally:
            past.close()

    assert (run.code, run.exit_code, run.batch, run.queue) == ("OK", 0, "facts", "sandfleet")
    assert (run.image, run.host, run.image_digest) == ("busybox", outcome.host, outcome.image_digest)
    assert (run.memory_bytes, run.cpu_seconds is not None) == (64 << 20, True)
    assert run.line == "busybox sh -c 'exit 0'"
    assert outcome.spec_sha256.startswith(run.spec_sha256)
    assert run.steps["queued"] > 0
    assert run.steps["run"] > 0
    assert run.submitted <= run.started <= run.ended
    (attempt,) = run.attempts
    assert (attempt.host, attempt.code, attempt.worker) == (outcome.host, "OK", outcome.attempts[0].worker)
