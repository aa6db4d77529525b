"""The example of docs/how-to/send-from-outside.md works; a likely mistake gets a clear message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_events import Events
from sandfleet_config.queues import KEY_PREFIX, result_key
from waiting import wait_until

if TYPE_CHECKING:
    import pytest
    from stage import Stage, Stock

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "send-from-outside.md"


def test_the_example_of_the_page_runs_a_job(
    module_stage: Stage, stock: Stock, capfd: pytest.CaptureFixture[str]
) -> None:
    assert module_stage.workers
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "redis://127.0.0.1:6379/0" in code
    own: dict[str, object] = {}
    exec(code.replace("redis://127.0.0.1:6379/0", stock.app.conf.broker_url), own)  # noqa: S102  our own page
    app = own["app"]
    app.close()  # type: ignore[attr-defined]
    assert capfd.readouterr().out == "EXIT_NONZERO 3 hello\n\n"


def test_a_bare_spec_is_refused_with_an_example(module_stage: Stage, stock: Stock) -> None:
    assert module_stage.workers
    text = json.dumps({"image": "busybox", "command": ["true"]})
    result = stock.app.send_task("sandfleet.run", args=[text], queue="sandfleet", ignore_result=True)
    outcome = stock.outcome(result.id)
    assert outcome["code"] == "SPEC_INVALID"
    said = "contract: the version is missing, the argument is a bare spec: send "
    assert outcome["message"] == said + '{"contract": 1, "spec": {...}}'
    assert said.removesuffix(": send ") in PAGE.read_text()


def test_a_plain_task_is_started_before_it_has_a_result(module_stage: Stage, stock: Stock) -> None:
    """Celery's ``STARTED`` is an event; the result key is written at the end only."""
    assert module_stage.workers
    written: list[int] = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "task-started":
            written.append(stock.redis.exists(result_key(event["uuid"])))

    text = json.dumps({"contract": 1, "spec": {"image": "busybox", "command": ["sleep", "0.5"]}})
    with Events(stock.app, look) as events:
        result = stock.app.send_task("sandfleet.run", [text], queue="sandfleet")
        assert result.get(timeout=30)["code"] == "OK"
        kinds = ["task-received", "task-started", "task-succeeded"]
        wait_until(
            lambda: [event["type"] for event in events.seen if event.get("uuid") == result.id] == kinds, 10, "events"
        )
    assert written == [0]


def test_events_are_sent_as_json_without_spaces(module_stage: Stage, stock: Stock) -> None:
    assert module_stage.workers
    heard: list[dict[str, Any]] = []
    with stock.redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
        channel.psubscribe(f"{KEY_PREFIX}*celeryev/task.*")
        job_id = stock.submit("true")

        def is_heard() -> bool:
            if message := channel.get_message(timeout=0.1):
                heard.append(json.loads(message["data"]))
            return any(job_id in message["body"] and "task-succeeded" in message["body"] for message in heard)

        wait_until(is_heard, 30, "the job's last event")
    assert [message["properties"]["body_encoding"] for message in heard] == [None] * len(heard)
    body = heard[-1]["body"]
    assert body == json.dumps(json.loads(body), separators=(",", ":"))
