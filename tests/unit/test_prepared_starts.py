"""Which jobs are given to a prepared spare; no job fails because none can be made for it."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prepared_plan import INTERPRETER, PLAN
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.accounts import User
from sandfleet_worker.sandbox.image.image import Image
from sandfleet_worker.sandbox.image.users import resolve_user
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.preparation import BARE
from sandfleet_worker.sandbox.prepared.registry import Registered
from sandfleet_worker.sandbox.prepared.use import Miss
from sandfleet_worker.sandbox.prepared_pins import PreparedPins
from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
from sandfleet_worker.sandbox.process.init_reports import Signaled
from sandfleet_worker.sandbox.process.packed_job import NO_TRANSFER, pack_spec
from sandfleet_worker.sandbox.process.plan import Plan
from sandfleet_worker.sandbox.process.runsc import RunscBinary


def new_image(**fields: Any) -> Image:
    given: dict[str, Any] = {
        "name": "python",
        "digest": f"sha256:{'0' * 64}",
        "erofs_path": Path("/image.erofs"),
        "size_bytes": 1,
        "erofs_sha256": "0" * 64,
        "created": datetime.now(UTC),
        "source": "",
    }
    return Image(**(given | fields))


def choose(
    tmp_path: Path, image: Image, *, is_runsc_here: bool = True, **security: Any
) -> tuple[object, dict[str, int]]:
    """Ask for the preparation of a job; return whether there is a plan, and the misses."""
    config = HostSettings.model_validate({"images": {"root": tmp_path}})
    starts = PreparedStarts(config)
    starts.preparations.add(Registered(image="python", name="sci", modules=("json",)))
    runsc = tmp_path / "runsc"
    if is_runsc_here:
        runsc.touch()
    spec = SandboxSpec.model_validate(
        {"image": "python", "command": ["python3", "-c", "pass"], "prepared": "sci", "security": security}
    )
    limits = admit(spec, config)
    job = pack_spec(limits, image, resolve_user(image, spec.security.user), NO_TRANSFER)
    plain = replace(PLAN, binary=RunscBinary(str(runsc), "1"), interpreter=None)
    found = starts.choose(plain, image, limits, job)
    return found is not None, dict(starts.read().misses)


def test_a_job_that_fits_gets_a_plan(tmp_path: Path) -> None:
    assert choose(tmp_path, new_image()) == (True, {})


def test_an_image_whose_own_user_is_unknown_serves_jobs_that_name_another(tmp_path: Path) -> None:
    assert choose(tmp_path, new_image(user="nosuch"), user="1000") == (False, {Miss.USER: 1})


def test_an_image_whose_home_is_no_plain_path_serves_jobs_with_a_writable_root(tmp_path: Path) -> None:
    home = "/home//x"
    image = new_image(user="x", users={"x": User(uid=7, gid=7, home=home)}, directories=frozenset({home}))
    assert choose(tmp_path, image, read_only_rootfs=False) == (False, {Miss.INTERPRETER: 1})


def test_a_job_whose_runsc_is_just_replaced_starts_without(tmp_path: Path) -> None:
    assert choose(tmp_path, new_image(), is_runsc_here=False) == (False, {Miss.NO_SPARE: 1})


def test_to_prepare_it_again_ends_its_quarantine(tmp_path: Path) -> None:
    (tmp_path / "runsc").touch()
    config = HostSettings.model_validate({"images": {"root": tmp_path}, "prepared": {"failures": 1}})
    starts, image = PreparedStarts(config), new_image()
    entry = Registered(image="python", name="sci", modules=("json",))
    spec = SandboxSpec.model_validate({"image": "python", "command": ["python3", "-c", "pass"], "prepared": "sci"})
    limits = admit(spec, config)
    job = pack_spec(limits, image, resolve_user(image, ""), NO_TRANSFER)
    plain = replace(PLAN, binary=RunscBinary(str(tmp_path / "runsc"), "1"), interpreter=None)

    starts.preparations.add(entry)
    first = starts.choose(plain, image, limits, job)
    assert first is not None
    assert starts.is_listed(first)
    starts.quarantine.note_failure(first, "no numpy")
    assert starts.choose(plain, image, limits, job) is None
    assert starts.read().quarantined == {"python:sci": "no numpy"}

    starts.preparations.add(entry)
    second = starts.choose(plain, image, limits, job)
    assert second is not None
    assert (starts.is_listed(first), starts.is_listed(second)) == (False, True)
    assert starts.read().quarantined == {}, "nobody lists the one that failed"
    starts.preparations.remove("python", "sci")
    assert not starts.is_listed(second)


def test_a_list_that_cannot_be_read_now_takes_no_spares_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = PreparedStarts(HostSettings.model_validate({"images": {"root": tmp_path}}))

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(starts.preparations, "find", fail)
    assert starts.is_listed(PLAN)


def test_pinned_images_have_the_plans_that_can_be_prepared_now(tmp_path: Path) -> None:
    erofs = tmp_path / "image.erofs"
    erofs.touch()
    binary = RunscBinary(str(tmp_path / "runsc"), "1")
    plain = Plan.of(binary, "systrap", erofs)
    starts = PreparedStarts(HostSettings.model_validate({"images": {"root": tmp_path}, "prepared": {"failures": 1}}))
    starts.preparations.add(Registered(image="python", name="sci"))
    pins = PreparedPins(starts)
    pins.add(plain, new_image(erofs_path=erofs))
    starts.preparations.add(Registered(image="other", name="sci"))
    pins.add(plain, new_image(name="other", user="nosuch"))
    assert pins.list_pinned() == [], "runsc is gone"
    (tmp_path / "runsc").touch()
    (plan,) = pins.list_pinned()
    assert pins.is_listed(plan)
    starts.quarantine.note_failure(plan, "it failed")
    assert pins.list_pinned() == []
    starts.preparations.add(Registered(image="python", name="sci"))
    assert len(pins.list_pinned()) == 1
    erofs.write_text("replaced")
    assert pins.list_pinned() == []


def test_what_no_operator_lists_is_kept_as_the_settings_say(tmp_path: Path) -> None:
    bare = replace(PLAN, interpreter=replace(INTERPRETER, preparation=BARE, name="python:python"))
    for start, is_listed in (("named", False), ("python", True)):
        config = HostSettings.model_validate({"images": {"root": tmp_path}, "prepared": {"start": start}})
        starts = PreparedStarts(config)
        assert starts.is_listed(bare) is is_listed
        assert starts.is_listed(replace(PLAN, interpreter=None))
        assert not starts.is_listed(PLAN)


@pytest.mark.parametrize(
    ("number", "seconds", "counted"),
    [
        *((number, 0.01, {"has_crashed": True, "has_aborted": False}) for number in ("SEGV", "ILL", "BUS", "FPE")),
        ("ABRT", 0.01, {"has_crashed": False, "has_aborted": True}),
        ("KILL", 0.01, {"has_crashed": False, "has_aborted": False}),
        ("SEGV", 0.06, {"has_crashed": False, "has_aborted": False}),
    ],
)
def test_crashes_right_after_the_start_are_counted(
    tmp_path: Path, number: str, seconds: float, counted: dict[str, bool]
) -> None:
    starts: Any = PreparedStarts(HostSettings.model_validate({"images": {"root": tmp_path}}))
    told: list[dict[str, bool]] = []
    starts.quarantine = SimpleNamespace(note_job=lambda _, **given: told.append(given))
    end = Signaled(signal.Signals[f"SIG{number}"], disk_full=False)
    starts.note_end(PLAN, SimpleNamespace(facts=SimpleNamespace(end=end), run_seconds=seconds))
    assert told == [counted]


def test_spares_from_the_start_are_found_for_a_name_with_a_digest(tmp_path: Path) -> None:
    (tmp_path / "runsc").touch()
    starts = PreparedStarts(HostSettings.model_validate({"images": {"root": tmp_path}}))
    starts.preparations.add(Registered(image="python", name="sci", modules=("json",)))
    plain = replace(PLAN, binary=RunscBinary(str(tmp_path / "runsc"), "1"), interpreter=None)
    digest = f"sha256:{'0' * 64}"
    for name in ("python", f"python@{digest}"):
        assert len(starts.list_plans(plain, new_image(name=name))) == 1
    assert not starts.list_plans(plain, new_image(name="other"))
