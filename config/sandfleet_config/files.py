"""Files of a spec: those that enter the sandbox, read-only datasets, and those that leave it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.bounds import MAX_PATH_BYTES, refuse_longer
from sandfleet_config.fields import Bytes, ContractModel, Text
from sandfleet_config.payload import encode_payload

WORK_FOLDER: Final = "/work"
"""A job with files or artifacts starts here; relative paths begin here."""
DATA_FOLDER: Final = "/data"
MAX_FILES: Final = 1024
MAX_ARTIFACT_PATTERNS: Final = 64
MAX_DATASETS: Final = 16
DEFAULT_MODE: Final = "0644"
MAX_MODE: Final = 0o777
MAX_FILE_NAME_BYTES: Final = 255
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="In hex.")]


class Content(ContractModel):
    """Bytes in JSON: as text, or as base64 if they are not UTF-8, or shorter in base64."""

    data: str = ""
    encoding: Literal["utf-8", "base64"] = "utf-8"

    @model_validator(mode="before")
    @classmethod
    def _accept_plain(cls, value: object) -> object:
        if isinstance(value, str):
            return {"data": value}
        if isinstance(value, bytes | bytearray):
            return encode_payload(bytes(value))
        return value

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        try:
            self.to_bytes()
        except (binascii.Error, ValueError):
            msg = "data is not valid {encoding}"
            raise PydanticCustomError("payload", msg, {"encoding": self.encoding}) from None
        return self

    def to_bytes(self) -> bytes:
        """Return the decoded bytes."""
        if self.encoding == "base64":
            return base64.b64decode(self.data, validate=True)
        return self.data.encode()


class Payload(Content):
    """The program's input: bytes in the spec, or an object of the store by its `sha256`."""

    sha256: Sha256 | None = Field(default=None, description="An object of the store, instead of `data`.")
    size: Bytes | None = Field(default=None, description="Bytes of that object, if known.")

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if self.sha256 and self.data:
            msg = "has data and sha256: give one of them"
            raise PydanticCustomError("two_sources", msg)
        return self


def _read_mode(value: object, info: ValidationInfo) -> object:
    """Read ``"755"`` and ``0o755`` as ``"0755"``; refuse a mode outside 0000 to 0777.

    A number in JSON is refused: it is decimal, and 444 would be the mode 0674.
    """
    if isinstance(value, int) and not isinstance(value, bool) and info.mode != "json":
        number = value
    elif isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{3,4}", value):
        number = int(value.removeprefix("0o"), 8)
    else:
        number = -1
    if not 0 <= number <= MAX_MODE:
        msg = 'must be an octal mode between "0000" and "0777", such as "0755"'
        raise PydanticCustomError("mode", msg)
    return f"{number:04o}"


def resolve_path(value: str) -> str:
    """Return `value` as an absolute path without ``.``; a relative one begins in `WORK_FOLDER`.

    Refuse ``..``, a path that ends as only a folder's does, and a path that is too long.
    """
    if value.rpartition("/")[2] in {"", "."}:
        msg = "must be the path of a file"
        raise PydanticCustomError("file_path", msg)
    if ".." in value.split("/"):
        msg = "must not contain .."
        raise PydanticCustomError("file_path", msg)
    path = posixpath.normpath(posixpath.join(WORK_FOLDER, value))
    refuse_longer(path, MAX_PATH_BYTES, "a path can be no longer")
    return "/" + path.lstrip("/")


def _resolve_file(value: str) -> str:
    """Do what `resolve_path` does, and refuse a name that no file system takes."""
    path = resolve_path(value)
    if any(len(name.encode()) > MAX_FILE_NAME_BYTES for name in path.split("/")):
        msg = "a file or folder in it has a name of more than {most} bytes"
        raise PydanticCustomError("file_path", msg, {"most": MAX_FILE_NAME_BYTES})
    return path


def _resolve_glob(value: str) -> str:
    """Return `value` as an absolute pattern below `WORK_FOLDER`; a final slash means all below."""
    pattern = resolve_path(f"{value}**" if value.endswith("/") else value)
    if not pattern.startswith(f"{WORK_FOLDER}/"):
        msg = "artifacts are collected from {folder} only: write the files there"
        raise PydanticCustomError("artifact_glob", msg, {"folder": WORK_FOLDER})
    return pattern


class FileSpec(ContractModel):
    """A file that is in the sandbox before the program starts. It belongs to the job's user."""

    path: Annotated[Text, AfterValidator(_resolve_file)] = Field(
        description="Inside a writable folder; relative paths begin in `/work`. Missing folders are made."
    )
    content: Content | None = Field(default=None, description="The bytes; or give `sha256`.")
    sha256: Sha256 | None = Field(default=None, description="An object of the store, instead of `content`.")
    size: Bytes | None = Field(default=None, description="Bytes of that object, if known.")
    mode: Annotated[str, BeforeValidator(_read_mode)] = Field(default=DEFAULT_MODE, description="Octal, to `0777`.")

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        has_content = self.content is not None and not getattr(self.content, "sha256", None)
        if has_content == (self.sha256 is not None):
            msg = "give the file's content, or the sha256 of an object in the store"
            raise PydanticCustomError("one_source", msg)
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of the file's bytes, in hex."""
        return self.sha256 or hashlib.sha256(self.content.to_bytes() if self.content else b"").hexdigest()


