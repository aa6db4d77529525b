"""Flower shows the true end of each job, no secret, and no button that does nothing."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flower.urls import handlers as stock_routes
from flower.urls import settings
from flower_pages import MARKER, PASSWORD, TOKEN, Flower, running_flower
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.app import new_app
from sandfleet_worker.celery_worker.flower.pages import WORDS
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage, Stock

OPEN = ("/healthcheck", "/static/", "/login", "/logout", "/.*")
"""Paths that need no password: health check, Flower's style sheets, paths without a page here."""


@pytest.fixture(scope="module")
def flower(module_stage: Stage) -> Iterator[Flower]:
    with running_flower(module_stage) as page:
        yield page


@pytest.fixture(scope="module")
def jobs(flower: Flower, stock: Stock) -> dict[str, str]:
    """Run one job of each kind, and wait until Flower knows their ends."""
    commands: dict[str, tuple[list[str], dict[str, Any]]] = {
        "OK": (["sh", "-c", "echo $SECRET; cat"], {"labels": {"name": "sieve", "suite": "s7"}}),
        "EXIT_NONZERO exit 2": (["sh", "-c", "echo $SECRET; cat; exit 2"], {"labels": {"suite": "s8"}}),
        "TIMEOUT: ": (["sh", "-c", "cat; sleep 60"], {"timeout": 0.3}),
        "SPEC_INVALID: ": (["true"], {"timeout": -1}),
        "IMAGE_NOT_FOUND: ": (["true"], {"image": "nowhere"}),
    }
    secrets = {"env": [f"SECRET={MARKER}"], "stdin": MARKER}
    found = {
        end: stock.submit(*command, fields=secrets | fields, batch="nightly build")
        for end, (command, fields) in commands.items()
    }
    found["OK, alone"] = stock.submit("true")
    for job_id in found.values():
        stock.outcome(job_id)

    def all_ended() -> bool:
        tasks = flower.get_json("/api/tasks")
        return all(tasks.get(job_id, {}).get("state") in {"SUCCESS", "FAILURE"} for job_id in found.values())

    wait_until(all_ended, 20, "Flower has heard of every end")
    return found


def test_every_page_needs_the_password(flower: Flower) -> None:
    paths = [route[0] if isinstance(route, tuple) else route.regex.pattern.rstrip("$") for route in stock_routes]
    paths = [path if path.startswith("/") else f"/{path}" for path in paths]
    assert {"/metrics", "/tasks", "/broker", "/api/tasks"} <= set(paths)

    closed = [re.sub(r"\(.*\)", "x", path) for path in paths if not path.startswith(OPEN)]
    answers = {path: (flower.ask(path)[0], flower.ask(path, b"")[0]) for path in closed}

    assert len(answers) >= 25
    # 405: there is no such method, with or without a password.
    assert {path: found for path, found in answers.items() if 401 not in found or not set(found) <= {401, 405}} == {}


def test_healthcheck_needs_no_password_and_says_only_ok(flower: Flower) -> None:
    assert flower.ask("/healthcheck") == (200, "OK")


