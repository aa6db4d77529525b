"""The commands of docs/reference/redis-protocol.md, by redis-cli and a shell, with a worker."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "redis-protocol.md"
SEND, READ, CANCEL, FOLLOW = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
SLEEP = ("echo hello; exit 3", "sleep 60")


@pytest.fixture
def socket(module_stage: Stage) -> str:
    """The path of the Redis that the worker uses."""
    assert module_stage.workers
    return module_stage.redis_url.removeprefix("unix://").partition("?")[0]


def run(socket: str, script: str) -> str:
    """Run a script of the page.

    ``redis-cli`` finds the test's Redis, as `REDISCLI_` variables would say for a real one.
    """
    function = f'redis-cli() {{ command redis-cli -s "{socket}" "$@"; }}\n'
    done = subprocess.run(["bash", "-euc", function + script], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def read_outcome(printed: str) -> Any:
    record = json.loads(printed.splitlines()[-1])
    return record["result"] if record["status"] == "SUCCESS" else record["result"]["exc_message"][2]


def test_a_job_is_sent_followed_and_read(socket: str) -> None:
    outcome = read_outcome(run(socket, SEND + READ))
    assert (outcome["code"], outcome["exit_code"], outcome["stdout"]["data"]) == ("EXIT_NONZERO", 3, "hello\n")


def test_a_batch_is_followed(module_stage: Stage, socket: str) -> None:
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        (job,) = fleet.submit_many([{"image": "busybox", "command": ["false"]}], batch="nightly")
        job.outcome(30)
    words = run(socket, FOLLOW).split()
    assert words[words.index("id") + 1] == job.id
    assert words[words.index("code") + 1] == "EXIT_NONZERO"


def test_the_key_of_the_outcome_is_written_at_the_end_only(socket: str) -> None:
    sent = SEND.replace(*SLEEP)
    state = run(
        socket,
        f'{sent}\nuntil [ "$(redis-cli hget sandfleet:job:$id state)" = running ]; do sleep 0.05; done\n'
        'redis-cli exists "sandfleet:celery-task-meta-$id"; echo "$id"',
    )
    found, job_id = state.split()[-2:]
    assert found == "0"
    outcome = read_outcome(run(socket, f"id={job_id}\n{CANCEL}{READ}"))
    assert (outcome["code"], len(outcome["attempts"])) == ("CANCELLED", 1)


def test_the_outcome_is_published(socket: str) -> None:
    job_id = "published-1"
    command = ["redis-cli", "-s", socket, "subscribe", f"sandfleet:celery-task-meta-{job_id}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        confirmed = [listener.stdout.readline().strip() for _ in range(3)]
        assert confirmed[0] == "subscribe"
        run(socket, re.sub(r"id=.*", f"id={job_id}", SEND, count=1))
        lines = [listener.stdout.readline().strip() for _ in range(3)]
        listener.kill()
    assert read_outcome(lines[2])["exit_code"] == 3
    assert lines[2] == run(socket, f"id={job_id}\n{READ}").strip()


def test_a_faulty_spec_is_told_by_its_field(socket: str) -> None:
    outcome = read_outcome(run(socket, SEND.replace('"busybox"', '""') + READ))
    assert outcome["code"] == "SPEC_INVALID"
    assert outcome["message"].startswith("image: ")


def test_a_message_that_is_no_job_is_a_dead_letter(socket: str) -> None:
    before = run(socket, "redis-cli zcard sandfleet:malformed")
    run(socket, "redis-cli lpush sandfleet:sandfleet nonsense")
    wait_until(lambda: run(socket, "redis-cli zcard sandfleet:malformed") != before, 10, "the dead letter")
    run(
        socket, "redis-cli --scan --pattern 'sandfleet:dead:message-*' | while read -r key; do redis-cli ttl $key; done"
    )
