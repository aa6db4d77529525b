"""A recipe: what an image shall hold, as `recipe.toml` or the flags of `images build` say it."""

import re
from typing import Annotated

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sandfleet_worker.sandbox.image.starter import RECIPE_SUFFIX

DEBIAN_SUITES = ("trixie", "bookworm")
DEFAULT_BASE = "debian:trixie"
LAYOUT, REGISTRY, DEBIAN = "oci:", "docker://", "debian:"
READY_NAME = re.compile(r"[a-z][a-z0-9-]*")

_MAX_ITEMS = 1000
_MAX_CHARS = 4096
_APT = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+](=[A-Za-z0-9.+:~-]+)?")
_MODE = re.compile(r"0?[0-7]{3}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _fail(text: str) -> ValueError:
    return ValueError(text)


def _check_text(text: str) -> str:
    if "\0" in text:
        raise _fail("must not hold a NUL character")
    return text


def _check_base(base: str) -> str:
    if base.startswith(DEBIAN):
        if base.removeprefix(DEBIAN) not in DEBIAN_SUITES:
            raise _fail(f"must be one of {', '.join(f'{DEBIAN}{suite}' for suite in DEBIAN_SUITES)}")
    elif not (
        base.startswith((LAYOUT, REGISTRY)) or base.endswith(RECIPE_SUFFIX) or READY_NAME.fullmatch(base) is not None
    ):
        raise _fail(
            "must be debian:trixie, debian:bookworm, a ready recipe such as python, another recipe such as "
            "./base.toml, an image layout such as oci:FOLDER:TAG, or a registry image such as docker://python:3.13-slim"
        )
    return base


def _check_apt(package: str) -> str:
    if _APT.fullmatch(package) is None:
        raise _fail("must be the name of a Debian package, such as ffmpeg or ffmpeg=7:7.1.1-1")
    return package


def _check_pip(requirement: str) -> str:
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        raise _fail("must be a name of a Python package with its versions, such as numpy or pandas>=2,<3") from None
    if parsed.url is not None:
        raise _fail("must not be an address: packages come from the package index of this host, by name")
    if "\n" in requirement or "\r" in requirement:
        raise _fail("must be one line")
    return requirement


def _check_target(path: str) -> str:
    _check_text(path)
    parts = path.split("/")
    if not path.startswith("/") or {".", ".."} & set(parts) or path.strip("/") == "":
        raise _fail("must be an absolute path in the image without `.` and `..`, such as /app")
    return path.rstrip("/")


def _check_source(path: str) -> str:
    _check_text(path)
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise _fail("must be a path below the recipe's folder, without `..`")
    return path


def _check_mode(mode: str) -> str:
    if _MODE.fullmatch(mode) is None:
        raise _fail("must be three octal digits such as 0644 or 755; setuid and setgid have no use in a sandbox")
    return mode


def _check_user(user: str) -> str:
    if _USER.fullmatch(user) is None:
        raise _fail("must be one of `name`, `uid`, `name:group`, `uid:gid`")
    return user


def _check_env(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if _ENV_NAME.fullmatch(name) is None:
            raise _fail("must have names of letters, digits and `_`")
        _check_text(value)
    return env


Text = Annotated[str, Field(max_length=_MAX_CHARS), AfterValidator(_check_text)]
Target = Annotated[str, Field(max_length=_MAX_CHARS), AfterValidator(_check_target)]


class CopiedPath(BaseModel):
    """A file or folder that is copied into the image; it belongs to root there."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, strict=True)

    source: Annotated[str, Field(alias="from", max_length=_MAX_CHARS), AfterValidator(_check_source)] = Field(
        description="A file or folder, relative to the recipe's folder."
    )
    target: Annotated[str, Field(alias="to", max_length=_MAX_CHARS), AfterValidator(_check_target)] = Field(
        description="Its absolute path in the image. A folder's content is laid over what is there."
    )
    mode: Annotated[str, AfterValidator(_check_mode)] | None = Field(
        default=None, description="Of files, in octal. Unset: 0755 for programs, 0644 for other files."
    )


class Recipe(BaseModel):
    """The content and the settings of one image. Every field may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: Text = Field(default="", description="One line for people.")
    base: Annotated[str, Field(max_length=_MAX_CHARS), AfterValidator(_check_base)] = Field(
        default=DEFAULT_BASE,
        description="What the image builds on: `debian:trixie`, `debian:bookworm`, a ready recipe (`python`), another "
        "recipe (`./base.toml`), an OCI layout (`oci:FOLDER:TAG`), or a registry image (`docker://NAME:TAG`).",
    )
    apt: list[Annotated[str, AfterValidator(_check_apt)]] = Field(
        default=[],
        max_length=_MAX_ITEMS,
        description="Debian packages, `name` or `name=version`. Only on a Debian base.",
    )
    pip: list[Annotated[str, AfterValidator(_check_pip)]] = Field(
        default=[],
        max_length=_MAX_ITEMS,
        description="Python packages, as in a requirements file. Only wheels. "
        "On a Debian base they bring `python3` and `libstdc++6`.",
    )
    files: list[CopiedPath] = Field(default=[], max_length=_MAX_ITEMS, description="What is copied into the image.")
    env: Annotated[dict[str, str], AfterValidator(_check_env)] = Field(
        default={}, max_length=_MAX_ITEMS, description="Environment of each job; the spec's own comes on top."
    )
    working_dir: Target | None = Field(
        default=None, description="Where a job starts; made if the image does not have it."
    )
    entrypoint: list[Text] | None = Field(
        default=None, max_length=_MAX_ITEMS, description="The program before each job's command, as in Docker."
    )
    command: list[Text] | None = Field(
        default=None, max_length=_MAX_ITEMS, description="What runs if a job names no command."
    )
    user: Annotated[str, AfterValidator(_check_user)] | None = Field(
        default=None, description="Who a job runs as: `name`, `uid`, `name:group` or `uid:gid`. Unset, or root: 65534."
    )

    @model_validator(mode="after")
    def _refuse_apt_elsewhere(self) -> "Recipe":
        if self.apt and self.base.startswith((LAYOUT, REGISTRY)):
            raise _fail("`apt` needs a Debian base: Debian's packages cannot be added to another image")
        return self
