"""The upper and lower bounds of a spec's fields, and the checks that use them.

Each message names its bound. The upper bounds limit the memory that a spec takes in a worker before
it runs. The lower bounds are the least that a sandbox needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from sandfleet_config.units import format_bytes, format_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LABELS: Final = 32
MAX_LABEL_KEY_CHARS: Final = 64
MAX_LABEL_VALUE_CHARS: Final = 256
MAX_NAME_CHARS: Final = 512
MAX_COMMAND_ITEMS: Final = 4096
MAX_ENV_ITEMS: Final = 4096
MAX_ITEM_BYTES: Final = 64 * 1024
"""Bytes of one argument or one ``KEY=VALUE``: half of MAX_ARG_STRLEN in execve(2)."""
MAX_ARGUMENT_BYTES: Final = 512 * 1024
"""Bytes of `command` and `env` together: half of init's message.

The image's environment uses the other half.
"""
MAX_PATH_FOLDERS: Final = 256
"""Folders in PATH; init searches each for the program."""
MAX_PATH_BYTES: Final = 4095
"""Bytes of one path: the kernel's limit (path_resolution(7), PATH_MAX)."""
MAX_UTF8_BYTES: Final = 4
"""Bytes of the longest character."""

MIN_MEMORY_BYTES: Final = 16 * 1024 * 1024
"""An idle sandbox uses 11 to 13 MiB.

With 14 MiB it boots on every release of runsc that was tried.
"""
MIN_CPU_QUOTA: Final = 10_000
"""A tenth of a core, in microseconds each 100 ms; a sandbox boots in 1.2 s with it.

With 5000 a boot takes 3 s. With 1000, the kernel's least, it takes 18 of the 20 s that it may take.
"""
MIN_DISK_BYTES: Final = 4096
"""One page, the unit in which a filesystem counts."""
MIN_TIMEOUT_SECONDS: Final = 0.001
"""Starting a program alone takes some ms."""


def least(field: str, bound: float) -> AfterValidator:
    """Return a validator that refuses a value below `bound`.

    Zero is allowed, it means the default.
    """

    def check(value: float) -> float:
        if 0 < value < bound:
            msg = "{asked} cannot work, the least is {bound}"
            raise PydanticCustomError(
                "below_least", msg, {"asked": format_limit(field, value), "bound": format_limit(field, bound)}
            )
        return value

    return AfterValidator(check)


def check_text(value: str) -> str:
    """Refuse a text that cannot be an argument, an environment variable or a path of a program."""
    if "\0" in value:
        msg = "must not contain a NUL character"
        raise PydanticCustomError("nul_character", msg)
    if not value.isascii() and not _is_utf8(value):
        # Half a UTF-16 pair, by which Python represents a byte of argv that is not UTF-8.
        msg = "is not valid UTF-8: send other bytes by stdin"
        raise PydanticCustomError("not_utf8", msg)
    refuse_longer(value, MAX_ITEM_BYTES, "send it by stdin or put it into the image")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_longer(value: str, max_bytes: int, advice: str) -> None:
    """Refuse a text of more than `max_bytes` in UTF-8; the message ends with `advice`."""
    if len(value) * MAX_UTF8_BYTES > max_bytes and (size := len(value.encode())) > max_bytes:
        msg = "has {size}, the limit is {limit}: {advice}"
        sizes = {"size": format_bytes(size), "limit": format_bytes(max_bytes)}
        raise PydanticCustomError("too_many_bytes", msg, {**sizes, "advice": advice})


def check_search_path(item: str) -> None:
    """Refuse an item ``PATH=...`` with too many folders."""
    if (folders := item.count(":") + 1) > MAX_PATH_FOLDERS:
        msg = "PATH has {folders} folders, the limit is {limit}"
        raise PydanticCustomError("path_folders", msg, {"folders": folders, "limit": MAX_PATH_FOLDERS})


def check_arguments(items: Sequence[str]) -> None:
    """Refuse a command and an environment that do not fit into init's message."""
    if sum(map(len, items)) * MAX_UTF8_BYTES <= MAX_ARGUMENT_BYTES:
        return
    size = sum(len(item.encode()) for item in items)
    if size > MAX_ARGUMENT_BYTES:
        msg = "command and env have {size} together, the limit is {limit}: send it by stdin or put it into the image"
        sizes = {"size": format_bytes(size), "limit": format_bytes(MAX_ARGUMENT_BYTES)}
        raise PydanticCustomError("arguments_too_long", msg, sizes)
