"""What travels: one JSON string with the contract version, and how to read one that a stranger may have written."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, Self, cast

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.bounds import MAX_NAME_CHARS
from sandfleet_config.errors import SecurityViolation, SpecInvalid, SpecTooLarge
from sandfleet_config.faults import describe_faults
from sandfleet_config.spec import (
    DELIVERY_FIELDS,
    SECURITY_VIOLATION,
    ContractModel,
    SandboxSpec,
    refuse_control_characters,
)
from sandfleet_config.words import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from sandfleet_config.errors import ErrorCode

CONTRACT_VERSIONS: Final = (1, 2)
"""What this release speaks. 2 adds `spec.DELIVERY_FIELDS`; a request without them says 1, for workers a version behind."""
MAX_SPEC_BYTES = 256 * 1024
MAX_REPORTED_FAULTS = 50


def find_contract(spec: SandboxSpec) -> Literal[1, 2]:
    """Return the lowest contract version that can say `spec`."""
    return 1 if _delivery_of(spec) == _DEFAULT_DELIVERY else 2


def _delivery_of(spec: SandboxSpec) -> tuple[object, ...]:
    return spec.idempotency_key, spec.priority, spec.queue_ttl, spec.max_attempts, spec.retry_on


_DEFAULT_DELIVERY: Final = _delivery_of(SandboxSpec(image="-"))


def _find_contract_of(fields: dict[str, Any]) -> Literal[1, 2]:
    spec = fields.get("spec")  # absent where it is faulty, which is told anyway
    return find_contract(spec) if isinstance(spec, SandboxSpec) else 1


class JobRequest(ContractModel):
    """A spec on its way: the spec, the batch it belongs to, and the contract both sides must speak."""

    spec: SandboxSpec
    batch: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(refuse_control_characters)] | None = None
    contract: Literal[1, 2] = Field(default_factory=_find_contract_of)

    @model_validator(mode="after")
    def _check_claim(self) -> Self:
        """Refuse a message that says less than it asks for: a reader would trust the number."""
        if self.contract == 1 and find_contract(self.spec) != 1:
            msg = "{fields} need contract version 2"
            raise PydanticCustomError("contract", msg, {"fields": ", ".join(DELIVERY_FIELDS)})
        return self


def new_spec(fields: Mapping[str, Any]) -> SandboxSpec:
    """Build a spec from plain data.

    Raises:
        SpecInvalid: with every fault in ``errors``.
        SecurityViolation: where one of the faults is a violation, which outranks the others.
    """
    try:
        return SandboxSpec.model_validate(fields)
    except ValidationError as error:
        raise_faults(error)


def encode_job(request: JobRequest, max_bytes: int = MAX_SPEC_BYTES) -> str:
    """Return `request` as the one JSON string that Celery carries.

    Raises:
        SpecTooLarge: over `max_bytes`.
    """
    spec = request.spec
    return join_job(
        encode_run(spec), spec, spec.idempotency_key, request.batch, contract=request.contract, max_bytes=max_bytes
    )


def encode_run(spec: SandboxSpec) -> str:
    """Return what of `spec` says what runs, as a JSON object: no `DELIVERY_FIELDS`, and nothing that is as it is by default.

    Without the defaults it is short, and an older worker runs specs that use none of the newer fields.
    """
    return spec.model_dump_json(exclude_defaults=True, exclude=_DELIVERY)


def join_job(run: str, spec: SandboxSpec, key: str, batch: str | None, *, contract: int, max_bytes: int) -> str:
    """Return the JSON string of a job from `run`, which is `encode_run` of `spec`; `key` is its idempotency key.

    Raises:
        SpecTooLarge: over `max_bytes`.
    """
    named_key = f',"idempotency_key":{_encode(key)}' if key else ""
    delivery = encode_delivery(spec.priority, spec.queue_ttl, spec.max_attempts, spec.retry_on)
    named_batch = f',"batch":{_encode(batch)}' if batch is not None else ""
    text = f'{{"contract":{contract},"spec":{run[:-1]}{named_key}{delivery}}}{named_batch}}}'
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        _refuse_size(size, max_bytes)
    return text


@lru_cache(maxsize=256)
def encode_delivery(priority: int, queue_ttl: float, max_attempts: int, retry_on: Sequence[ErrorCode]) -> str:
    """Return what of the delivery fields, the key aside, is not as by default, as it continues a JSON object."""
    fields = zip(DELIVERY_FIELDS[1:], (priority, queue_ttl, max_attempts, retry_on), _DEFAULT_DELIVERY[1:], strict=True)
    return "".join(f',"{name}":{json.dumps(value)}' for name, value, default in fields if value != default)


def decode_job(text: object, max_bytes: int = MAX_SPEC_BYTES) -> JobRequest:
    """Read what `encode_job` wrote, or say every reason why it is not that.

    Raises:
        SpecInvalid: not a string, not JSON, another contract version, or a faulty spec.
        SpecTooLarge: over `max_bytes`.
        SecurityViolation: the spec asks for what nobody may have.
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
    spoken = " and ".join(map(str, CONTRACT_VERSIONS))
    if "contract" not in raw:
        found = "a bare spec" if "image" in raw else "an object without it"
        message = f'the version is missing, the argument is {found}: send {{"contract": {CONTRACT_VERSIONS[0]}, "spec": {{...}}}}'
    elif is_number:
        message = f"the version is {version}, this side speaks {spoken}: bring both to one release"
    else:
        message = f"the version must be {' or '.join(map(str, CONTRACT_VERSIONS))}"
    raise SpecInvalid.of(f"contract: {message}", errors=[{"field": "contract", "message": message}])


