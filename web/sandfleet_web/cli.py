"""``sandfleet-web``: serve the pages, keep the history, send webhooks."""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import signal
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from sandfleet_config.command_line import describe_usage_error, is_help
from sandfleet_config.terminal import write_line

from sandfleet_web.command_line import print_error, print_known_errors, read_settings
from sandfleet_web.history.cli import app as history

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sandfleet_config.web_settings import WebSettings

    from sandfleet_web.notify.queue import DeadWebhook, TakenWebhook, WebhookQueue
    from sandfleet_web.pages.user_files import Role

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
notify = typer.Typer(
    invoke_without_command=True,
    help="Send webhooks of batches that are done (on_done) until SIGTERM, or look after them by one of the commands.",
)
app.add_typer(notify, name="notify")
app.add_typer(history, name="history")

SECRET_BYTES = 32
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The newest so many.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if is_wanted:
        print(f"sandfleet-web {version('sandfleet-web')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve the pages of a fleet, keep the history of ended runs, and tell when batches are done.

    SANDFLEET_REDIS_URL names the fleet's Redis.
    """


@app.command()
def serve(
    *,
    is_notifying: Annotated[bool, typer.Option("--notify", help="Send webhooks, too, as notify does.")] = False,
) -> None:
    """Serve the pages alone, and write the history of ended runs, until SIGTERM.

    Without SANDFLEET_WEB__PAGES__USERS_FILE it makes a password for this run, and prints it.
    """
    from sandfleet_web.serve import run_pages

    with print_known_errors():
        run_pages(read_settings(), is_notifying=is_notifying)


@app.command("new-user")
def new_user(
    name: Annotated[str, typer.Argument(help="The name for the login.")],
    role: Annotated[str, typer.Option("--role", help="viewer sees all pages; operator may also act.")] = "viewer",
    file: Annotated[Path | None, typer.Option("--file", help="The users' file; default: that of the settings.")] = None,
    *,
    is_stdin: Annotated[bool, typer.Option("--stdin", help="Read the password from stdin, one line.")] = False,
) -> None:
    """Add a user to the users' file, or give one another role and password.

    Without --stdin it makes a password and prints it. It counts within seconds, also where pages are served.
    """
    from sandfleet_web.pages.user_files import ROLES, add_user

    with print_known_errors():
        path = file or read_settings().web.pages.users_file
        if path is None:
            raise typer.BadParameter("name the file: --file, or SANDFLEET_WEB__PAGES__USERS_FILE")
        known: Role | None = next((one for one in ROLES if one == role), None)
        if known is None:
            raise typer.BadParameter(f"--role is one of {', '.join(ROLES)}")
        password = sys.stdin.readline().rstrip("\n") if is_stdin else secrets.token_urlsafe(12)
        try:
            add_user(path, name, known, password)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    print(f"{name} is {known} in {path}" + ("" if is_stdin else f"; password: {password}"))


@notify.callback()
def _notify(context: typer.Context) -> None:
    """Send webhooks of batches that are done (on_done), until SIGTERM.

    SIGTERM ends the attempts on their way first.
    """
    if context.invoked_subcommand is None:
        with print_known_errors():
            run_sender(read_settings())


def run_sender(settings: WebSettings) -> None:
    """Send webhooks until SIGTERM or SIGINT.

    Raises:
        SettingsInvalid: an endpoint's file cannot be used.
    """
    from sandfleet_config.logs import set_up_handler

    from sandfleet_web.notify.endpoint import read_endpoints
    from sandfleet_web.notify.sender import Sender

    set_up_handler(settings.log_format, settings.log_level, "sandfleet-web", version("sandfleet-web"))
    logging.getLogger("httpcore2").setLevel(logging.WARNING)  # its lines of level DEBUG have the URL
    endpoints = read_endpoints(settings)
    with _open_queue(settings) as queue:
        sender = Sender(queue, endpoints, settings.web)

        def stop(*_: object) -> None:
            sender.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        names = ", ".join(sorted(endpoints)) or "none: each webhook becomes a dead letter"
        logging.getLogger(__name__).info("sending webhooks; endpoints: %s", names)
        sender.run()
    logging.getLogger(__name__).info("has stopped")


@notify.command()
def log(limit: Limit = 20, *, is_json: AsJson = False) -> None:
    """Show the log of attempts, the newest last.

    An attempt is delivered, failed (tried again), dead (given up) or dropped.
    """
    with print_known_errors(), _open_queue(read_settings()) as queue:
        for line in queue.read_log(limit):
            fields = {"at": _show_time(line.at), "id": line.webhook_id, "endpoint": line.endpoint}
            _print_row(fields | {"batch": line.batch, "result": line.result, "reason": line.reason}, is_json=is_json)


@notify.command()
def dead(limit: Limit = 20, *, is_json: AsJson = False) -> None:
    """List the webhooks that were given up, the newest first, each with its reason."""
    with print_known_errors(), _open_queue(read_settings()) as queue:
        for found in queue.list_dead(limit):
            _print_row(_show_dead(found), is_json=is_json)


@notify.command()
def requeue(
    webhook_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    is_all: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Send webhooks again that were given up, with the ids that they have."""
    if bool(webhook_ids) == is_all:
        raise typer.BadParameter("give ids (sandfleet-web notify dead lists them), or --all")
    with print_known_errors(), _open_queue(read_settings()) as queue:
        ids = [found.webhook.webhook_id for found in queue.list_dead(10_000)] if is_all else webhook_ids or []
        count = queue.requeue(ids)
    print(f"{count} of {len(ids)} are due again")
    if count < len(ids):
        raise typer.Exit(1)


@notify.command("new-secret")
def new_secret(file: Annotated[Path, typer.Argument(help="The file; it must not exist.")]) -> None:
    """Write a new secret to FILE, which only you can read. Give the receiver what it holds."""
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}\n"
    with print_known_errors():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secret)
    print(f"wrote {file}")


@contextmanager
def _open_queue(settings: WebSettings) -> Generator[WebhookQueue]:
    from sandfleet_web.notify.queue import WebhookQueue

    queue = WebhookQueue(settings)
    try:
        yield queue
    finally:
        queue.close()


def _show_dead(found: DeadWebhook) -> dict[str, object]:
    from sandfleet_web.notify.queue import UnusableWebhook

    webhook = found.webhook
    if isinstance(webhook, UnusableWebhook):
        return {"at": _show_time(found.ended), "id": webhook.webhook_id, "reason": "its fields are unusable"}
    return {"at": _show_time(found.ended), "id": webhook.webhook_id} | _show_facts(webhook)


def _show_facts(webhook: TakenWebhook) -> dict[str, object]:
    return {
        "endpoint": webhook.endpoint,
        "batch": webhook.batch,
        "attempts": webhook.attempts,
        "reason": webhook.reason,
    }


def _show_time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _print_row(fields: Mapping[str, object], *, is_json: bool) -> None:
    # In ASCII: a batch may have any printable name, and Redis may hold what others wrote.
    print(json.dumps(fields) if is_json else "\t".join(ascii(str(value))[1:-1] for value in fields.values()))


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; a wrong one is one line and exit code 2."""
    try:
        status = app(args=argv, prog_name="sandfleet-web", standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except typer.TyperException as error:
        if is_help(error):
            write_line(error.format_message())
        else:
            print_error(describe_usage_error(error, {}))
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
