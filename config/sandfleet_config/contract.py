"""Contract versions: which fields of a spec belong to which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sandfleet_config.codes import ErrorCode
from sandfleet_config.image_names import REGISTRY_PREFIX
from sandfleet_config.spec import BATCH_FIELDS, DELIVERY_FIELDS, RETRIED_CODES, STORED_FIELDS, SandboxSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTRACT_VERSIONS: Final = (1, 2, 3, 4, 5, 6)
"""Contract versions that this release speaks.

Version 2 adds `spec.DELIVERY_FIELDS`, version 3 `requires`, version 4 `spec.STORED_FIELDS`, version
5 `spec.BATCH_FIELDS`, `output.live` and limits of a batch, version 6 `prepared`. A request says the
lowest version that has all that it uses, so that older workers can run it.
"""
ContractVersion: TypeAlias = Literal[1, 2, 3, 4, 5, 6]
STORED_CONTRACT: Final = 4
"""The version of a job that may need the store: objects there, or an image of a registry."""
BATCH_CONTRACT: Final = 5
"""The version of a job with one of `spec.BATCH_FIELDS` or `output.live`, or of a batch with limits."""
PREPARED_CONTRACT: Final = 6
"""The version of a job that names a preparation, or wants none."""
FIELDS_OF: Final[Mapping[int, str]] = {
    2: ", ".join(DELIVERY_FIELDS),
    3: "what it requires of its host",
    STORED_CONTRACT: "files, datasets, artifacts, objects of the store and images of a registry",
    BATCH_CONTRACT: ", ".join((*BATCH_FIELDS, "output.live")),
    PREPARED_CONTRACT: "preparations (prepared)",
}
"""The fields of each version, for messages."""


_FIRST_FIELDS: Final = frozenset(SandboxSpec.model_fields) - {
    *("requires", "stdin", "output", "prepared"),
    *(*DELIVERY_FIELDS, *STORED_FIELDS, *BATCH_FIELDS),
}
"""Fields that need no later version than 1, whatever they say; of the image it depends."""


def find_contract(spec: SandboxSpec) -> ContractVersion:
    """Return the lowest contract version that has all fields `spec` uses."""
    # Most specs: half the time of the questions below. The dict of a spec may change later.
    if spec.model_fields_set <= _FIRST_FIELDS and not spec.requires and not spec.image.startswith(REGISTRY_PREFIX):
        return 1
    if spec.prepared is not None:
        return PREPARED_CONTRACT
    if spec.after or spec.retry_with or spec.output.live:
        return BATCH_CONTRACT
    if _uses_store(spec):
        return STORED_CONTRACT
    if spec.requires:
        return 3
    return 1 if _delivery_of(spec) == DEFAULT_DELIVERY else 2


def _uses_store(spec: SandboxSpec) -> bool:
    """Whether `spec` uses a field of contract version 4."""
    return bool(
        spec.files
        or spec.artifacts
        or spec.datasets
        or spec.stdin.sha256
        or spec.output.store
        or spec.image.startswith(REGISTRY_PREFIX)
        or (spec.retry_on != RETRIED_CODES and ErrorCode.STORE_UNAVAILABLE in spec.retry_on)
    )


def _delivery_of(spec: SandboxSpec) -> tuple[object, ...]:
    return spec.idempotency_key, spec.priority, spec.queue_ttl, spec.max_attempts, spec.retry_on


DEFAULT_DELIVERY: Final = _delivery_of(SandboxSpec(image="-"))
"""The defaults of `spec.DELIVERY_FIELDS`, in their order."""
