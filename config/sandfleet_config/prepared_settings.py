"""The settings of a host about prepared spares: an interpreter that is up before its job comes."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, field_validator

from sandfleet_config.fields import Bytes
from sandfleet_config.prepared import is_module, is_preparation_name
from sandfleet_config.section import NameList, Section

PreparedStart = Literal["off", "named", "python"]
_IMPORTS: Final = re.compile(r"(?P<image>.+):(?P<name>[^:=]+)=(?P<modules>[^=]*)")


class PreparedSettings(Section):
    """Prepared spares: sandboxes whose Python has started, with its imports done."""

    start: PreparedStart = Field(
        default="named",
        description="Which jobs may start in a prepared spare: `off` none, `named` those that name a preparation,"
        " `python` also others of images with Python, without imports.",
    )
    imports: NameList = Field(
        default=(),
        description="Preparations beside those of `images prepare`: IMAGE:NAME=MODULE+MODULE, separated by commas.",
    )
    budget_bytes: Bytes = Field(
        default=512 << 20,
        description="Memory that prepared spares hold together at most, of all processes of `start`; each process may hold"
        " one preparation's `spare_bytes` in any case.",
    )
    spare_bytes: Bytes = Field(
        default=256 << 20,
        ge=48 << 20,
        description="Memory that one preparation may use; a larger one fails.",
    )
    deadline_seconds: float = Field(
        default=30.0, gt=0, le=600, description="A preparation that has not done its imports by then has failed."
    )
    failures: int = Field(
        default=3, ge=1, le=1000, description="Failures in a row after which a preparation is in quarantine."
    )
    quarantine_seconds: float = Field(
        default=600.0, gt=0, le=86400, description="How long a preparation in quarantine is not tried again."
    )

    @field_validator("imports")
    @classmethod
    def _check_imports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = set[tuple[str, str]]()
        for text in value:
            image, name, modules = parse_imports(text)
            if not is_preparation_name(name) or not all(is_module(module) for module in modules):
                msg = "must be IMAGE:NAME=MODULE+MODULE, such as python-data:sci=numpy+pandas"
                raise ValueError(msg)
            if (image, name) in names:
                msg = f"names the preparation {name} of one image twice"
                raise ValueError(msg)
            names.add((image, name))
        return value


def parse_imports(text: str) -> tuple[str, str, tuple[str, ...]]:
    """Split one item of `imports` into image, name and modules; all empty if it has another form."""
    found = _IMPORTS.fullmatch(text)
    if found is None:
        return "", "", ()
    return found["image"], found["name"], tuple(module for module in found["modules"].split("+") if module)