class DatasetSpec(ContractModel):
    """A read-only folder that many jobs share, by its name or by its digest."""

    name: str = Field(default="", description="Of a dataset that the host has.")
    sha256: Sha256 | None = Field(default=None, description="Digest of a dataset, instead of `name` or with it.")
    path: Text = Field(default="", description="A folder right under `/data`; empty is `/data/NAME`.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            msg = "must be of lower-case letters, digits, dots, underscores and hyphens, 128 at most"
            raise PydanticCustomError("dataset_name", msg)
        return value

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if not self.name and self.sha256 is None:
            msg = "give the dataset's name, or its sha256"
            raise PydanticCustomError("dataset", msg)
        folder, _, name = self.mount_path.rpartition("/")
        if folder != DATA_FOLDER or not _NAME.fullmatch(name):
            msg = "path must be a folder right under {folder}, such as {folder}/corpus"
            raise PydanticCustomError("dataset_path", msg, {"folder": DATA_FOLDER})
        return self

    @property
    def reference(self) -> str:
        """The dataset as hosts list it: its name, ``sha256:...``, or ``name@sha256:...``."""
        digest = f"sha256:{self.sha256}" if self.sha256 else ""
        return "@".join(filter(None, (self.name, digest)))

    @property
    def mount_path(self) -> str:
        """The folder in the sandbox, absolute."""
        return self.path or f"{DATA_FOLDER}/{self.name}"


class ArtifactSpec(ContractModel):
    """Files that are collected after the program's end. A plain string is its `glob`."""

    glob: Annotated[Text, AfterValidator(_resolve_glob)] = Field(
        description="Of files below `/work`. `*` stays within a folder, `**` goes through all; `out/` is all below."
    )
    max_bytes: Bytes = Field(default=0, description="Of one file; zero is the host's ceiling.")
    when: Literal["always", "ok", "failed"] = Field(
        default="always", description="`ok`: only after the code `OK`; `failed`: only after any other."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_plain(cls, value: object) -> object:
        return {"glob": value} if isinstance(value, str) else value


def _check_files(value: Sequence[FileSpec]) -> Sequence[FileSpec]:
    """Refuse two files with one path, and a file that is another one's folder."""
    paths: set[str] = set()
    for path in (file.path for file in value):
        if path in paths:
            msg = "two files have the same path: {path}"
            raise PydanticCustomError("file_paths", msg, {"path": _show(path)})
        paths.add(path)
    for path in paths:
        folder = posixpath.dirname(path)
        while folder != "/":
            if folder in paths:
                msg = "the path of one file is the folder of another: {folder}"
                raise PydanticCustomError("file_paths", msg, {"folder": _show(folder)})
            folder = posixpath.dirname(folder)
    return value


def _show(path: str) -> str:
    """Return the beginning of a path for a message, with control characters escaped."""
    return ascii(path[:200])[1:-1]


def _check_datasets(value: Sequence[DatasetSpec]) -> Sequence[DatasetSpec]:
    if len({dataset.mount_path for dataset in value}) < len(value):
        msg = "two datasets have the same path"
        raise PydanticCustomError("dataset_paths", msg)
    return value


def _read_list(value: object) -> object:
    """Refuse one string: each of its characters would be taken as an item."""
    if isinstance(value, str):
        msg = "must be a list"
        raise PydanticCustomError("list_type", msg)
    return value


if TYPE_CHECKING:
    Files = Sequence[FileSpec]
    Datasets = Sequence[DatasetSpec]
    Artifacts = Sequence[ArtifactSpec]
else:
    # Tuples, as in `fields`.
    Files = Annotated[
        tuple[FileSpec, ...], BeforeValidator(_read_list), Field(max_length=MAX_FILES), AfterValidator(_check_files)
    ]
    Datasets = Annotated[
        tuple[DatasetSpec, ...],
        BeforeValidator(_read_list),
        Field(max_length=MAX_DATASETS),
        AfterValidator(_check_datasets),
    ]
    Artifacts = Annotated[
        tuple[ArtifactSpec, ...], BeforeValidator(_read_list), Field(max_length=MAX_ARTIFACT_PATTERNS)
    ]


def by_reference(files: Sequence[FileSpec]) -> list[dict[str, str]]:
    """Return path, digest and mode of each file, sorted by path: what a fingerprint covers."""
    named = [{"path": file.path, "sha256": file.digest, "mode": file.mode} for file in files]
    return sorted(named, key=lambda file: file["path"])
