"""Fingerprints of a spec: the same fingerprint is the same job."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.codes import ErrorCode
from sandfleet_config.files import by_reference
from sandfleet_config.spec import RETRIED_CODES
from sandfleet_config.wire import encode_batch_fields, encode_run, encode_text

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec

_FIRST_RETRIED: Final = tuple(code for code in RETRIED_CODES if code is not ErrorCode.STORE_UNAVAILABLE)
"""The default of `retry_on` in contract versions 2 and 3.

A fingerprint of the default stays the same.
"""


def spec_sha256(spec: SandboxSpec, run: str | None = None) -> str:
    """Return the fingerprint of the spec without `DELIVERY_FIELDS` and `BATCH_FIELDS`, in hex.

    It is the sha256 of `encode_run` with `labels` and `requires` sorted by name. Files count by
    path, digest and mode, so that a file is the same in the spec and in the store. `run` is
    `encode_run` of `spec`, if the caller has it.
    """
    changes: dict[str, Any] = {}
    if len(spec.labels) > 1 or len(spec.requires) > 1:
        changes = {name: dict(sorted(getattr(spec, name).items())) for name in ("labels", "requires")}
    if spec.stdin.size is not None:
        changes["stdin"] = spec.stdin.model_copy(update={"size": None})
    if spec.files:
        changes["files"] = ()
    if changes:
        run = encode_run(spec.model_copy(update=changes))
    text = run or encode_run(spec)
    if spec.files:
        text += json.dumps(by_reference(spec.files), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def request_sha256(spec: SandboxSpec, spec_hash: str | None = None, key: str = "") -> str:
    """Return the fingerprint of the spec with `DELIVERY_FIELDS` and `BATCH_FIELDS`, in hex.

    The same idempotency key with another fingerprint is a conflict. `spec_hash` is `spec_sha256` of
    `spec`, if the caller has it. `key` is the idempotency key of a spec without one.
    """
    retried = _FIRST_RETRIED if spec.retry_on == RETRIED_CODES else spec.retry_on
    how = _encode_how(spec.priority, spec.queue_ttl, spec.max_attempts, retried)
    text = f"{spec_hash or spec_sha256(spec)} [{encode_text(spec.idempotency_key or key)}, {how}]{encode_batch_fields(spec)}"
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=256)
def _encode_how(*fields: object) -> str:
    return json.dumps(fields)[1:-1]
