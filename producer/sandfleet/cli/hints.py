"""What somebody meant who typed an option or a command that is not there, and what they typed for a field at fault."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import typer
    from sandfleet_config.errors import RequestError

NEARNESS: Final = 0.7
"""How alike two names are (`difflib`) for one to be taken for the other."""
NO_NETWORK: Final = "sandboxes have no network but loopback"
NO_MOUNT: Final = "no folder of the host is mounted: put files into the image, or send them by --stdin"
NO_NEED: Final = "each sandbox is removed when its job ends"

OTHER_OPTIONS: Final[Mapping[str, str]] = {
    "--cap-add": "no job gets capabilities",
    "--entrypoint": "the command comes after --",
    "--hostname": "did you mean --label name=...?",
    "--mount": NO_MOUNT,
    "--name": "did you mean --label name=...?",
    "--net": NO_NETWORK,
    "--network": NO_NETWORK,
    "--privileged": "no job is privileged",
    "--rm": NO_NEED,
    "--volume": NO_MOUNT,
    "-v": NO_MOUNT,
    "--detach": "did you mean sandfleet submit?",
    "-d": "did you mean sandfleet submit?",
}
"""What `docker run` has, and what to do here instead."""

RUN_OPTIONS: Final[Mapping[str, str]] = {
    "command": "the command",
    "env": "--env",
    "grace": "--grace",
    "idempotency_key": "--idempotency-key",
    "image": "--image",
    "labels": "--label",
    "max_attempts": "--max-attempts",
    "output.keep": "--keep",
    "output.max_bytes": "--max-output",
    "output.on_limit": "--on-output-limit",
    "priority": "--priority",
    "queue_ttl": "--queue-ttl",
    "resources.cpu_quota": "--cpu",
    "resources.disk_bytes": "--disk",
    "resources.memory_bytes": "--memory",
    "resources.pids_limit": "--pids",
    "security.user": "--user",
    "stdin": "--stdin",
    "timeout": "--timeout",
    "working_dir": "--workdir",
}
"""The option of ``sandfleet run`` that a field of the spec comes from."""


def word_usage(error: typer.TyperException) -> str:
    """Return what is wrong with the command line, with the name that was probably meant."""
    context: Any = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    if context is None:
        return error.format_message()
    if option is not None and hasattr(error, "possibilities"):
        known = [name for parameter in context.command.params for name in parameter.opts]
        return f"no such option: {option}{_suggest(option, known, OTHER_OPTIONS, context.command_path)}"
    if unknown := re.match(r"No such command '(.*?)'\.", error.format_message(), re.DOTALL):
        return (
            f"no such command: {unknown[1]}{_suggest(unknown[1], context.command.commands, {}, context.command_path)}"
        )
    return error.format_message()


def _suggest(name: str, known: Iterable[str], others: Mapping[str, str], command: str) -> str:
    if name in others:
        return f": {others[name]}"
    names = list(known)
    # The name without a plural's s, or cut off: --cpus, --mem.
    near = [other for other in names if len(name) > len("--x") and (other.startswith(name) or name == f"{other}s")]
    near += difflib.get_close_matches(name, names, n=1, cutoff=NEARNESS)
    return f": did you mean {near[0]}?" if near else f" ({command} --help lists them)"


def word_refusal(error: RequestError) -> str:
    """Return why ``sandfleet run`` was refused, each field by the option that it comes from."""
    if not error.errors:
        return str(error)
    return f"{error.code.value}: " + "; ".join(
        f"{_option_of(fault['field'])}: {fault['message']}" for fault in error.errors
    )


def _option_of(field: str) -> str:
    if field in RUN_OPTIONS:
        return RUN_OPTIONS[field]
    head, _, rest = field.partition(".")
    if rest.isdecimal() and head in RUN_OPTIONS:
        return f"{RUN_OPTIONS[head]}, item {int(rest) + 1}"
    return f"{RUN_OPTIONS[head]} {rest}" if head == "labels" else field