def test_metrics_need_the_password_or_the_token(flower: Flower) -> None:
    status, text = flower.ask("/metrics")
    assert (status, "flower_" in text) == (401, False)
    for password in (PASSWORD, f"Bearer {TOKEN}"):
        status, text = flower.ask("/metrics", password=password)
        assert (status, "flower_worker_online" in text) == (200, True)
    for wrong in ("Bearer", "Bearer ", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer tök"):
        assert flower.ask("/metrics", password=wrong)[0] == 401, wrong


def test_the_token_reads_the_api_and_changes_nothing(flower: Flower, jobs: dict[str, str]) -> None:
    token = f"Bearer {TOKEN}"
    status, text = flower.ask("/api/tasks", password=token)
    assert (status, jobs["OK"] in text) == (200, True)

    assert flower.ask(f"/api/task/revoke/{jobs['OK']}", b"", password=token)[0] == 401
    assert flower.ask("/api/worker/shutdown/x", b"", password=token)[0] == 401
    assert flower.ask("/tasks", password=token)[0] == 401


def test_each_job_is_a_readable_line_that_starts_with_its_code(flower: Flower, jobs: dict[str, str]) -> None:
    rows = {row["uuid"]: row for row in flower.find_rows()}

    assert rows[jobs["OK"]]["args"] == "sieve: busybox sh -c 'echo $SECRET; cat'"
    found = {end: rows[job_id]["result"] for end, job_id in jobs.items()}
    assert {end: text for end, text in found.items() if not text.startswith(end.removesuffix(", alone"))} == {}


def test_a_program_that_ended_with_2_is_a_failure_here_and_celerys_success(
    flower: Flower, jobs: dict[str, str], stock: Stock
) -> None:
    rows = {row["uuid"]: row for row in flower.find_rows()}
    states = {end: rows[job_id]["state"] for end, job_id in jobs.items()}
    expected = {end: "SUCCESS" if end.startswith("OK") else "FAILURE" for end in jobs}
    assert states == expected

    failed = jobs["EXIT_NONZERO exit 2"]
    assert failed in flower.find_ids("state:FAILURE")
    assert '<span class="badge text-bg-danger">FAILURE</span>' in flower.get(f"/task/{failed}")
    assert rows[failed]["runtime"] > 0
    record = stock.stored(failed)
    assert record is not None
    assert (record["status"], record["result"]["exit_code"]) == ("SUCCESS", 2)


def test_batch_queue_and_attempt_are_columns(flower: Flower, jobs: dict[str, str]) -> None:
    page = flower.get("/tasks")
    columns = re.findall(r'<th data-column="(\w+)">(.+?)</th>', page)
    assert [name for name, _ in columns][:3] == ["state", "result", "uuid"]
    assert {"batch": "Batch", "queue": "Queue", "attempt": "Attempt"}.items() <= dict(columns).items()

    rows = {row["uuid"]: row for row in flower.find_rows()}
    found = {end: [rows[job_id][name] for name in ("batch", "queue", "attempt")] for end, job_id in jobs.items()}
    # What is no valid spec has no batch that could be believed.
    without = {"OK, alone", "SPEC_INVALID: "}
    assert found == {end: [None if end in without else "nightly build", "sandfleet", 1] for end in jobs}


def test_a_batch_is_found_by_its_name_and_a_job_by_its_label(flower: Flower, jobs: dict[str, str]) -> None:
    in_batch = set(jobs.values()) - {jobs["OK, alone"], jobs["SPEC_INVALID: "]}
    searches = {
        "nightly": in_batch,
        '"nightly build"': in_batch,
        'kwargs:"batch=nightly build"': in_batch,
        "kwargs:label.suite=s7": {jobs["OK"]},
        "kwargs:label.suite=s8": {jobs["EXIT_NONZERO exit 2"]},
        'kwargs:"batch=nightly build" state:FAILURE': in_batch - {jobs["OK"]},
        "result:EXIT_NONZERO": {jobs["EXIT_NONZERO exit 2"]},
    }
    found = {search: flower.find_ids(search) for search in searches}
    assert found == searches


def test_the_jobs_page_shows_code_batch_and_labels(flower: Flower, jobs: dict[str, str]) -> None:
    for end, job_id in jobs.items():
        page = flower.get(f"/task/{job_id}")
        assert end.removesuffix(", alone") in page
        assert ("nightly build" in page) == (end not in {"OK, alone", "SPEC_INVALID: "}), end
    assert "s7" in flower.get(f"/task/{jobs['OK']}")


def test_each_page_says_how_many_tasks_flower_keeps(flower: Flower, jobs: dict[str, str]) -> None:
    worker = next(iter(flower.find_workers()))
    for path in ("/workers", "/tasks", "/broker", f"/task/{jobs['OK']}", f"/worker/{worker}"):
        assert "Flower remembers the last 20,000 tasks" in flower.get(path), path


def test_no_page_shows_output_environment_or_stdin(flower: Flower, jobs: dict[str, str]) -> None:
    worker = next(iter(flower.get_json("/api/workers")))
    table = "/tasks/datatable?draw=1&start=0&length=50&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
    paths = ["/", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/workers?refresh=1", f"/worker/{worker}", table]
    paths += [f"/task/{job_id}" for job_id in jobs.values()] + [f"/api/task/info/{job_id}" for job_id in jobs.values()]

    pages = {path: flower.get(path) for path in paths}

    assert [path for path, page in pages.items() if MARKER in page] == []


def test_the_api_that_would_show_outcomes_is_closed(flower: Flower, jobs: dict[str, str]) -> None:
    status, text = flower.ask(f"/api/task/result/{jobs['OK']}", password=PASSWORD)
    assert (status, MARKER in text) == (404, False)


def test_the_broker_page_counts_every_queue(flower: Flower, module_stage: Stage, stock: Stock) -> None:
    def count() -> dict[str, int]:
        return {queue["name"]: queue["messages"] for queue in flower.get_json("/api/queues/length")["active_queues"]}

    spec = SandboxSpec(image="busybox", command=["true"])
    os.kill(module_stage.workers[0].process.pid, signal.SIGSTOP)  # nobody takes what is queued now
    try:
        with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
            other = [job.id for job in fleet.submit_many([spec] * 3, queue="other-queue")]
        waiting = [stock.submit("true") for _ in range(7)]
        # One of each may already be in the worker's pocket.
        wait_until(lambda: count().get("other-queue", 0) >= 2, 30, "the queue that no worker names is counted")
        assert count()["sandfleet"] >= 6
        assert "other-queue" in flower.get("/broker")
    finally:
        os.kill(module_stage.workers[0].process.pid, signal.SIGCONT)
    for job_id in (*waiting, *other):
        stock.outcome(job_id)


def test_flowers_button_cancels(flower: Flower, module_stage: Stage, stock: Stock) -> None:
    job_id = stock.submit("sleep", "60", fields={"timeout": 60})
    wait_until(lambda: module_stage.has_started(job_id), 20, "the job runs")
    flower.post(f"/api/task/revoke/{job_id}?terminate=true")

    assert stock.outcome(job_id, 15)["code"] == "CANCELLED"


GONE = {
    "/api/worker/pool/grow/{}": "SANDFLEET_CONCURRENCY",
    "/api/worker/pool/shrink/{}": "SANDFLEET_CONCURRENCY",
    "/api/worker/pool/autoscale/{}?min=1&max=2": "SANDFLEET_CONCURRENCY",
    "/api/worker/pool/restart/{}": "Drain",
    "/api/worker/queue/add-consumer/{}?queue=more": "SANDFLEET_QUEUES",
    "/api/worker/queue/cancel-consumer/{}?queue=sandfleet": "SANDFLEET_QUEUES",
    "/api/task/timeout/sandfleet.run?workername={}&soft=1": "timeout",
    "/api/task/rate-limit/sandfleet.run?workername={}&ratelimit=1": "SANDFLEET_CONCURRENCY",
    "/api/task/apply/sandfleet.run": "sandfleet run",
    "/api/task/result/x": "sandfleet show",
    "/api/task/abort/x": "revoke",
}
"""Controls of Flower that sandfleet does not have, and the message that names a substitute."""


def test_an_action_that_cannot_work_is_refused_with_a_reason(flower: Flower) -> None:
    worker = next(iter(flower.find_workers()))
    found = {path: flower.ask(path.format(worker), b"{}", PASSWORD) for path in GONE}  # as Flower's own buttons do
    assert {path: answer for path, answer in found.items() if answer[0] != 404 or GONE[path] not in answer[1]} == {}


def test_the_workers_page_has_no_button_that_cannot_work(flower: Flower) -> None:
    worker = next(iter(flower.find_workers()))
    page = flower.get(f"/worker/{worker}")

    buttons = {" ".join(text.split()) for text in re.findall(r"<button[^>]*>([^<]*)</button>", page)}
    assert buttons >= {"Drain", "Refresh"}
    wrong = ("grow", "shrink", "autoscale", "restart", "consumer", "rate-limit", "timeout", "Shut Down")
    assert [word for word in wrong if word in page] == []


def test_control_commands_that_cannot_work_are_refused_with_a_reason(flower: Flower, module_stage: Stage) -> None:
    commands: dict[str, dict[str, Any]] = {
        "pool_grow": {"n": 1},
        "pool_shrink": {"n": 1},
        "pool_restart": {},
        "autoscale": {"min": 1, "max": 2},
        "time_limit": {"task_name": "sandfleet.run", "soft": 1},
        "rate_limit": {"task_name": "sandfleet.run", "rate_limit": "1/s"},
        "add_consumer": {"queue": "more"},
        "cancel_consumer": {"queue": "sandfleet"},
    }
    worker = module_stage.workers[0]
    with new_app(WorkerSettings(redis_url=SecretStr(module_stage.redis_url))) as app:
        found = {
            name: app.control.broadcast(name, arguments=arguments, reply=True, limit=1, timeout=10)
            for name, arguments in commands.items()
        }
    errors = {name: [next(iter(answer.values())) for answer in answers or ()] for name, answers in found.items()}
    wrong = {name: told for name, told in errors.items() if len(told) != 1 or "setting" not in told[0].get("error", "")}
    assert wrong == {}
    assert "Traceback" not in worker.log


def test_flowers_pages_have_the_texts_that_we_replace() -> None:
    # A Flower whose templates read differently would show its own words again, and nothing else
    # would say so.
    wrong = {
        name: words
        for name, texts in WORDS.items()
        if (words := [word for word in texts if word not in (Path(settings["template_path"]) / name).read_text()])
    }
    assert wrong == {}


def test_without_a_given_password_one_is_made_and_no_token_is_accepted(module_stage: Stage) -> None:
    with running_flower(module_stage, FLOWER_BASIC_AUTH="", FLOWER_TOKEN="") as flower:
        assert flower.password != PASSWORD
        assert flower.ask("/tasks", password=flower.password)[0] == 200
        for password in (None, PASSWORD, "Bearer ", f"Bearer {TOKEN}"):
            for path in ("/tasks", "/metrics", "/api/tasks"):
                assert flower.ask(path, password=password)[0] == 401, (path, password)
