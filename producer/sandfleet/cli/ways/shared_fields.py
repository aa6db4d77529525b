"""Fields that all jobs of a ``sandfleet submit`` get, from the options of ``sandfleet run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_IMAGE: Final = "python"


def merge_fields(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job: its own, and those of all jobs that it lacks.

    The parts of ``resources``, ``security``, ``output`` and ``labels`` are merged one by one, and
    so are the variables of ``env``.
    """
    merged = {**common, **own}
    for name, join in _JOINED.items():
        if name in common and name in own:
            merged[name] = join(common[name], own[name])
    return merged


def _join_parts(common: object, own: object) -> object:
    if isinstance(common, dict) and isinstance(own, dict):
        return cast("dict[str, Any]", common) | cast("dict[str, Any]", own)
    return own


def _join_env(common: object, own: Any) -> object:
    """Put the variables of all jobs before a job's own, and leave out those that it sets itself."""
    if isinstance(own, dict):
        own = [f"{key}={value}" for key, value in cast("dict[str, Any]", own).items()]
    if not isinstance(own, list) or not isinstance(common, list):
        return cast("object", own)
    items = cast("list[object]", own)
    names = {item.partition("=")[0] for item in items if isinstance(item, str)}
    return [*(item for item in cast("list[str]", common) if item.partition("=")[0] not in names), *items]


_JOINED: Final[Mapping[str, Callable[[object, object], object]]] = {
    "resources": _join_parts,
    "security": _join_parts,
    "output": _join_parts,
    "labels": _join_parts,
    "env": _join_env,
}
