"""Reading an OCI layout: which manifest, which config, and what is refused. No tool is run."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.sandbox.image.oci import INDEX, MANIFEST, ImageConfig, parse_config, read_oci

REF = "org.opencontainers.image.ref.name"


class Layout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)
        self.manifests: list[dict[str, Any]] = []

    def blob(self, value: object) -> dict[str, Any]:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    def image(self, **config: object) -> dict[str, Any]:
        descriptor = self.blob({"config": self.blob({"config": config}), "layers": []})
        return {"mediaType": MANIFEST, **descriptor}

    def write(self, *manifests: dict[str, Any]) -> str:
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        return str(self.folder)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def test_the_config_is_kept(layout: Layout) -> None:
    image = layout.image(
        Env=["A=1", "junk"], Entrypoint=["/bin/x"], Cmd=["y"], WorkingDir="/w", User="app:app", Labels={"a": "b"}
    )
    read = read_oci(layout.write(image))
    assert read.digest == image["digest"]
    assert read.config == ImageConfig(
        env=("A=1",), entrypoint=("/bin/x",), cmd=("y",), working_dir="/w", user="app:app"
    )


def test_a_tag_chooses(layout: Layout) -> None:
    one, two = layout.image(User="1"), layout.image(User="2")
    source = layout.write({**one, "annotations": {REF: "one"}}, {**two, "annotations": {REF: "two"}})
    assert read_oci(f"{source}:two").config.user == "2"
    with pytest.raises(ImageInvalid, match=r"2 images .*one, two"):
        read_oci(source)
    with pytest.raises(ImageInvalid, match=r"no tag 'three'; it has: one, two"):
        read_oci(f"{source}:three")


def test_an_index_of_platforms_yields_this_machines(layout: Layout) -> None:
    here = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    mine = {**layout.image(User="me"), "platform": {"os": "linux", "architecture": here}}
    other = {**layout.image(User="other"), "platform": {"os": "linux", "architecture": "s390x"}}
    index = {"mediaType": INDEX, **layout.blob({"manifests": [other, mine]})}
    assert read_oci(layout.write(index)).config.user == "me"


def test_a_changed_blob_is_found_out(layout: Layout) -> None:
    image = layout.image()
    source = layout.write(image)
    blob = layout.folder / "blobs" / "sha256" / image["digest"].removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(ImageInvalid, match="another digest"):
        read_oci(source)


def test_an_endless_index_is_refused(layout: Layout) -> None:
    inner = {"mediaType": INDEX, **layout.blob({"manifests": [{"mediaType": INDEX, **layout.blob({})}]})}
    with pytest.raises(ImageInvalid, match="no OCI image manifest"):
        read_oci(layout.write(inner))


@pytest.mark.parametrize(
    "descriptor",
    [
        {"mediaType": MANIFEST, "digest": "sha256:../../../../etc/passwd"},
        {"mediaType": MANIFEST, "digest": "sha256:" + "0" * 64},
        {"mediaType": MANIFEST, "digest": 7},
        {"mediaType": MANIFEST},
        {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": "sha256:" + "0" * 64},
        {"annotations": []},
    ],
)
def test_a_bad_descriptor_is_refused(layout: Layout, descriptor: dict[str, Any]) -> None:
    with pytest.raises(ImageInvalid):
        read_oci(layout.write(descriptor))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifests": 1}', '{"manifests": [1]}', "[" * 100_000, "\xff"])
def test_a_bad_index_is_refused(layout: Layout, text: str) -> None:
    (layout.folder / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ImageInvalid):
        read_oci(str(layout.folder))


def test_no_layout_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="no OCI image layout"):
        read_oci(str(tmp_path / "nothing:tag"))


@pytest.mark.parametrize(
    "config",
    [{"Env": "A=1"}, {"Cmd": [1]}, {"User": 0.5}, {"WorkingDir": ["/"]}, {"Env": ["A=\0"]}, {"Cmd": ["x"] * 5000}],
)
def test_a_config_of_other_types_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ImageInvalid, match="config is damaged"):
        parse_config(config)
