from __future__ import annotations

from pathlib import Path

from sandfleet_worker.sandbox.bundle import new_config, new_env


def test_the_last_of_a_name_counts() -> None:
    env = new_env(("A=image", "PATH=/image", "B=1"), ("A=spec", "A=last"), "/home/x")
    assert env == {"PATH": "/image", "HOME": "/home/x", "HOSTNAME": "sandbox", "A": "last", "B": "1"}


def test_a_bundle_mounts_nothing_of_the_host() -> None:
    config = new_config(Path("/r"), Path("/i.erofs"))
    assert {mount["type"] for mount in config["mounts"]} <= {"proc", "sysfs"}
    assert config["root"] == {"path": "/r", "readonly": True}
    assert all(key.startswith("dev.gvisor.spec.rootfs.") for key in config["annotations"])
    assert config["process"]["capabilities"]["bounding"] == []
