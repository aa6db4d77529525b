"""Flower runs with what other distributions add to it, and without what fails."""

from __future__ import annotations

import types
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.celery_worker.flower.plugins import GROUP, install_plugins

if TYPE_CHECKING:
    from collections.abc import Callable


def add_page(handlers: list[Any], settings: dict[str, Any]) -> None:
    handlers.insert(0, "page")
    settings["fleet_pages"] = True


def fail(handlers: list[Any], settings: dict[str, Any]) -> None:
    handlers.clear()
    settings["half"] = "done"
    raise RuntimeError("its settings are wrong")


@pytest.fixture
def new_plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], EntryPoint]:
    def make(name: str, install: Any) -> EntryPoint:
        module = types.ModuleType(f"plugin_{name}")
        module.__dict__["install"] = install
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
        return EntryPoint(name, f"{module.__name__}:install", GROUP)

    return make


def test_a_plugin_adds_routes_and_settings(new_plugin: Callable[[str, Any], EntryPoint]) -> None:
    handlers, settings = ["stock"], {"login_url": "/login"}
    assert install_plugins(handlers, settings, [new_plugin("pages", add_page)]) == []
    assert handlers == ["page", "stock"]
    assert settings == {"login_url": "/login", "fleet_pages": True}


def test_a_plugin_that_fails_changes_nothing_and_is_told(new_plugin: Callable[[str, Any], EntryPoint]) -> None:
    handlers, settings = ["stock"], {"login_url": "/login"}
    plugins = [new_plugin("broken", fail), new_plugin("pages", add_page)]
    faults = install_plugins(handlers, settings, plugins)
    assert faults == ["Flower runs without broken (plugin_broken:install): its settings are wrong"]
    assert handlers == ["page", "stock"]
    assert settings == {"login_url": "/login", "fleet_pages": True}


def test_a_plugin_that_is_not_there_is_told() -> None:
    (fault,) = install_plugins([], {}, [EntryPoint("pages", "no_such_module:install", GROUP)])
    assert fault.startswith("Flower runs without pages (no_such_module:install): No module named")


def test_without_a_plugin_one_line_says_what_is_missing() -> None:
    assert install_plugins([], {}, []) == [
        "Flower runs without pages: no package offers sandfleet.flower; sandfleet-web does"
    ]
