"""Who may see and who may act: the server decides, whatever a browser sends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from page_server import OPERATOR, VIEWER, PageServer
from sandfleet_web.pages.acts import VERBS
from sandfleet_web.pages.routes import new_application

if TYPE_CHECKING:
    from pages_scene import Scene
    from sandfleet_web.pages.site import Site

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
CORDON: Final = {"verb": "cordon", "target": "host-07", "reason": "odd", "seen": "1795956194"}


def list_paths(site: Site) -> list[str]:
    """Return an address of each route."""
    rules: Any = new_application(site).wildcard_router.rules
    patterns = [rule.matcher.regex.pattern.rstrip("$") for rule in rules]
    return [re.sub(r"\(.*\)", "fleet.css", pattern) for pattern in patterns if pattern not in {".*", "/healthcheck"}]


def test_without_a_password_nothing_is_shown(server: PageServer, site: Site) -> None:
    paths = list_paths(site)
    assert len(paths) > 14
    found = {
        (path, method): server.ask(path, None, method).status
        for path in paths
        for method in METHODS
        if server.ask(path, None, method).status != 401
    }
    assert found == {}
    answer = server.ask("/healthcheck", None)
    assert (answer.status, answer.text) == (200, "OK")
    assert server.ask("/nowhere", None).status == 404


@pytest.mark.parametrize(
    "given",
    [
        (OPERATOR[0], "wrong"),
        ("nobody", OPERATOR[1]),
        (OPERATOR[0], ""),
        (OPERATOR[0], OPERATOR[1] + "\0"),
        (OPERATOR[0], "A" * 5000),
        (VIEWER[0], OPERATOR[1]),
    ],
)
def test_a_wrong_password_is_refused(server: PageServer, given: tuple[str, str]) -> None:
    answer = server.ask("/fleet/", given)
    assert (answer.status, "WWW-Authenticate".lower() in answer.headers) == (401, True)


@pytest.mark.parametrize("header", ["Basic", "Basic x", "Basic Zm9v", "Bearer x", "basic \xff", "Basic =", ""])
def test_a_malformed_login_is_refused(server: PageServer, header: str) -> None:
    assert server.ask("/fleet/", None, headers={"Authorization": header}).status == 401


def test_a_viewer_cannot_act_by_any_request(server: PageServer, scene: Scene) -> None:
    found = {
        verb: (
            server.ask("/fleet/act", VIEWER, form=CORDON | {"verb": verb, "batch": "sweep-12"}).status,
            server.ask(f"/fleet/act?verb={verb}&target=host-07&batch=sweep-12", VIEWER).status,
        )
        for verb in VERBS
    }
    assert found == dict.fromkeys(VERBS, (403, 403))
    for path in ("/fleet/", "/fleet/hosts", "/fleet/job", "/fleet/act"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert server.ask(path, VIEWER, method, headers={"Origin": server.address}).status in {403, 405}, path
    assert scene.acts.done == []
    assert server.ask("/fleet/hosts", VIEWER).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_a_cross_site_post_is_refused(server: PageServer, scene: Scene, headers: dict[str, str]) -> None:
    assert server.ask("/fleet/act", form=CORDON, headers=headers).status == 403
    assert scene.acts.done == []


def test_a_post_that_says_no_origin_is_refused(server: PageServer, scene: Scene) -> None:
    assert server.ask("/fleet/act", method="POST").status == 403
    assert scene.acts.done == []


def test_an_operator_acts_with_a_reason_only(server: PageServer, scene: Scene) -> None:
    answer = server.ask("/fleet/act", form=CORDON | {"reason": " "})
    assert (answer.status, "A reason is needed" in answer.text) == (400, True)
    assert scene.acts.done == []

    answer = server.ask("/fleet/act", form=CORDON)
    assert (answer.status, "Cordon host: done" in answer.text) == (200, True)
    ((name, wish),) = scene.acts.done
    assert (name, wish.verb, wish.target, wish.reason) == (OPERATOR[0], "cordon", "host-07", "odd")
    assert "odd" in server.get("/fleet/audit")


def test_an_old_count_is_not_acted_on(server: PageServer, scene: Scene) -> None:
    for seen in ("", "0", "1", "x", "nan", "1e400", "1795940000", "1795959999"):
        answer = server.ask("/fleet/act", form=CORDON | {"seen": seen})
        assert (answer.status, "too old" in answer.text) == (409, True), seen
    assert scene.acts.done == []


def test_a_large_act_needs_its_number_typed(server: PageServer, scene: Scene) -> None:
    scene.acts.count = 2641
    retry = {"verb": "retry", "batch": "sweep-12", "seen": "1795956194"}
    assert "Type the number of jobs, 2,641" in server.get("/fleet/act?verb=retry&batch=sweep-12")
    for typed in ("", "2640", "x"):
        assert server.ask("/fleet/act", form=retry | {"typed": typed}).status == 400, typed
    assert scene.acts.done == []
    assert server.ask("/fleet/act", form=retry | {"typed": "2,641"}).status == 200
    assert len(scene.acts.done) == 1


def test_an_empty_filter_is_no_filter(server: PageServer, scene: Scene) -> None:
    for verb in ("cancel", "retry"):
        form = {"verb": verb, "reason": "all", "seen": "1795956194"}
        assert server.ask("/fleet/act", form=form).status == 400
        assert server.ask(f"/fleet/act?verb={verb}").status == 400
        assert server.ask(f"/fleet/act?verb={verb}&code=TIMEOUT").status == 400
    assert server.ask("/fleet/act?verb=explode&target=x").status == 400
    assert server.ask("/fleet/act?verb=cordon").status == 400
    assert scene.acts.done == []


def test_pages_forbid_what_they_do_not_need(server: PageServer) -> None:
    headers = server.ask("/fleet/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert "frame-ancestors 'none'" in server.ask("/fleet/", None).headers["content-security-policy"]


def test_static_files_do_not_leave_their_folder(server: PageServer) -> None:
    assert server.ask("/fleet/static/fleet.css").status == 200
    for path in ("../site.py", "..%2fsite.py", "%2e%2e/site.py", "/etc/passwd", "../../../../../../etc/passwd"):
        assert server.ask(f"/fleet/static/{path}").status in {403, 404}, path


def test_a_hosts_page_says_how_often_jobs_started_prepared(server: PageServer) -> None:
    said = "Started prepared: 41 of 44 jobs that asked; not the others: no_spare 3."
    assert said in server.ask("/fleet/host?name=host-08", VIEWER).text
    assert "Started prepared" not in server.ask("/fleet/host?name=host-01", VIEWER).text
