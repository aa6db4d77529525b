"""The page of Redis keys equals the docstring of the scripts, which names every key."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from sandfleet_config.queues import RESERVED_QUEUES

ROOT = Path(__file__).parents[2]
SCRIPTS = [*ROOT.glob("config/sandfleet_config/lua/*.lua"), *ROOT.glob("worker/sandfleet_worker/delivery/lua/*.lua")]
KOMBUS = {"unacked", "unacked_index", "unacked_mutex"}


def load() -> Any:
    spec = importlib.util.spec_from_file_location("keys_page", ROOT / "scripts/keys_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_docstring_names_every_key() -> None:
    told = " ".join(f"{name} {text}" for name, text in load().read_keys())
    named = set(re.findall(r"[a-z][a-z_-]*", told))
    used = {name for path in SCRIPTS for name in re.findall(r"prefix \.\. '([a-z_-]+?):?'", path.read_text())}
    assert len(used) > 15
    wanted = {name.rstrip("-") for name in used | RESERVED_QUEUES - KOMBUS}
    assert {name for name in wanted if name not in named and f"{name}-" not in named} == set()
