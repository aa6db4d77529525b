"""Encode and decode a job as one JSON string with the contract version; decoding checks it."""

from __future__ import annotations

import json
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.codes import ErrorCode
from sandfleet_config.contract import CONTRACT_VERSIONS, DEFAULT_DELIVERY, FIELDS_OF, ContractVersion, find_contract
from sandfleet_config.errors import SecurityViolation, SpecInvalid, SpecTooLarge
from sandfleet_config.faults import describe_fault, list_faults
from sandfleet_config.fields import SECURITY_VIOLATION, ContractModel, Name
from sandfleet_config.image_names import normalize_image
from sandfleet_config.spec import (
    BATCH_FIELDS,
    DEFAULT_GRACE_SECONDS,
    DEFAULT_OUTPUT_BYTES,
    DELIVERY_FIELDS,
    SandboxSpec,
)
from sandfleet_config.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel


MAX_SPEC_BYTES = 256 * 1024
MAX_REPORTED_FAULTS = 50


def _find_contract_of(fields: dict[str, Any]) -> ContractVersion:
    spec = fields.get("spec")  # absent if it is faulty, which is a fault of its own
    return find_contract(spec) if isinstance(spec, SandboxSpec) else 1


class JobRequest(ContractModel):
    """A job as it is sent: its spec, its batch and the contract version the worker must speak."""

    spec: SandboxSpec
    batch: Name | None = None
    contract: ContractVersion = Field(default_factory=_find_contract_of)

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        """Refuse a version that lacks fields of the spec: workers choose jobs by the version."""
        needed = find_contract(self.spec)
        if self.contract < needed:
            msg = "{fields} need contract version {needed}"
            raise PydanticCustomError("contract", msg, {"fields": FIELDS_OF[needed], "needed": needed})
        return self


def new_spec(fields: Mapping[str, Any]) -> SandboxSpec:
    """Build a spec from plain data.

    Raises:
        SpecInvalid: ``errors`` has every fault.
        SecurityViolation: likewise, if one of the faults is a violation.
    """
    try:
        return SandboxSpec.model_validate(fields)
    except ValidationError as error:
        raise_faults(error)


def encode_job(request: JobRequest, max_bytes: int = MAX_SPEC_BYTES) -> str:
    """Return `request` as the JSON string that Celery sends.

    Raises:
        SpecTooLarge: over `max_bytes`.
    """
    spec = request.spec
    return join_job(
        encode_run(spec), spec, spec.idempotency_key, request.batch, contract=request.contract, max_bytes=max_bytes
    )


def encode_run(spec: SandboxSpec) -> str:
    """Return `spec` as a JSON object, without `DELIVERY_FIELDS`, `BATCH_FIELDS` and defaults.

    Without the defaults it is short, and an older worker can run a spec that uses no newer field.
    """
    return spec.model_dump_json(exclude_defaults=True, exclude=_DELIVERY)


def encode_needs(spec: SandboxSpec, image: str = "") -> str:
    """Return the needs of `spec` that its host must meet, as the rest of a JSON object.

    `image` is what stands for the spec's image, such as the digest that its batch runs.

    The object begins with the contract version, which `join_needs` adds. The names are `image`,
    `requires`, `datasets` (see `DatasetSpec.reference`) and those of `find_requested_limits`.
    """
    return _encode_needs(
        image,
        spec.image,
        _list_limits(spec),
        tuple(spec.requires.items()) if spec.requires else (),
        tuple([dataset.reference for dataset in spec.datasets]) if spec.datasets else (),
    )


@lru_cache(maxsize=256)
def _encode_needs(
    image: str, name: str, asked: tuple[float, ...], requires: tuple[tuple[str, str], ...], datasets: tuple[str, ...]
) -> str:
    """Encode the needs, which are the same for most jobs of a batch; `name` is the image's in the spec."""
    needs: dict[str, object] = {"image": image or normalize_image(name), **_name_limits(asked)}
    if requires:
        needs["requires"] = dict(requires)
    if datasets:
        needs["datasets"] = datasets
    return _encode_compact(needs)[1:]


def join_needs(contract: int, needs: str = "") -> str:
    """Return the field `needs` of a job's record. `needs` is the text of `encode_needs`."""
    return f'{{"contract":{contract},{needs}' if needs else f'{{"contract":{contract}}}'


def find_requested_limits(spec: SandboxSpec) -> dict[str, float]:
    """Return the limits that differ from the defaults, by the names of the host's ceilings."""
    return _name_limits(_list_limits(spec))


_LIMITS: Final = ("memory_bytes", "cpu_quota", "pids_limit", "disk_bytes", "timeout", "grace", "output_bytes")


def _list_limits(spec: SandboxSpec) -> tuple[float, ...]:
    """Return the values of `_LIMITS`, 0 for a default."""
    resources, grace, output_bytes = spec.resources, spec.grace, spec.output.max_bytes
    return (
        resources.memory_bytes,
        resources.cpu_quota,
        resources.pids_limit,
        resources.disk_bytes,
        spec.timeout,
        0 if grace == DEFAULT_GRACE_SECONDS else grace,
        0 if output_bytes == DEFAULT_OUTPUT_BYTES else output_bytes,
    )


def _name_limits(asked: tuple[float, ...]) -> dict[str, float]:
    return {name: value for name, value in zip(_LIMITS, asked, strict=True) if value}


