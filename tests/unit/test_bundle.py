from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.sandbox.image.datasets import DatasetMount
from sandfleet_worker.sandbox.image.users import ResolvedUser
from sandfleet_worker.sandbox.process.bundle import home_of, new_config, new_env
from sandfleet_worker.sandbox.process.init_job import exec_candidates


def test_the_last_of_a_name_counts() -> None:
    env = new_env(("A=image", "PATH=/image", "B=1"), ("A=spec", "A=last"), "/home/x")
    assert env == {"PATH": "/image", "HOME": "/home/x", "HOSTNAME": "sandbox", "A": "last", "B": "1"}


def test_a_bundle_mounts_nothing_of_the_host() -> None:
    config = new_config("/r", "/i.erofs", inherits_capabilities=True)
    assert [mount["type"] for mount in config["mounts"]] == ["proc", "sysfs"]
    assert config["root"] == {"path": "/r", "readonly": True}
    assert config["annotations"] == {
        "dev.gvisor.spec.rootfs.source": "/i.erofs",
        "dev.gvisor.spec.rootfs.type": "erofs",
    }


def test_datasets_are_mounted_read_only_below_a_folder_of_the_sandboxs_own() -> None:
    datasets = (DatasetMount("/data/b", Path("/b.erofs")), DatasetMount("/data/a", Path("/a.erofs")))
    mounts = new_config("/r", "/i.erofs", datasets, inherits_capabilities=True)["mounts"][2:]
    assert [(mount["destination"], mount["type"], mount["source"]) for mount in mounts] == [
        ("/data", "tmpfs", "tmpfs"),
        ("/data/a", "erofs", "/a.erofs"),
        ("/data/b", "erofs", "/b.erofs"),
    ]
    assert all({"ro", "nosuid", "nodev"} <= set(mount["options"]) for mount in mounts)


INIT_CAPABILITIES = [
    *("CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_CHOWN", "CAP_DAC_READ_SEARCH"),
    *("CAP_DAC_OVERRIDE", "CAP_FOWNER"),
]


def test_init_has_no_bounding_set_and_nothing_in_its_environment() -> None:
    """A bounding set would reach the sentry on the host before 20240916.

    /proc/gvisor/spec_environ shows the environment.
    """
    capabilities = {"effective": INIT_CAPABILITIES, "permitted": INIT_CAPABILITIES}
    for inherits, more in ((False, {}), (True, {"inheritable": INIT_CAPABILITIES})):
        process = new_config("/r", "/i.erofs", inherits_capabilities=inherits)["process"]
        assert process["capabilities"] == {"bounding": [], **capabilities, **more}
        assert process["env"] == []
        assert process["noNewPrivileges"] is True


def test_a_command_that_is_too_long_to_look_up_is_refused_before_anything_is_built() -> None:
    """70,000 folders of PATH and a program's name of 100,000 bytes were 7 GB."""
    for name, path in (("x" * 100_000, "a:" * 70_000), ("x", ":" * 1_100_000), ("x" * 1_100_000, "/bin")):
        with pytest.raises(ValueError, match="name the program by its path"):
            exec_candidates(name, path)
    assert exec_candidates("x", "a::b") == ["a/x", "x", "b/x"]
    assert exec_candidates("/bin/x", ":" * 1_100_000) == ["/bin/x"]


def test_a_home_in_work_is_work_itself_where_that_is_mounted() -> None:
    image: Any = SimpleNamespace(has_directory={"/work", "/work/me", "/home/me"}.__contains__)
    for home, plain, mounted in (
        ("/work", "/work", "/work"),
        ("/work/me", "/work/me", "/work"),
        ("/workshop", "/tmp", "/tmp"),
        ("/home/me", "/home/me", "/home/me"),
    ):
        user = ResolvedUser(uid=1, gid=1, home=home)
        assert (home_of(image, user), home_of(image, user, uses_work=True)) == (plain, mounted)


def test_a_home_in_data_is_tmp_where_datasets_hide_it() -> None:
    image: Any = SimpleNamespace(has_directory={"/data", "/home/me"}.__contains__)
    for home, plain, mounted in (("/data", "/data", "/tmp"), ("/home/me", "/home/me", "/home/me")):
        user = ResolvedUser(uid=1, gid=1, home=home)
        assert (home_of(image, user), home_of(image, user, uses_data=True)) == (plain, mounted)
