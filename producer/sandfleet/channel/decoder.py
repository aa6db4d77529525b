"""Reads the usual result record, which has every field of this release, in less than half the time of pydantic.

Invariant: what comes out is what pydantic makes of the same bytes, and anything that may differ is left to pydantic. These do
differ: the class of a time zone; a time finer than a microsecond, which no worker writes, is rounded, not cut; and a number
that is too long to be one does not matter in a field that is passed over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import LimitState, Outcome, Runtime

KEPT_TEXTS: Final = 128
TYPES: Final[dict[str, Any]] = {
    name: field.annotation for name, field in Outcome.model_fields.items() if not field.exclude
}
FIELDS: Final = set(TYPES)


def _new_decoder() -> msgspec.json.Decoder[Any]:
    """Derive both records from `Outcome`: all of its fields must be there, and msgspec converts no type to another."""
    # The same text in the outcomes of most jobs of a batch, and half of an outcome's objects: decoded once.
    shared = {"limits": msgspec.Raw, "runtime": msgspec.Raw}
    fields: Any = msgspec.defstruct("Fields", list((TYPES | shared).items()), gc=False)
    success: Any = msgspec.defstruct("Success", [("result", fields)], tag_field="status", tag="SUCCESS", gc=False)
    error: Any = msgspec.defstruct("Error", [("exc_message", tuple.__class_getitem__((ErrorCode, str, fields)))])
    failure: Any = msgspec.defstruct("Failure", [("result", error)], tag_field="status", tag="FAILURE")
    return msgspec.json.Decoder(success | failure)


_set: Final = object.__setattr__  # an outcome is frozen
_decoder: Final = _new_decoder()
_limits: Final[msgspec.json.Decoder[dict[str, LimitState]]] = msgspec.json.Decoder(TYPES["limits"])
_runtime: Final[msgspec.json.Decoder[Runtime]] = msgspec.json.Decoder(TYPES["runtime"])


def decode_outcome(raw: bytes) -> Outcome | None:
    """Return the outcome of a usual record of a job that has ended; None for any other."""
    try:
        if not raw.isascii():
            raw.decode()  # in fields that are passed over, msgspec does not notice what is no UTF-8
        result = _decoder.decode(raw).result
        if hasattr(result, "exc_message"):
            code, _, result = result.exc_message
            if code is ErrorCode.OK:
                return None
        fields = msgspec.structs.asdict(result)
        fields["limits"] = _decode_limits(bytes(fields["limits"])).copy()
        fields["runtime"] = _decode_runtime(bytes(fields["runtime"]))
        fields["faults"] = ()  # they travel beside the outcome: such a record is left to pydantic
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _new_outcome(fields)


@lru_cache(KEPT_TEXTS)
def _decode_limits(text: bytes) -> dict[str, LimitState]:
    return _limits.decode(text)


@lru_cache(KEPT_TEXTS)
def _decode_runtime(text: bytes) -> Runtime:
    return _runtime.decode(text)


def _new_outcome(fields: dict[str, Any]) -> Outcome:
    """Return an outcome of checked fields; `model_construct` would take as long as the decoding.

    These four are all that an instance has, and what `BaseModel.__setstate__` sets; its documentation names them.
    """
    outcome = Outcome.__new__(Outcome)
    _set(outcome, "__dict__", fields)
    _set(outcome, "__pydantic_fields_set__", FIELDS)  # nobody adds to it: an outcome is frozen, and a copy has its own
    _set(outcome, "__pydantic_extra__", None)
    _set(outcome, "__pydantic_private__", None)
    return outcome
