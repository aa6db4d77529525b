"""Which package index uv asks: that of uv's own settings on this host, else that of pip's.

uv reads no settings of pip. A host that has only those would ask the public index.
"""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

UV_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
PASSED_ON = (
    *UV_INDEX,
    "UV_CONFIG_FILE",
    "UV_HTTP_TIMEOUT",
    "UV_INDEX_STRATEGY",
    "UV_INSECURE_HOST",
    "UV_KEYRING_PROVIDER",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "NETRC",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)
"""Variables that change where packages come from, and nothing of what is built."""

_OF_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
}
_SEPARATORS = {"UV_FIND_LINKS": ","}


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Options and environment with which uv asks the same index as pip on this host."""

    env: Mapping[str, str]
    flags: tuple[str, ...] = ()


def read_index_settings(environ: Mapping[str, str] | None = None) -> IndexSettings:
    """Return the settings of uv on this host, else those of pip as uv takes them."""
    environ = os.environ if environ is None else environ
    found = {name: environ[name] for name in PASSED_ON if environ.get(name)}
    found |= {name: text for name, text in environ.items() if name.startswith("UV_INDEX_") and text}
    # uv runs with another HOME, so it is told where this file is.
    own = _find_config(environ) / "uv" / "uv.toml"
    if own.is_file():
        found.setdefault("UV_CONFIG_FILE", str(own))
    if not found.keys() & {*UV_INDEX, "UV_CONFIG_FILE"} and not Path("/etc/uv/uv.toml").is_file():
        of_pip = _read_pip(environ)
        # uv has no variable for it (0.13).
        flags = ("--no-index",) if of_pip.get("no-index", "").lower() in {"1", "true", "yes", "on"} else ()
        return IndexSettings(_translate(of_pip) | found, flags)
    return IndexSettings(found)


def _find_config(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/root")) / ".config")


def _read_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's own settings: those of its files, and over them those of its variables."""
    values: dict[str, str] = {}
    for path in _list_pip_files(environ):
        parser = configparser.RawConfigParser()
        parser.read(path, encoding="utf-8")
        for section in ("global", "install"):
            if parser.has_section(section):
                values |= dict(parser.items(section))
    for name in (*_OF_PIP, "no-index"):
        if text := environ.get(f"PIP_{name.replace('-', '_').upper()}"):
            values[name] = text
    return values


def _translate(of_pip: Mapping[str, str]) -> dict[str, str]:
    return {
        variable: _SEPARATORS.get(variable, " ").join(words)
        for name, variable in _OF_PIP.items()
        if (words := of_pip.get(name, "").split())
    }


def _list_pip_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files that pip reads, the strongest last (pip's user guide, Configuration)."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:
        return []
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        Path(environ.get("HOME", "/root")) / ".pip/pip.conf",
        _find_config(environ) / "pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    return [*files, *([Path(environ["PIP_CONFIG_FILE"])] if environ.get("PIP_CONFIG_FILE") else [])]
