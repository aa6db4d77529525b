"""Fields of an outcome that follow from others, where its sender does not say them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from sandfleet_config.codes import Category


def find_category(fields: dict[str, Any]) -> Category:
    """Return the category of the outcome's code."""
    return _find_code(fields).category


def find_retryable(fields: dict[str, Any]) -> bool:
    """Return whether another try can end better, by the outcome's code."""
    return _find_code(fields).is_retryable


def _find_code(fields: dict[str, Any]) -> ErrorCode:
    code: ErrorCode = fields.get("code", ErrorCode.INTERNAL)  # older pydantic asks even where `code` was refused
    return code


def find_start(fields: dict[str, Any]) -> str | None:
    """Return how the program's sandbox started; workers before contract 6 do not say it."""
    if fields.get("duration") is None:
        return None
    return "warm" if getattr(fields.get("runtime"), "warm", False) else "cold"
