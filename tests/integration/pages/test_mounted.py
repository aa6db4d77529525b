"""The pages in a real Flower: same port, same login; a viewer may act neither here nor in Flower's own pages."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import pytest
from flower.urls import handlers as stock_routes
from flower_pages import PASSWORD, Flower, running_flower, spell_password
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_web.pages.api import API
from sandfleet_web.pages.routes import PAGE_HANDLERS
from sandfleet_web.pages.user_files import add_user
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Stage, Stock

VIEWER: Final = ("bob", "a-viewers-secret")
SECRET: Final = "PLANTED-IN-THE-JOB"
LEASE_SECONDS: Final = 6.0
POLL_SECONDS: Final = 2.0
"""How often pages and Flower read Redis again."""


@pytest.fixture(scope="module")
def page_stage(module_stage_folder: Stage) -> Stage:
    """A host whose worker takes some queues, and not each one that there is."""
    module_stage_folder.start(concurrency=4, SANDFLEET_QUEUES="sandfleet,held-queue").wait_ready()
    return module_stage_folder


@pytest.fixture(scope="module")
def fleet_of_stage(page_stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(page_stage.redis_url))) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def flower(page_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder: Path = tmp_path_factory.mktemp("web")
    add_user(folder / "users", VIEWER[0], "viewer", VIEWER[1])
    settings = {
        "SANDFLEET_WEB__PAGES__USERS_FILE": str(folder / "users"),
        "SANDFLEET_WEB__HISTORY__FILE": str(folder / "history.db"),
    }
    with running_flower(page_stage, **settings) as page:
        yield page


def test_flowers_entry_leads_to_the_pages_and_its_tabs_to_them(flower: Flower) -> None:
    assert '<h1 class="hidden">Overview</h1>' in flower.get("/")
    page = flower.get("/workers")
    assert re.search(r'href="/fleet/">Fleet</a>', page)
    assert 'href="../workers">Workers</a>' in flower.get("/fleet/hosts")


def test_every_address_needs_the_password(flower: Flower) -> None:
    paths = [f"/fleet/{name}" for name, _ in PAGE_HANDLERS] + [f"/fleet/api/v1/{name}" for name in API]
    paths += ["/fleet", "/", "/fleet/metrics", "/fleet/static/fleet.js"]
    stock = [route[0] if isinstance(route, tuple) else route.regex.pattern.rstrip("$") for route in stock_routes]
    opened = ("/healthcheck", "/static/", "/login", "/logout", ".*")
    paths += [re.sub(r"\(.*\)", "x", path) for path in stock if not path.startswith(opened)]
    answers = {path: (flower.ask(path)[0], flower.ask(path, b"")[0]) for path in paths}
    assert len(answers) > 50
    assert {path: found for path, found in answers.items() if 401 not in found or not set(found) <= {401, 405}} == {}
    assert flower.ask("/healthcheck") == (200, "OK")
    # Flower's own script and styles are open, as in every Flower: they say nothing of a fleet.
    assert flower.ask("/static/js/flower.js")[0] == 200
    assert flower.ask("/static/../flowerconfig.py")[0] in {401, 403, 404}


def test_a_viewer_sees_all_and_can_act_nowhere(flower: Flower, stock: Stock) -> None:
    viewer = spell_password(":".join(VIEWER))
    worker = next(iter(flower.find_workers()))
    job_id = stock.submit("true")
    stock.outcome(job_id)
    for path in ("/fleet/", "/fleet/hosts", "/workers", "/tasks", "/broker", f"/worker/{worker}", "/api/workers"):
        assert flower.ask(path, password=viewer)[0] == 200, path
    assert "worker-drain" not in flower.ask(f"/worker/{worker}", password=viewer)[1]
    assert "worker-drain" in flower.get(f"/worker/{worker}")

    posts = [f"/api/task/revoke/{job_id}", f"/api/worker/shutdown/{worker}", "/api/task/async-apply/x", "/fleet/act"]
    posts += ["/api/task/send-task/x", "/api/task/timeout/x", f"/api/worker/pool/grow/{worker}"]
    assert {path: flower.ask(path, b"{}", password=viewer)[0] for path in posts} == dict.fromkeys(posts, 403)
    assert flower.ask("/fleet/act?verb=cordon&target=x", password=viewer)[0] == 403
    assert flower.ask("/fleet/", password=spell_password(f"{VIEWER[0]}:secret"))[0] == 401


def test_a_job_is_told_from_submit_to_history_and_no_secret_of_it(flower: Flower, fleet_of_stage: Fleet) -> None:
    fields: dict[str, Any] = {"env": [f"TOKEN={SECRET}"], "stdin": SECRET, "labels": {"suite": "s7"}}
    job_id = submit(fleet_of_stage, "echo $TOKEN; cat; exit 3", batch="told", **fields)
    fleet_of_stage.job(job_id).outcome(30)
    wait_until(lambda: "EXIT_NONZERO" in flower.get(f"/fleet/job?id={job_id}"), 10, "the page knows its end")
    wait_until(lambda: job_id[:8] in flower.get("/fleet/jobs?q=batch:told+code:EXIT_NONZERO"), 10, "the history has it")
    wait_until(lambda: "exit code" in flower.get(f"/fleet/job?id={job_id}"), 10, "its page shows the history")
    paths = [
        f"/fleet/job?id={job_id}",
        "/fleet/batch?name=told",
        "/fleet/jobs?q=batch:told",
        "/fleet/failures",
        "/fleet/",
    ]
    paths += [f"/fleet/api/v1/job?id={job_id}", "/fleet/api/v1/jobs?q=batch:told", "/fleet/api/v1/batches"]
    pages = {path: flower.get(path) for path in paths}
    assert [path for path, page in pages.items() if SECRET in page] == []
    assert "s7" in pages[f"/fleet/job?id={job_id}"]


def test_an_operator_pauses_a_queue_and_it_stands_in_the_audit(flower: Flower, fleet_of_stage: Fleet) -> None:
    confirm = flower.get("/fleet/act?verb=pause&target=held-queue")
    seen = re.search(r'name="seen" value="([0-9.]+)"', confirm)
    assert seen is not None
    form = f"verb=pause&target=held-queue&reason=data+is+missing&seen={seen[1]}"
    assert post(flower, "/fleet/act", form)[0] == 200
    job_id = submit(fleet_of_stage, "sleep 25", queue="held-queue")  # it may start before it is cancelled
    assert "paused" in flower.get("/fleet/queue?name=held-queue")
    wait_until(
        lambda: "paused by me: data is missing" in flower.get(f"/fleet/job?id={job_id}"),
        10,
        "the job says why it waits",
    )
    assert "data is missing" in flower.get("/fleet/audit")
    assert post(flower, "/fleet/act", f"verb=resume&target=held-queue&seen={seen[1]}")[0] == 200
    cancel = f"verb=cancel&job={job_id}&reason=over&seen={seen[1]}"
    assert post(flower, "/fleet/act", cancel)[0] == 200
    wait_until(lambda: "CANCELLED" in flower.get(f"/fleet/job?id={job_id}"), 10, "it is cancelled")


def submit(fleet: Fleet, code: str, *, batch: str | None = None, queue: str = "sandfleet", **fields: Any) -> str:
    spec = SandboxSpec.model_validate({"image": "busybox", "command": ["sh", "-c", code], "timeout": 30, **fields})
    (job,) = fleet.submit_many([spec], batch=batch, queue=queue)
    return job.id


def post(flower: Flower, path: str, form: str) -> tuple[int, str]:
    """Send a form as a browser does from the same site."""
    headers = {"Authorization": PASSWORD, "Origin": flower.address, "Sec-Fetch-Site": "same-origin"}
    request = urllib.request.Request(f"{flower.address}{path}", form.encode(), headers)  # noqa: S310  ours
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  ours
        return int(answer.status), str(answer.read().decode())


def test_a_killed_worker_is_gone_from_up_and_its_job_active_nowhere(
    flower: Flower, page_stage: Stage, fleet_of_stage: Fleet
) -> None:
    doomed = page_stage.start(
        concurrency=1,
        SANDFLEET_HOST="doomed-host",
        SANDFLEET_QUEUES="doomed",
        SANDFLEET_SLOTS_DIR=str(page_stage.folder / "doomed"),
    )
    doomed.wait_ready()
    job_id = submit(fleet_of_stage, "sleep 60", queue="doomed", timeout=60, max_attempts=2)
    wait_until(lambda: ">running<" in flower.get(f"/fleet/job?id={job_id}"), 20, "the job runs")
    page_of_host = "/fleet/host?name=doomed-host"  # 404 in the second in which the older answer is kept
    wait_until(lambda: job_id in flower.ask(page_of_host, password=flower.password)[1], 10, "its host shows it")
    shown = ["the API", "Hosts", "Host", "Overview", "Queue", "Job", "Jobs", "Flower's Workers", "Flower's Tasks"]
    wait_until(lambda: list_alive(flower, job_id) == shown, 15, "every page shows it first")
    os.kill(doomed.process.pid, signal.SIGKILL)
    doomed.process.wait()

    killed = time.monotonic()
    left: list[str] = []
    while (left := list_alive(flower, job_id)) and time.monotonic() - killed < LEASE_SECONDS + 3 + POLL_SECONDS:
        time.sleep(0.2)
    assert left == [], "it is gone from up on every page within lease + 3 s and the page's poll"
    # Nobody serves its queue any more, which the Overview says within 5 s.
    wait_until(lambda: "queue doomed is not served: 1 job" in flower.get("/fleet/"), 5, "the queue is named")
    post(flower, "/fleet/act", f"verb=cancel&job={job_id}&reason=over&seen={_seen(flower, job_id)}")
    # Its message is dropped by whoever takes it from the queue.
    page_stage.start(concurrency=1, SANDFLEET_QUEUES="doomed").wait_ready()
    wait_until(lambda: not page_stage.redis.keys("sandfleet:doomed*"), 20, "the queue is empty")


def list_alive(flower: Flower, job_id: str) -> list[str]:
    """Return the pages that show the doomed host as up, or its job as active."""
    hosts = {one["host"]: one["state"] for one in flower.get_json("/fleet/api/v1/hosts")["hosts"]}
    tag = 'class="tag fine">up</span>'
    rows = re.findall(
        r'<tr[^>]*><th scope="row"><a[^>]*>doomed-host</a>.*?</tr>', flower.get("/fleet/hosts"), re.DOTALL
    )
    worker = next((row for name, row in flower.find_workers().items() if "doomed-host" in name), {})
    status, page_of_queue = flower.ask("/fleet/queue?name=doomed", password=flower.password)
    found = {
        "the API": hosts.get("doomed-host") == "up",
        "Hosts": any(tag in row for row in rows),
        "Host": tag in flower.ask("/fleet/host?name=doomed-host", password=flower.password)[1],
        "Overview": "doomed-host: up" in flower.get("/fleet/"),
        "Queue": status == 200 and "doomed-host</a></th><td>up<" in page_of_queue,
        "Job": ">running<" in flower.get(f"/fleet/job?id={job_id}"),
        "Jobs": f"id={job_id}" in flower.get("/fleet/jobs?q=state:running"),
        "Flower's Workers": bool(worker.get("status") or worker.get("active")),
        "Flower's Tasks": job_id in flower.find_ids("state:STARTED"),
    }
    return [page for page, is_alive in found.items() if is_alive]


def _seen(flower: Flower, job_id: str) -> str:
    found = re.search(r'name="seen" value="([0-9.]+)"', flower.get(f"/fleet/act?verb=cancel&job={job_id}"))
    assert found is not None
    return found[1]
