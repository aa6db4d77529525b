"""CONTRIBUTING.md names files that exist, and hooks that need nothing but `.venv`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packages_page import FOLDERS

ROOT = Path(__file__).parents[2]


def test_each_file_that_contributors_are_sent_to_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = {path for path in re.findall(r"`(?:python )?([\w./-]+/[\w./-]*)[^`]*`", text) if not path.startswith("/")}
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_each_make_target_that_contributors_are_told_exists() -> None:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / ".github/pull_request_template.md"]
    targets = {target for page in pages for target in re.findall(r"[`$] ?make ([a-z-]+)", page.read_text())}
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "test-fast", "docs"} <= targets <= known


def test_hooks_call_only_what_is_in_the_environment() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert (ROOT / program).exists()


def test_a_hook_runs_for_each_file_that_its_tool_checks() -> None:
    hooks = {
        hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    }
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    checked = {
        "pyright": tools["pyright"]["include"],
        "lint-imports": [f"{folder}/{package}" for package, folder in FOLDERS.items()],
    }
    assert set(tools["importlinter"]["root_packages"]) == set(FOLDERS)
    for name, paths in checked.items():
        files = [path if Path(path).suffix else f"{path}/x.py" for path in [*paths, "pyproject.toml"]]
        assert [path for path in files if not re.search(hooks[name]["files"], path)] == []
