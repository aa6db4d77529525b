"""Files of specs: uploads, contents that move to the store, and the check before a submit."""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from sandfleet import (
    ErrorCode,
    FileRef,
    FileSpec,
    FleetUnavailable,
    Outcome,
    Payload,
    SandboxSpec,
    Settings,
    SpecInvalid,
    SpecTooLarge,
)
from sandfleet.files.local import find_files
from sandfleet.submit.contents import MAX_INLINE_CHARS, Contents
from sandfleet.submit.required import RequiredObjects
from sandfleet.testing import FakeFleet
from sandfleet_config.files import Content
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.store import StoreDown

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet(lambda _: Outcome.of(ErrorCode.OK, "", exit_code=0))


def test_an_upload_returns_digest_and_size_of_bytes_and_of_a_file(fleet: FakeFleet, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    ref = FileRef(hashlib.sha256(b"abc").hexdigest(), 3)
    assert fleet.upload(b"abc") == fleet.upload(tmp_path / "a") == fleet.upload(str(tmp_path / "a")) == ref
    assert fleet.upload_many([b"", tmp_path / "a", b""])[1:] == [ref, fleet.upload(b"")]
    assert fleet.download(ref).read() == b"abc"


def test_a_reference_is_a_file_of_a_spec_and_its_stdin(fleet: FakeFleet) -> None:
    ref = fleet.upload(b"abc")
    spec = SandboxSpec(image="x", files=[ref.at("in/a", mode=0o755), ref.at("/tmp/b")], stdin=ref.as_stdin())
    fleet.submit(spec)
    assert [(file.path, file.mode) for file in fleet.specs[0].files] == [("/work/in/a", "0755"), ("/tmp/b", "0644")]
    assert {fleet.read_input(file) for file in spec.files} == {fleet.read_input(spec.stdin)} == {b"abc"}
    with pytest.raises(ValidationError):
        ref.at("../a")


def test_only_regular_files_are_uploaded(fleet: FakeFleet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), ("", "a folder")):
        with pytest.raises(SpecInvalid, match=kind):
            fleet.upload(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        fleet.upload(tmp_path / "none")


def test_a_file_that_the_store_does_not_take_is_refused_with_what_to_do(fleet: FakeFleet, tmp_path: Path) -> None:
    fleet.store.max_object_bytes = 10
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(SpecTooLarge, match=r"/a has 11 bytes.*takes 10 bytes at most.*SANDFLEET_STORE__URL"):
        fleet.upload(tmp_path / "a")


def test_small_contents_travel_in_the_spec(fleet: FakeFleet) -> None:
    files = [FileSpec(path="a", content=Content(data="x" * MAX_INLINE_CHARS))]
    spec = SandboxSpec(image="x", files=files, stdin=Payload(data="y" * 100_000))
    fleet.submit(spec)
    assert fleet.specs == [spec]


def test_the_largest_contents_are_uploaded_until_the_others_fit(fleet: FakeFleet) -> None:
    sizes = (100, MAX_INLINE_CHARS - 50, 200, MAX_INLINE_CHARS)
    spec = SandboxSpec(
        image="x", files=[FileSpec(path=f"f{size}", content=Content(data=f"{size % 10}" * size)) for size in sizes]
    )
    fleet.submit(spec)
    sent = fleet.specs[0]
    assert [file.content is not None for file in sent.files] == [True, False, True, False]
    assert [file.size for file in sent.files] == [None, sizes[1], None, sizes[3]]
    assert [fleet.read_input(file) for file in sent.files] == [fleet.read_input(file) for file in spec.files]
    assert spec_sha256(sent) == spec_sha256(spec)


def test_many_tiny_contents_travel_in_the_spec_beside_a_large_one_that_is_uploaded(fleet: FakeFleet) -> None:
    tiny = [FileSpec(path=f"t{number}", content=Content(data="t" * 100)) for number in range(1000)]
    spec = SandboxSpec(image="x", files=[*tiny, FileSpec(path="large", content=Content(data="l" * 2000))])
    fleet.submit(spec)
    (sent,) = fleet.specs
    assert [file.path for file in sent.files if file.content is None] == ["/work/large"]


def test_a_spec_that_is_too_large_moves_its_largest_contents_until_it_fits(fleet: FakeFleet) -> None:
    sizes = [*range(400, 1000), 5000]
    files = [FileSpec(path=f"f{size}", content=Content(data=f"{size % 10}" * size)) for size in sizes]
    fleet.submit(SandboxSpec(image="x", files=files, stdin=Payload(data="y" * 3000)))
    (sent,) = fleet.specs
    moved = [size for size, file in zip(sizes, sent.files, strict=True) if file.content is None]
    assert moved == sizes[-len(moved) :], "the largest"
    assert 150 < len(moved) < 450
    assert sent.stdin.size == 3000
    assert fleet.read_input(sent.files[-2]) == b"9" * 999


def test_stdin_that_does_not_fit_is_uploaded(fleet: FakeFleet) -> None:
    fleet.submit({"image": "x", "stdin": "y" * 300_000, "files": [{"path": "a", "content": "short"}]})
    sent = fleet.specs[0]
    assert (sent.stdin.data, sent.stdin.size) == ("", 300_000)
    assert fleet.read_input(sent.stdin) == b"y" * 300_000
    assert fleet.read_input(sent.files[0]) == b"short"
    assert sent.files[0].content is not None


def test_a_spec_that_is_too_large_without_its_contents_is_refused(fleet: FakeFleet) -> None:
    with pytest.raises(SpecTooLarge, match="256 KiB"):
        fleet.submit({"image": "x", "command": ["x" * 60_000] * 6, "stdin": "y" * 2000})
    assert not fleet.specs


def test_what_is_too_large_for_the_store_is_told_with_the_spec_that_has_it(fleet: FakeFleet) -> None:
    fleet.store.max_object_bytes = MIB
    large = {"image": "x", "files": [{"path": "a", "content": "x" * (MIB + 1)}]}
    with pytest.raises(SpecTooLarge, match=r"specs\[1\]: /work/a has 1048577 bytes") as caught:
        fleet.submit_many([{"image": "x"}, large])
    assert "nothing was queued" in str(caught.value)
    assert not fleet.specs


def test_a_missing_object_is_told_with_field_file_and_sha256(fleet: FakeFleet) -> None:
    lost = FileRef("0" * 64, 5)
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit(SandboxSpec(image="x", files=[lost.at("a")]))
    assert caught.value.errors == [
        {
            "field": "files.0.sha256",
            "message": f"/work/a: the store in memory has no object {'0' * 64}: it was never uploaded, or has expired;"
            " upload it again",
        }
    ]
    specs = [SandboxSpec(image="x"), SandboxSpec(image="x", stdin=lost.as_stdin())]
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit_many(specs)
    assert [fault["field"] for fault in caught.value.errors] == ["specs[1].stdin.sha256"]
    assert not fleet.specs


def test_an_iterator_stops_before_the_chunk_whose_object_is_missing(fleet: FakeFleet) -> None:
    lost = FileRef("0" * 64, 5)
    specs = [SandboxSpec(image="x")] * 256 + [SandboxSpec(image="x", files=[lost.at("a")])]
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit_many(iter(specs), batch="b")
    assert len(fleet.specs) == len(caught.value.job_ids) == 256


@pytest.mark.parametrize("as_iterator", [False, True])
def test_each_object_is_checked_once_however_many_jobs_share_it(
    fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch, *, as_iterator: bool
) -> None:
    asked: list[tuple[list[str], float]] = []
    require = fleet.store.require

    def count(names: Collection[str], seconds: float) -> None:
        asked.append((list(names), seconds))
        require(names, seconds)

    monkeypatch.setattr(fleet.store, "require", count)
    shared, other = fleet.upload(b"shared"), fleet.upload(b"other")
    specs = [
        SandboxSpec(image="x", labels={"n": str(number)}, files=[shared.at("a"), other.at("b")])
        for number in range(1000)
    ]
    fleet.submit_many(iter(specs) if as_iterator else specs)
    assert len(fleet.specs) == 1000
    ((names, seconds),) = asked
    assert sorted(names) == sorted([shared.sha256, other.sha256])
    kept = SandboxSpec(image="x").queue_ttl + Settings.model_construct().result_ttl_seconds
    assert kept <= seconds <= kept + 60


def test_what_one_submit_remembers_of_its_objects_is_bounded(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.submit.required.MAX_KNOWN", 10)
    required = RequiredObjects(Contents(), lambda: fleet._objects, 60)
    known: list[int] = []
    for ref in fleet.upload_many([b"%d" % number for number in range(50)]):
        required.add(SandboxSpec(image="x", files=[ref.at("a")]))
        required.send()
        known.append(len(required._kept_until))
    assert max(known) == 10
    required.add(SandboxSpec(image="x", files=[FileRef("0" * 64, 5).at("a")]))
    with pytest.raises(SpecInvalid, match="has no object"):
        required.send()


def test_a_plain_spec_asks_the_store_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = FakeFleet()
    monkeypatch.setattr(type(fleet), "_objects", property(lambda _: pytest.fail("the store was opened")))
    fleet.submit({"image": "x", "stdin": "abc"})
    fleet.submit_many([{"image": "x"}] * 3)


def test_a_store_that_is_down_is_an_outage_of_the_fleet(fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = fleet.upload(b"abc")

    def fail(*_: object) -> None:
        raise StoreDown("the store s3://b is out of reach")

    for name in ("put_bytes", "require", "read"):
        monkeypatch.setattr(fleet.store, name, fail)
    with pytest.raises(FleetUnavailable, match="s3://b is out of reach"):
        fleet.upload(b"other")
    with pytest.raises(FleetUnavailable, match="s3://b is out of reach"):
        fleet.submit(SandboxSpec(image="x", files=[ref.at("a")]))
    with pytest.raises(FleetUnavailable, match="s3://b is out of reach"):
        fleet.download(ref)
    assert not fleet.specs


def test_a_folder_keeps_names_and_the_right_to_be_executed(fleet: FakeFleet, tmp_path: Path) -> None:
    (tmp_path / "lib/empty").mkdir(parents=True)
    (tmp_path / "run.sh").write_bytes(b"run")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "lib/a.py").write_bytes(b"a")
    (tmp_path / "link").symlink_to("lib/a.py")
    files = fleet.upload_folder(tmp_path, "/work/src/")
    assert [(file.path, file.mode, fleet.read_input(file)) for file in files] == [
        ("/work/src/link", "0644", b"a"),
        ("/work/src/run.sh", "0755", b"run"),
        ("/work/src/lib/a.py", "0644", b"a"),
    ]


def test_a_folder_with_what_cannot_be_sent_tells_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "to-folder").symlink_to(".")
    (folder / "nowhere").symlink_to("missing")
    (folder / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "s"))
        with pytest.raises(SpecInvalid) as caught:
            find_files(folder, "/work")
    told = {
        fault["message"].removeprefix(f"{folder}/").partition(":")[0]: fault["message"] for fault in caught.value.errors
    }
    assert told.keys() == {"pipe", "out", "to-folder", "nowhere", "circle", "s"}
    assert "a link to what is outside the folder" in told["out"]
    assert "a link to nothing" in told["nowhere"]
    assert "a pipe" in told["pipe"]


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(1025):
        (tmp_path / str(number)).touch()
    with pytest.raises(SpecInvalid, match="more than 1024 files"):
        find_files(tmp_path, "/work")


def test_the_record_of_a_job_counts_its_files(fleet: FakeFleet) -> None:
    job = fleet.submit({"image": "x", "files": [{"path": "a", "content": "abc"}, fleet.upload(b"12345").at("b")]})
    record = fleet.record(job.id)
    assert record is not None
    assert (record.files, record.file_bytes) == (2, 8)