def join_job(run: str, spec: SandboxSpec, key: str, batch: str | None, *, contract: int, max_bytes: int) -> str:
    """Return the JSON string of a job. `run` is `encode_run` of `spec`, `key` its idempotency key.

    Raises:
        SpecTooLarge: over `max_bytes`.
    """
    named_key = f',"idempotency_key":{encode_text(key)}' if key else ""
    delivery = encode_delivery(spec.priority, spec.queue_ttl, spec.max_attempts, spec.retry_on)
    later = encode_batch_fields(spec)
    named_batch = f',"batch":{encode_text(batch)}' if batch is not None else ""
    text = f'{{"contract":{contract},"spec":{run[:-1]}{named_key}{delivery}{later}}}{named_batch}}}'
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        _refuse_size(size, max_bytes)
    return text


@lru_cache(maxsize=256)
def encode_delivery(priority: int, queue_ttl: float, max_attempts: int, retry_on: Sequence[ErrorCode]) -> str:
    """Return the delivery fields that differ from the defaults, as part of a JSON object.

    The key is not in it.
    """
    fields = zip(DELIVERY_FIELDS[1:], (priority, queue_ttl, max_attempts, retry_on), DEFAULT_DELIVERY[1:], strict=True)
    return "".join(f',"{name}":{json.dumps(value)}' for name, value, default in fields if value != default)


def encode_batch_fields(spec: SandboxSpec) -> str:
    """Return the fields of contract 5 as part of a JSON object, without defaults.

    It is empty if the spec uses none.
    """
    after, retry_with = spec.after, spec.retry_with
    # Asked twice of each submitted job: calls of `__bool__` took a tenth of its time.
    if not (after.jobs or after.batches or retry_with.memory_bytes or retry_with.timeout):
        return ""
    fields = (("after", after), ("retry_with", retry_with))
    return "".join(f',"{name}":{value.model_dump_json(exclude_defaults=True)}' for name, value in fields if value)


def decode_job(text: object, max_bytes: int = MAX_SPEC_BYTES) -> JobRequest:
    """Decode and check a string of `encode_job`; the error tells every fault.

    Raises:
        SpecInvalid: not a string, not JSON, another contract version, or a faulty spec.
        SpecTooLarge: over `max_bytes`.
        SecurityViolation: the spec asks for something that no job may have.
    """
    if not isinstance(text, str):
        msg = f"the job's argument must be one JSON string with the spec, not {type(text).__name__}"
        raise SpecInvalid.of(msg)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        msg = "the spec is not valid UTF-8"
        raise SpecInvalid.of(msg) from None
    if size > max_bytes:
        _refuse_size(size, max_bytes)
    _check_contract(_parse_object(text))
    try:
        return JobRequest.model_validate_json(text)
    except ValidationError as error:
        raise_faults(error, JobRequest)


def _parse_object(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        msg = "the spec is not JSON"
        raise SpecInvalid.of(msg) from None
    if not isinstance(raw, dict):
        msg = "the spec must be a JSON object with the keys contract and spec"
        raise SpecInvalid.of(msg)
    return cast("dict[str, Any]", raw)


def _check_contract(raw: dict[str, Any]) -> None:
    version: object = raw.get("contract")
    is_number = isinstance(version, int) and not isinstance(version, bool)
    if is_number and version in CONTRACT_VERSIONS:
        return
    spoken = " to ".join(str(version) for version in sorted({min(CONTRACT_VERSIONS), max(CONTRACT_VERSIONS)}))
    if "contract" not in raw:
        found = "a bare spec" if "image" in raw else "an object without it"
        message = f'the version is missing, the argument is {found}: send {{"contract": {CONTRACT_VERSIONS[0]}, "spec": {{...}}}}'
    elif is_number:
        message = f"the version is {version}, this side speaks {spoken}: bring both to one release"
    else:
        message = f"the version must be a number, {spoken}"
    raise SpecInvalid.of(f"contract: {message}", errors=[{"field": "contract", "message": message}])


def _refuse_size(size: int, max_bytes: int) -> NoReturn:
    msg = (
        f"the encoded spec has {format_bytes(size)}, the limit is {format_bytes(max_bytes)} (SANDFLEET_MAX_SPEC_BYTES):"
        " put large inputs into the image, or upload them and name their sha256 in files"
    )
    raise SpecTooLarge.of(msg)


def raise_faults(error: ValidationError, model: type[BaseModel] = SandboxSpec) -> NoReturn:
    """Raise the exception for pydantic's `error`, which `model` raised; it lists the first faults.

    No input value is repeated: it may be a secret.

    Raises:
        SecurityViolation: one of the faults is a violation.
        SpecInvalid: otherwise.
    """
    found = list_faults(error)
    # Only these: 20,000 unknown fields of one spec held a worker's claims up for 4 s.
    faults = [describe_fault(item, model) for item in found[:MAX_REPORTED_FAULTS]]
    is_violation = any(item["type"] == SECURITY_VIOLATION for item in found)
    text = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    if len(found) > MAX_REPORTED_FAULTS:
        text += f"; and {len(found) - MAX_REPORTED_FAULTS} more"
    raise (SecurityViolation if is_violation else SpecInvalid).of(text, errors=faults) from None


encode_text: Final = encode_basestring_ascii
"""Encodes a text as JSON: the encoder of `json.dumps` without its questions about the type."""
_encode_compact: Final = json.JSONEncoder(separators=(",", ":")).encode
_DELIVERY: set[str] = {*DELIVERY_FIELDS, *BATCH_FIELDS}
