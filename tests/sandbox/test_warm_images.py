"""Spares follow their images: named in the settings, replaced, removed, or not used any more."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandfleet_config.codes import ErrorCode
from sandfleet_config.settings import HostSettings, ImagesSettings, WarmSettings
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until
from warmhost import SIZE, execute, idle, plan_of, wait_idle


def test_a_spare_of_a_replaced_image_is_never_given_out(
    warm_host: HostSettings, images_root: Path, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "store")
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "version").write_text("old\n")
    store.add("app", f"rootfs:{tree}")
    with RunscRunner(warm_host.model_copy(update={"images": ImagesSettings(root=store.root)})) as runner:
        command = ("sh", "-c", "while read line; do echo $line; done < /version")
        assert execute(runner, *command, image="app").stdout.text == "old\n"
        wait_idle(runner, image="app")
        (tree / "version").write_text("new\n")
        store.add("app", f"rootfs:{tree}")

        ending = execute(runner, *command, image="app")
        assert (ending.stdout.text, ending.runtime.warm) == ("new\n", False)
        wait_idle(
            runner, 1, image="app"
        )  # the other place is the old image's: it is still here, and was asked for of late
        assert execute(runner, *command, image="app").stdout.text == "new\n"
        plan = plan_of(runner, "app")
        store.remove("app")
        wait_until(lambda: not runner._provider.pool.count_idle(plan), 15, "nothing of a removed image is kept")


def test_images_named_in_the_settings_are_up_before_the_first_job(host: HostSettings) -> None:
    settings = host.model_copy(update={"warm": WarmSettings(size=1, images=("busybox", "no-such-image"))})
    with RunscRunner(settings) as runner:
        runner.warm_up()
        wait_idle(runner, 1)
        assert execute(runner, "true").runtime.warm


def test_spares_of_an_unused_image_are_destroyed(host: HostSettings) -> None:
    with RunscRunner(host.model_copy(update={"warm": WarmSettings(size=SIZE, idle_seconds=1)})) as runner:
        execute(runner, "true")
        wait_idle(runner)
        folders = [sandbox.paths.folder for sandbox in idle(runner)]
        wait_until(lambda: not any(folder.exists() for folder in folders), 20, "they are gone")
        assert not any(runner._provider.pool._spares.by_plan.values())
        assert execute(runner, "true").verdict.code is ErrorCode.OK
