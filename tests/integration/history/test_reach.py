"""The history over HTTP and by the commands of sandfleet-web."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from api_server import serve_history
from sandfleet import SandboxSpec
from sandfleet.errors import HistoryUnavailable
from sandfleet.history.file_history import FileHistory
from sandfleet.history.finding import find_history
from sandfleet.history.questions import HistoryFilter
from sandfleet.history.remote_history import RemoteHistory
from sandfleet_config.codes import ErrorCode
from sandfleet_web.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from past import Past

SPEC = SandboxSpec(image="python", command=["true"], labels={"suite": "s7"})


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret-token\n")
    return path


def test_the_history_of_the_url_is_found_with_its_token(
    past: Past, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past.end([SPEC])
    past.write_all()
    with serve_history(past.history, "s3cret-token") as url:
        monkeypatch.setenv("SANDFLEET_WEB_URL", f"{url}/")
        monkeypatch.setenv("SANDFLEET_WEB_TOKEN_FILE", str(token_file))
        found = find_history()
        assert isinstance(found, RemoteHistory)
        assert found.status().rows == 1
        token_file.write_text("another\n")
        with pytest.raises(HistoryUnavailable, match="refuses the token"):
            found.status()
        monkeypatch.delenv("SANDFLEET_WEB_TOKEN_FILE")
        with pytest.raises(HistoryUnavailable, match="refuses the token"):
            find_history().status()


def test_the_file_on_this_host_is_found_without_a_url(past: Past) -> None:
    with pytest.raises(HistoryUnavailable, match="set SANDFLEET_WEB_URL and SANDFLEET_WEB_TOKEN_FILE"):
        find_history()
    past.write_all()

    found = find_history()
    assert isinstance(found, FileHistory)
    assert found.path == past.file


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "\x1b[0m\n", "é\n"])
def test_a_file_without_a_token_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(HistoryUnavailable, match="has no token on its first line"):
        RemoteHistory("http://127.0.0.1:9", tmp_path / "token").status()
    with pytest.raises(HistoryUnavailable, match="No such file"):
        RemoteHistory("http://127.0.0.1:9", tmp_path / "none").status()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:80", "http://user:pass@host", "ftp://host"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(HistoryUnavailable, match="SANDFLEET_WEB_URL must be"):
        RemoteHistory(url)


@contextmanager
def serve_raw(status: int, body: bytes, location: str = "") -> Iterator[tuple[str, list[str]]]:
    """Answer every request so; yield the address, and the tokens that came."""
    tokens: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_goes_to_no_other_address(token_file: Path) -> None:
    with serve_raw(200, b"{}") as (elsewhere, tokens), serve_raw(302, b"", elsewhere) as (url, asked):
        with pytest.raises(HistoryUnavailable, match="answers 302"):
            RemoteHistory(url, token_file).status()
        assert asked == ["Bearer s3cret-token"]
        assert tokens == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"jobs": [{}], "cursor": ""}', b'{"jobs": 7}', b"\xff"])
def test_an_answer_of_something_else_is_told(body: bytes) -> None:
    with serve_raw(200, body) as (url, _), pytest.raises(HistoryUnavailable, match="is it sandfleet-web"):
        RemoteHistory(url).find_runs(HistoryFilter())


def test_an_address_where_nobody_listens_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(HistoryUnavailable, match="cannot reach"):
        RemoteHistory(f"http://127.0.0.1:{port}").status()


def test_export_prints_what_matches_as_json_lines(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.end([SPEC] * 1200, batch="nightly", exit_code=0)
    past.end([SPEC] * 3, ErrorCode.TIMEOUT, batch="nightly")
    past.write_all()

    code, out, _ = run(capsys, "history", "export", "batch:nightly", "code:OK")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, len(lines)) == (0, 1200)
    assert [line["number"] for line in lines] == list(range(1200, 0, -1))
    assert run(capsys, "history", "export", "cod:OK")[0] == 2
    assert "did you mean code:?" in run(capsys, "history", "export", "cod:OK")[2]


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_WEB__HISTORY__MAX_ROWS", "none")
    for command in ("run", "status", "prune", "export"):
        code, out, err = run(capsys, "history", command)
        assert (code, out) == (1, "")
        assert err.startswith("error: SANDFLEET_WEB__HISTORY__MAX_ROWS: ")


def test_status_says_what_is_wrong(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "history", "status")
    assert (code, "there is no history at" in err) == (1, True)
    past.end([SPEC])
    with past.writing():
        past.wait_stored()
        code, out, _ = run(capsys, "history", "status", "--json")
        fields = json.loads(out)
        assert (code, fields["rows"], fields["lost"], fields["fault"]) == (0, 1, 0, "")
        assert fields["file"] == str(past.file)


def test_a_writer_that_says_nothing_is_told(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet.history.file_history.SILENT_SECONDS", 0.0)
    past.write_all()

    code, out, _ = run(capsys, "history", "status")
    assert code == 1
    assert "no process writes the history" in out


def test_prune_deletes_beside_a_running_writer(
    past: Past, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    past.add_runs(3000)
    with past.writing():
        past.wait_stored()
        monkeypatch.setenv("SANDFLEET_WEB__HISTORY__MAX_ROWS", "100")
        assert run(capsys, "history", "prune")[:2] == (0, "2900 runs deleted, 100 kept\n")
        past.add_runs(10)
        past.wait_stored()
    assert past.history.status().rows == 110
    assert past.count_labels() == 110