def _refuse_size(size: int, max_bytes: int) -> NoReturn:
    msg = (
        f"the encoded spec has {format_bytes(size)}, the limit is {format_bytes(max_bytes)} (SANDFLEET_MAX_SPEC_BYTES):"
        " put large inputs into the image"
    )
    raise SpecTooLarge.of(msg)


def raise_faults(error: ValidationError, model: type[BaseModel] = SandboxSpec) -> NoReturn:
    """Raise pydantic's `error`, which `model` raised, as ours: every fault listed, no input value repeated (it may be a secret).

    Raises:
        SecurityViolation: one of the faults is a violation.
        SpecInvalid: otherwise.
    """
    described = describe_faults(error, model)
    faults = [fault for fault, _ in described[:MAX_REPORTED_FAULTS]]
    is_violation = any(kind == SECURITY_VIOLATION for _, kind in described)
    text = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    if len(described) > MAX_REPORTED_FAULTS:
        text += f"; and {len(described) - MAX_REPORTED_FAULTS} more"
    raise (SecurityViolation if is_violation else SpecInvalid).of(text, errors=faults) from None


def spec_sha256(spec: SandboxSpec, run: str | None = None) -> str:
    """Return the fingerprint of what runs: sha256 of `encode_run`, its labels in the order of their names, in hex.

    `run` is `encode_run` of `spec` where it is known already.
    """
    if len(spec.labels) > 1:
        run = encode_run(spec.model_copy(update={"labels": dict(sorted(spec.labels.items()))}))
    return hashlib.sha256((run or encode_run(spec)).encode()).hexdigest()


def request_sha256(spec: SandboxSpec, spec_hash: str | None = None, key: str = "") -> str:
    """Return the fingerprint of all that a producer asked for, how to deliver it included: what an idempotency key stands for.

    `spec_hash` is `spec_sha256` where it is known already, `key` the idempotency key where the spec has none of its own.
    """
    how = _encode_how(spec.priority, spec.queue_ttl, spec.max_attempts, spec.retry_on)
    text = f"{spec_hash or spec_sha256(spec)} [{_encode(spec.idempotency_key or key)}, {how}]"
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=256)
def _encode_how(*fields: object) -> str:
    return json.dumps(fields)[1:-1]


_encode: Final = json.JSONEncoder().encode
_DELIVERY: set[str] = set(DELIVERY_FIELDS)
