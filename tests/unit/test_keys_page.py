"""The page of Redis keys equals the docstring of the scripts, which names every key."""

from __future__ import annotations

import re
from pathlib import Path

import keys_page
from sandfleet_config.queues import RESERVED_QUEUES

ROOT = Path(__file__).parents[2]
FOLDERS = ("config/sandfleet_config", "worker/sandfleet_worker/delivery", "web/sandfleet_web")
SCRIPTS = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/lua/*.lua")]
KOMBUS = {"unacked", "unacked_index", "unacked_mutex"}


def test_the_docstring_names_every_key() -> None:
    told = " ".join(f"{name} {text}" for name, text in keys_page.read_keys())
    named = set(re.findall(r"[a-z][a-z_-]*", told))
    used = {name for path in SCRIPTS for name in re.findall(r"prefix \.\. '([a-z_-]+?):?'", path.read_text())}
    assert len(used) > 15
    wanted = {name.rstrip("-") for name in used | RESERVED_QUEUES - KOMBUS}
    assert {name for name in wanted if name not in named and f"{name}-" not in named} == set()
