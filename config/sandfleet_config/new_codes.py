"""Read codes of a newer release in the JSON of outcomes and attempts."""

from __future__ import annotations

from typing import Any, cast

from sandfleet_config.codes import read_category, read_code


def replace_new_codes(raw: object) -> object:
    """Replace codes of a newer release by `ErrorCode` in an outcome's JSON.

    pydantic refuses their text.
    """
    if not isinstance(raw, dict):
        return raw
    fields = cast("dict[str, Any]", raw)
    told = (fields.get("category"), fields.get("retryable"))
    attempts = fields.get("attempts")
    if isinstance(attempts, list):
        fields = {**fields, "attempts": [replace_new_code(item, *told) for item in cast("list[object]", attempts)]}
    if "category" in fields:
        fields = {**fields, "category": read_category(told[0])}
    return replace_new_code(fields, *told)


def replace_new_code(raw: object, *told: object) -> object:
    """Replace a code of a newer release by `ErrorCode` in the JSON of an attempt or an outcome.

    `told` are `category` and `retryable` of the record, if it has them.
    """
    if not isinstance(raw, dict):
        return raw
    fields = cast("dict[str, Any]", raw)
    try:
        return {**fields, "code": read_code(fields["code"], *told)}
    except (KeyError, ValueError):
        return fields
