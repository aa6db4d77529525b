"""Read an OCI image layout: the manifest of a tag, and its config. Nothing is unpacked here.

Layout and media types: OCI image-spec v1.1, image-layout.md, manifest.md, config.md.
"""

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.references import is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_JSON_BYTES = 4 << 20
_MAX_CONFIG_ITEMS = 4096
MAX_LAYERS = 500
"""Docker itself makes no image of more than 127."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an image's config that says how to run it, as in Docker."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a layout: its file, and its media type."""

    path: Path
    media_type: str


@dataclass(frozen=True, slots=True)
class OciImage:
    """One manifest of a layout; `digest` is the manifest's."""

    layout: Path
    descriptor: dict[str, Any]
    config: ImageConfig
    layers: tuple[Layer, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return str(self.descriptor["digest"])


def split_source(source: str) -> tuple[Path, str]:
    """Split `folder[:tag]`; a folder that has a colon in its own name is not split."""
    if Path(source).is_dir():
        return Path(source), ""
    folder, _, tag = source.rpartition(":")
    return (Path(folder), tag) if folder else (Path(source), "")


def read_oci(source: str) -> OciImage:
    """Read the manifest and config that `folder[:tag]` names; blobs must match their digests.

    Raises:
        ImageInvalid: no layout, no such tag, several images and no tag, a damaged blob, another
            media type.
    """
    layout, tag = split_source(source)
    index = _parse(_read_file(layout / "index.json", f"oci:{source} is no OCI image layout"), "index.json")
    descriptor = _pick(layout, _descriptors(index), tag, depth=0)
    manifest = _read_blob(layout, descriptor)
    config = _parse(_read_blob_bytes(layout, _dict(manifest.get("config"), "config")), "config")
    check_platform(config)
    layers = read_layers(manifest)
    _check_layer_count(config, len(layers))
    return OciImage(
        layout=layout,
        descriptor={key: descriptor[key] for key in ("mediaType", "digest", "size") if key in descriptor},
        config=parse_config(_dict(config.get("config") or {}, "config")),
        layers=tuple(_read_layer(layout, entry) for entry in layers),
    )


def read_layers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the descriptors of a manifest's layers.

    Raises:
        ImageInvalid: there are too many, or they are no list.
    """
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise ImageInvalid.of("the image's manifest is damaged: it lists no layers")
    if len(layers) > MAX_LAYERS:
        raise ImageInvalid.of(f"the image has {len(layers)} layers, {MAX_LAYERS} are the most: squash them into few")
    return [_dict(layer, "layers") for layer in layers]


def _check_layer_count(config: dict[str, Any], count: int) -> None:
    # umoci 0.4.7 ends with a panic of Go's where they differ.
    listed = _dict(config.get("rootfs") or {}, "config").get("diff_ids") or []
    if not isinstance(listed, list) or len(listed) != count:
        raise ImageInvalid.of(f"the image is damaged: its config does not list its {count} layers (rootfs.diff_ids)")


def _read_layer(layout: Path, descriptor: dict[str, Any]) -> Layer:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageInvalid.of(f"{layout}: {str(digest)[:100]!r} is no sha256 digest of a layer")
    path = layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
    return Layer(path, str(descriptor.get("mediaType"))[:200])


def find_architecture() -> str:
    """Return this machine's architecture in the words of OCI, such as amd64."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def check_platform(config: dict[str, Any]) -> None:
    """Refuse an image's config that says another system or architecture than this machine's.

    Raises:
        ImageInvalid: it does.
    """
    system, architecture = config.get("os") or "linux", config.get("architecture") or find_architecture()
    if (system, architecture) != ("linux", find_architecture()):
        raise wrong_platform([f"{system}/{architecture}"])


def wrong_platform(found: list[str]) -> ImageInvalid:
    """Return the error of an image that is only for the platforms `found`."""
    shown = ", ".join(name[:60] for name in sorted(set(found))[:8]) or "no platform at all"
    return ImageInvalid.of(
        f"the image is for {shown}, this host is linux/{find_architecture()}: "
        "build it for this platform, or give the job a host that fits (requires: arch)"
    )


def _pick(layout: Path, found: list[dict[str, Any]], tag: str, depth: int) -> dict[str, Any]:
    if tag:
        tagged = [
            entry for entry in found if _dict(entry.get("annotations") or {}, "annotations").get(_REF_NAME) == tag
        ]
        if not tagged:
            raise ImageInvalid.of(f"{layout} has no tag {tag!r}; it has: {', '.join(_tags(found)) or 'none'}")
        found = tagged
    fitting = [entry for entry in found if _fits_this_machine(entry)]
    if len(fitting) != 1:
        raise ImageInvalid.of(
            f"{layout} holds {len(fitting)} images for this machine: name one as oci:{layout}:TAG"
            f" (tags: {', '.join(_tags(found)) or 'none'})"
        )
    chosen = fitting[0]
    if chosen.get("mediaType") == INDEX and depth == 0:
        return _pick(layout, _descriptors(_read_blob(layout, chosen)), "", depth=1)
    if chosen.get("mediaType") != MANIFEST:
        raise ImageInvalid.of(
            f"{layout}: {str(chosen.get('mediaType'))[:100]!r} is no OCI image manifest; "
            "`skopeo copy SOURCE oci:FOLDER:TAG` converts Docker's formats"
        )
    return chosen


def _fits_this_machine(descriptor: dict[str, Any]) -> bool:
    wanted = descriptor.get("platform")
    if not isinstance(wanted, dict):
        return True
    return wanted.get("os") == "linux" and wanted.get("architecture") == find_architecture()


def _tags(found: list[dict[str, Any]]) -> list[str]:
    names = [_dict(entry.get("annotations") or {}, "annotations").get(_REF_NAME) for entry in found]
    return sorted(str(name)[:128] for name in names if name)[:20]


def parse_config(raw: dict[str, Any]) -> ImageConfig:
    """Parse the `config` object of an image config.

    Raises:
        ImageInvalid: a field is of another type than the specification says, or absurdly long.
    """
    user, working_dir = raw.get("User") or "", raw.get("WorkingDir") or ""
    if not isinstance(user, str) or not isinstance(working_dir, str) or "\0" in user + working_dir:
        raise ImageInvalid.of("the image's config is damaged: User and WorkingDir must be strings")
    env = tuple(item for item in _strings(raw, "Env") if "=" in item)
    return ImageConfig(
        env=env, entrypoint=_strings(raw, "Entrypoint"), cmd=_strings(raw, "Cmd"), working_dir=working_dir, user=user
    )


def _strings(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    is_right = isinstance(value, list) and len(value) <= _MAX_CONFIG_ITEMS
    if not is_right or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ImageInvalid.of(f"the image's config is damaged: {key} must be a list of strings")
    return tuple(value)


def _descriptors(index: dict[str, Any]) -> list[dict[str, Any]]:
    entries = index.get("manifests")
    if not isinstance(entries, list):
        raise ImageInvalid.of("the image index is damaged: it lists no manifests")
    return [_dict(entry, "manifests") for entry in entries]


def _read_blob(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    return _parse(_read_blob_bytes(layout, descriptor), str(descriptor.get("digest")))


def _read_blob_bytes(layout: Path, descriptor: dict[str, Any]) -> bytes:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageInvalid.of(f"{layout}: {str(digest)[:100]!r} is no sha256 digest")
    hexadecimal = digest.removeprefix("sha256:")
    data = _read_file(layout / "blobs" / "sha256" / hexadecimal, f"{layout} lacks a blob it lists")
    if hashlib.sha256(data).hexdigest() != hexadecimal:
        raise ImageInvalid.of(f"{layout}: blob {digest} is damaged (its content has another digest): copy it again")
    return data


def _read_file(path: Path, fault: str) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
            raise ImageInvalid.of(f"{fault}: {path} is not a plain file of at most {_MAX_JSON_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ImageInvalid.of(f"{fault}: {path}: {error.strerror}") from error


def _parse(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageInvalid.of(f"{what} is damaged: it is not JSON") from error
    return _dict(value, what)


def _dict(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageInvalid.of(f"{what} is damaged: it is not a JSON object")
    return value
