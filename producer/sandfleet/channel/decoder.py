"""Decode the usual result record, which has every field of this release, twice as fast as pydantic.

Invariant: the result equals what pydantic makes of the same bytes; records that may differ are left
to pydantic. Three differences remain: the class of a time zone; a time finer than a microsecond,
which no worker writes, is rounded, not cut; a number with too many digits is no error in a field
that is skipped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome

CACHED_TEXTS: Final = 128
TYPES: Final[dict[str, Any]] = {
    name: field.annotation for name, field in Outcome.model_fields.items() if not field.exclude
}
FIELDS: Final = set(TYPES)


def _new_decoder() -> msgspec.json.Decoder[Any]:
    """Derive both records from `Outcome`: all fields are required, no type is converted."""
    # Half of an outcome's objects, and the same text in most outcomes of a batch: decoded once.
    shared = {"limits": msgspec.Raw, "runtime": msgspec.Raw}
    refused = [("faults", msgspec.UnsetType, msgspec.UNSET)]  # pydantic would read it
    fields: Any = msgspec.defstruct("Fields", [*(TYPES | shared).items(), *refused], gc=False)
    success: Any = msgspec.defstruct("Success", [("result", fields)], tag_field="status", tag="SUCCESS", gc=False)
    error: Any = msgspec.defstruct("Error", [("exc_message", tuple.__class_getitem__((ErrorCode, str, fields)))])
    failure: Any = msgspec.defstruct("Failure", [("result", error)], tag_field="status", tag="FAILURE")
    return msgspec.json.Decoder(success | failure)


# An outcome is frozen. These set its attributes twice as fast as `object.__setattr__`.
_set_dict, _set_names, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
_decoder: Final = _new_decoder()


class _SharedField:
    """Decodes a field whose text is the same in most outcomes of a batch: only once.

    It is compared with the last text first: a look-up in the cache would hash it.
    """

    def __init__(self, kind: Any) -> None:
        self._decode = lru_cache(CACHED_TEXTS)(msgspec.json.Decoder(kind).decode)
        self._last: tuple[bytes, Any] = (b"", None)

    def decode(self, raw: msgspec.Raw) -> Any:
        text = bytes(raw)
        last, value = self._last
        if text != last:
            value = self._decode(text)
            self._last = (text, value)
        return value


_limits: Final = _SharedField(TYPES["limits"])
_runtime: Final = _SharedField(TYPES["runtime"])


def decode_outcome(raw: bytes) -> Outcome | None:
    """Return the outcome of a usual record of an ended job; None for any other record."""
    try:
        if not raw.isascii():
            raw.decode()  # msgspec does not check for UTF-8 in fields that it skips
        result = _decoder.decode(raw).result
        if hasattr(result, "exc_message"):
            code, _, result = result.exc_message
            if code is ErrorCode.OK:
                return None
        fields = msgspec.structs.asdict(result)
        fields["limits"] = _limits.decode(fields["limits"]).copy()
        fields["runtime"] = _runtime.decode(fields["runtime"])
        fields["faults"] = ()  # stored beside the outcome; such a record is left to pydantic
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _new_outcome(fields)


def _new_outcome(fields: dict[str, Any]) -> Outcome:
    """Return an outcome of checked fields; `model_construct` would take as long as the decoding.

    An instance has these four attributes only: those that `BaseModel.__setstate__` sets.
    """
    outcome = Outcome.__new__(Outcome)
    _set_dict(outcome, fields)
    _set_names(outcome, FIELDS)  # shared: an outcome is frozen, and a copy has its own
    _set_extra(outcome, None)
    _set_private(outcome, None)
    return outcome
