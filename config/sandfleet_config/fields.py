"""The field types of the contract's models: they parse what people type, and check its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from sandfleet_config.bounds import (
    MAX_ENV_ITEMS,
    MAX_LABEL_KEY_CHARS,
    MAX_LABEL_VALUE_CHARS,
    MAX_LABELS,
    MAX_NAME_CHARS,
    check_search_path,
    check_text,
)
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.image_names import REGISTRY_PREFIX, RegistryName
from sandfleet_config.prepared import NEVER_PREPARED, PREPARATION_NAME, is_preparation_name

SECURITY_VIOLATION: Final = "security_violation"
"""The pydantic error type of a fault that is a violation, not only a mistake."""
_byte_size: Final = TypeAdapter(ByteSize)


def _parse_bytes(value: object) -> object:
    """Read ``"256MiB"`` as a number of bytes; leave every other kind of value to pydantic."""
    if isinstance(value, str):
        return int(_byte_size.validate_python(value))
    if isinstance(value, bool):
        msg = "must be a number of bytes"
        raise PydanticCustomError("bytes_type", msg)
    return value


def check_image(value: str) -> str:
    """Refuse a malformed name in a registry, and control characters.

    Other names are the host's business.
    """
    if value.startswith(REGISTRY_PREFIX):
        try:
            RegistryName.parse(value)
        except ValueError as error:
            msg = "is no image of a registry: {reason}; write docker://python:3.13-slim or docker://registry.example/app@sha256:..."
            raise PydanticCustomError("image", msg, {"reason": str(error)}) from None
    return refuse_control_characters(value)


def refuse_control_characters(value: str) -> str:
    """Refuse control characters: names and labels are printed on terminals and in logs."""
    if not value.isprintable():
        msg = "must not contain control characters"
        raise PydanticCustomError("control_character", msg)
    return value


def _check_preparation(value: str) -> str:
    if value != NEVER_PREPARED and not is_preparation_name(value):
        msg = "must be `off` or a preparation's name: a-z 0-9 . _ and -, at most 64"
        raise PydanticCustomError("preparation", msg)
    return value


Bytes = Annotated[int, BeforeValidator(_parse_bytes), Field(ge=0, le=1 << 62)]
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(refuse_control_characters)]
PreparationName = Annotated[
    str, AfterValidator(_check_preparation), WithJsonSchema({"type": "string", "pattern": f"^{PREPARATION_NAME}$"})
]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400, allow_inf_nan=False)]


class ContractModel(BaseModel):  # noqa: PLW1641  pydantic hashes what is frozen
    """A model of the contract. It is frozen, and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __eq__(self, other: object) -> bool:
        """Compare by identity, then by value.

        A dump without defaults compares each part with its default, which it mostly is.
        """
        return self is other or super().__eq__(other)


def _read_env(value: object) -> object:
    """Read a mapping as ``KEY=VALUE`` strings; refuse one string."""
    if isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in cast("Mapping[object, object]", value).items()]
    if isinstance(value, str):
        msg = "must be a list of KEY=VALUE strings, or an object"
        raise PydanticCustomError("env_type", msg)
    return value


def _check_env_item(item: str) -> str:
    name, separator, _ = item.partition("=")
    if not separator or not name:
        msg = "must be KEY=VALUE"
        raise PydanticCustomError("env_item", msg)
    if name == "PATH":
        check_search_path(item)
    return item


def _check_retried(value: Sequence[ErrorCode]) -> tuple[ErrorCode, ...]:
    """Refuse codes that no attempt may follow; sort the others and drop repetitions."""
    final = [code for code in value if code.category in (Category.OK, Category.CONTROL)]
    if final:
        msg = "{codes} cannot be tried again: such a job has ended as it was meant to"
        raise PydanticCustomError("retry_on", msg, {"codes": ", ".join(final)})
    return tuple(code for code in ErrorCode if code in value)


def _refuse_reserved(key: str) -> str:
    # The outcome repeats the labels, and kombu decodes {"__type__": ..., "__value__": ...} as a
    # value of its own. An outcome with such labels could not be read.
    if key.startswith("__"):
        msg = "must not begin with two underscores"
        raise PydanticCustomError("label_key", msg)
    return key


LabelKey = Annotated[
    str,
    Field(min_length=1, max_length=MAX_LABEL_KEY_CHARS),
    AfterValidator(refuse_control_characters),
    AfterValidator(_refuse_reserved),
]
LabelValue = Annotated[str, Field(max_length=MAX_LABEL_VALUE_CHARS), AfterValidator(refuse_control_characters)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS)]
EnvItem = Annotated[Text, AfterValidator(_check_env_item)]
if TYPE_CHECKING:
    Texts = Sequence[Text]
    Env = Sequence[EnvItem]
    RetriedCodes = Sequence[ErrorCode]
else:
    # Tuples, since a spec never changes; lists are accepted too. Not `Sequence`: pydantic
    # serializes it in Python, slowly.
    Texts = tuple[Text, ...]
    Env = Annotated[tuple[EnvItem, ...], BeforeValidator(_read_env), Field(max_length=MAX_ENV_ITEMS)]
    RetriedCodes = Annotated[tuple[ErrorCode, ...], Field(max_length=len(ErrorCode)), AfterValidator(_check_retried)]
