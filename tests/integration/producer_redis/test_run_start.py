"""``sandfleet run`` imports what an outcome needs once its job is queued, and before it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import forget_jobs

if TYPE_CHECKING:
    import redis

PROGRAM = """
import os, sys
from sandfleet.cli import main, run
from sandfleet.fleet import Fleet
from sandfleet.job import Job

def has_outcome(*_):
    return 'sandfleet_config.outcome' in sys.modules

def submit_and_tell(*words, **options):
    job = submit(*words, **options)
    print('queued', has_outcome())
    return job

def tell_and_end(*_):
    print('waits', has_outcome(), flush=True)
    os._exit(0)

submit, Fleet.submit = Fleet.submit, submit_and_tell
Job.outcome = run.follow_job = tell_and_end
main()
"""


@pytest.mark.parametrize("options", [[], ["--live"]])
def test_an_outcome_is_imported_while_the_job_runs(redis_server: Any, client: redis.Redis, options: list[str]) -> None:
    env = os.environ | {"SANDFLEET_REDIS_URL": redis_server.url}
    command = [sys.executable, "-c", PROGRAM, "run", *options, "--", "true"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    forget_jobs(client)
    assert done.stdout.split() == ["queued", "False", "waits", "True"], done.stderr
