"""Images and datasets of this host, and where it can get more from: findings of the doctor."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.errors import SandboxError

from sandfleet_worker.commands.checks import Finding, State
from sandfleet_worker.host import connect
from sandfleet_worker.sandbox.image.registry.skopeo import check_auth_file
from sandfleet_worker.shared_images import FleetImages, is_in_redis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.settings import ImagesSettings, WorkerSettings

    from sandfleet_worker.host_facts import Contents
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.store import ImageStore

MAX_SHOWN: Final = 20


def check_images(store: ImageStore) -> Finding:
    """Which images are here, and whether each can be read."""
    found, damaged = store.list_with_damaged()
    if damaged:
        return Finding("images", State.WARNING, "; ".join(damaged), "do what the message says, for each of them")
    if found:
        return Finding("images", State.OK, _join_names(found))
    return Finding("images", State.WARNING, "none on this host", "sandfleet-worker images add python")


def check_datasets(contents: Contents) -> Finding:
    """Which datasets are here, whether each can be read, and whether runsc mounts them."""
    found, damaged = contents.datasets.list_with_damaged()
    if damaged:
        return Finding("datasets", State.WARNING, "; ".join(damaged), "do what the message says, for each of them")
    detail = _join_names(found) if found else "none on this host"
    if contents.mounts_datasets():
        return Finding("datasets", State.OK, detail)
    detail = f"{detail}; the runsc of this host cannot mount datasets: jobs that name one run elsewhere"
    fix = "install a release of gVisor from 20260126 on: docs/how-to/gvisor-releases.md"
    return Finding("datasets", State.WARNING if found else State.TIP, detail, fix)


def check_registries(settings: ImagesSettings) -> Finding:
    """Whether the host can pull what its settings let jobs have pulled. No registry is asked."""
    name = "registries"
    if not settings.pull_from:
        return Finding(name, State.OK, "no job's image is pulled: SANDFLEET_IMAGES__PULL_FROM is empty")
    detail = f"jobs may have pulled: {', '.join(settings.pull_from)}"
    if shutil.which("skopeo") is None:
        return Finding(name, State.WARNING, f"{detail}; skopeo, which pulls them, is not found", "install skopeo")
    if settings.auth_file is not None:
        try:
            check_auth_file(settings.auth_file)
        except SandboxError as error:
            return Finding(name, State.WARNING, error.message, "mend the file, or unset SANDFLEET_IMAGES__AUTH_FILE")
    if settings.ca_dir is not None and not any(settings.ca_dir.glob("*.crt")):
        detail = f"SANDFLEET_IMAGES__CA_DIR: {settings.ca_dir} has no file *.crt"
        return Finding(name, State.WARNING, detail, "put the certificate of your CA there, with a name that ends so")
    passwords = f"passwords are in {settings.auth_file}" if settings.auth_file else "without passwords"
    return Finding(name, State.OK, f"{detail}; {passwords}; `sandfleet-worker images pull` tries one")


def check_shared(settings: WorkerSettings) -> Finding:
    """Which images of the fleet's store this host takes, and whether the store has them."""
    name, patterns = "shared images", settings.images.shared
    if not patterns:
        return Finding(name, State.OK, "none is taken: SANDFLEET_IMAGES__SHARED is empty")
    if is_in_redis(settings):
        return Finding(
            name,
            State.WARNING,
            f"none can be taken of {', '.join(patterns)}: the store is in Redis, which holds no images",
            "set SANDFLEET_STORE__URL as on the host that pushes images: file:///FOLDER or s3://BUCKET",
        )
    with closing(FleetImages(settings, connect(settings))) as shared:
        try:
            found = shared.list_names()
            taken = {image: digest for image, digest in found.items() if shared.can_take(image, digest)}
            lost = sorted(shared.find_lost(taken))
        except (redis.RedisError, OSError) as error:
            return Finding(name, State.WARNING, f"Redis does not say which there are: {error}", "start Redis")
        except SandboxError as error:
            return Finding(name, State.WARNING, error.message, "see the finding `store`")
    if lost:
        fix = f"push it again where it is: sandfleet-worker images push {lost[0]}"
        return Finding(name, State.WARNING, f"the store does not have {', '.join(lost)}", fix)
    others = f"; {len(found) - len(taken)} more are shared, and not listed here" if len(found) > len(taken) else ""
    return Finding(name, State.OK, f"{_join(sorted(taken)) or 'nobody shares one that is listed here'}{others}")


def _join_names(found: Sequence[Image]) -> str:
    return _join(sorted(image.name for image in found))


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"{', '.join(names[:MAX_SHOWN])}{more}"
