"""Each distribution declares what it imports: an empty environment has nothing else.

`test_wheels` cannot see it. It installs nothing, so the packages of the checkout's environment help
out.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
FOLDERS = {"sandfleet-config": "config", "sandfleet": "producer", "sandfleet-worker": "worker", "sandfleet-web": "web"}
PARTS = {
    "billiard": "celery",
    "kombu": "celery",
    "opentelemetry-api": "opentelemetry-sdk",
    "pydantic-core": "pydantic",
    "tornado": "flower",
}
"""Parts of distributions that we declare: they always come with these."""
LOADERS = {"sandfleet": {"pytest"}}
"""Programs that import one of our modules by its entry point (`pytest11`). So they are installed where it runs."""
OTHER_PYTHONS = "sandfleet_worker/sandbox/prepared/bootstrap"
"""A program for the Pythons of images."""

Projects = dict[str, dict[str, Any]]


def read_projects() -> Projects:
    """Return each distribution's `pyproject.toml`."""
    return {name: tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for name, folder in FOLDERS.items()}


def find_undeclared(name: str, projects: Projects) -> dict[str, str]:
    """Return the imports of a distribution that it does not declare, with a file of each."""
    declared = {*find_declared(name, projects), name, *LOADERS.get(name, ())}
    return {
        module: path
        for module, path in find_imports(name).items()
        if not any(one in declared or PARTS.get(one) in declared for one in find_distributions(module))
    }


def find_declared(name: str, projects: Projects, extras: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield the requirements of a distribution, and those of our distributions that it requires.

    `extras` None means all extras of its own.
    """
    project = projects[name]["project"]
    optional: Mapping[str, list[str]] = project.get("optional-dependencies", {})
    chosen = optional if extras is None else extras
    for text in [*project["dependencies"], *(text for extra in chosen for text in optional[extra])]:
        requirement = Requirement(text)
        yield canonicalize_name(requirement.name)
        if requirement.name in projects and requirement.name != name:
            yield from find_declared(requirement.name, projects, tuple(requirement.extras))


@cache
def find_imports(name: str) -> dict[str, str]:
    """Return the packages that a distribution imports, but the standard library, with a file of each."""
    found: dict[str, str] = {}
    for package in read_projects()[name]["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        for path in sorted((ROOT / FOLDERS[name] / package).rglob("*.py")):
            if OTHER_PYTHONS not in str(path):
                found |= dict.fromkeys(read_imports(path.read_text()), str(path.relative_to(ROOT)))
    return found


def read_imports(text: str) -> Iterator[str]:
    """Yield the first name of each import, at any depth."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        yield from ({module.partition(".")[0] for module in modules} - sys.stdlib_module_names)


def find_distributions(module: str) -> set[str]:
    """Return the distributions that have a package."""
    own = {
        name
        for name, project in read_projects().items()
        if module in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    return own or {canonicalize_name(name) for name in _installed().get(module, [])}


@cache
def _installed() -> Mapping[str, list[str]]:
    return packages_distributions()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_distribution_declares_what_it_imports(name: str) -> None:
    assert len(find_imports(name)) > 5
    assert find_undeclared(name, read_projects()) == {}


@pytest.mark.parametrize(
    ("name", "dropped_by", "dropped", "missed"),
    [
        ("sandfleet", "sandfleet", "msgspec", {"msgspec"}),
        ("sandfleet-web", "sandfleet-web", "httpcore2", {"httpcore2"}),
        ("sandfleet-web", "sandfleet-web", "sandfleet", {"sandfleet"}),
        ("sandfleet-worker", "sandfleet-worker", "flower", {"flower", "tornado"}),
        ("sandfleet-worker", "sandfleet-config", "celery", {"celery", "kombu", "billiard"}),
        ("sandfleet-config", "sandfleet-config", "obstore", {"obstore"}),
    ],
)
def test_a_dependency_that_is_not_declared_is_found(name: str, dropped_by: str, dropped: str, missed: set[str]) -> None:
    projects = read_projects()
    project = projects[dropped_by]["project"]
    for texts in (project["dependencies"], *project.get("optional-dependencies", {}).values()):
        texts[:] = [text for text in texts if Requirement(text).name != dropped]
    assert set(find_undeclared(name, projects)) == missed


def test_a_part_comes_with_its_distribution() -> None:
    for part, whole in PARTS.items():
        assert part in {canonicalize_name(Requirement(text).name) for text in requires(whole) or ()}
