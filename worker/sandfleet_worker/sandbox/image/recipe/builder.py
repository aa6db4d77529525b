"""Build an image from a recipe: lock its packages if they are not, fetch them, and fill a tree."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.build import fill_image
from sandfleet_worker.sandbox.image.oci import ImageConfig
from sandfleet_worker.sandbox.image.recipe.bases import BaseLayouts
from sandfleet_worker.sandbox.image.recipe.cache import BuildCache
from sandfleet_worker.sandbox.image.recipe.copied import copy_files, find_missing
from sandfleet_worker.sandbox.image.recipe.debian import PATH, find_python, install_debs
from sandfleet_worker.sandbox.image.recipe.debs import fetch_debs, index_repository, lock_debs
from sandfleet_worker.sandbox.image.recipe.faults import describe
from sandfleet_worker.sandbox.image.recipe.inside import make_folder
from sandfleet_worker.sandbox.image.recipe.lock import Lock, hash_wanted, read_lock, write_lock
from sandfleet_worker.sandbox.image.recipe.mirror import PrivateApt, find_architecture, find_mirror
from sandfleet_worker.sandbox.image.recipe.site import compile_ahead, debian_site, find_site, place
from sandfleet_worker.sandbox.image.recipe.wheels import Uv
from sandfleet_worker.sandbox.image.references import is_name
from sandfleet_worker.sandbox.image.staging import host_faults, locked, staging_folder
from sandfleet_worker.sandbox.image.tools import Limits, StagingFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.recipe.lock import LockedDeb
    from sandfleet_worker.sandbox.image.recipe.site import Site
    from sandfleet_worker.sandbox.image.recipe.whole import WholeRecipe
    from sandfleet_worker.sandbox.image.store import ImageStore

PYTHON_PACKAGES = ("python3", "libstdc++6")
"""Packages that `pip` adds on Debian: Python, and a library that wheels expect (PEP 600)."""


@dataclass(frozen=True, slots=True)
class LockChoice:
    """Which lock a build uses.

    `must_fit`: fail if there is none, or one of another recipe. `is_renewed`: make it anew.
    """

    path: Path
    must_fit: bool = False
    is_renewed: bool = False


class RecipeBuilder:
    """Builds recipes into one store. Safe beside other builds, also of the same recipe."""

    def __init__(
        self, store: ImageStore, settings: ImagesSettings, on_progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._store, self._settings, self._tell = store, settings, on_progress
        self._cache = new_cache(settings)
        self._layouts = BaseLayouts(settings)

    def build(self, name: str, recipe: WholeRecipe, choice: LockChoice, source: str) -> Image:
        """Build the image `name`; `images list` and the image's facts call the recipe `source`.

        Raises:
            ImageInvalid: the recipe or its lock is faulty; all faults of the recipe are told at
            once.
            ImageUnavailable: a locked package is gone, a tool is missing, or a mirror cannot be
            reached.
            HostResources: the disk is full. In every case nothing half-made is left.
        """
        if not is_name(name):
            raise ImageInvalid.of(f"{name[:200]!r} is no image name: use lower case, such as `judge` or `team/app:v1`")
        name = name.removesuffix(":latest")
        faults = find_missing(recipe.files)
        if faults:
            raise ImageInvalid.of(describe("the recipe", faults))
        # Two builds with one lock file: the second one finds what the first has locked.
        key = hashlib.sha256(str(choice.path.absolute()).encode()).hexdigest()[:32]
        waiting = "waiting for another build of the same recipe"
        root = self._settings.root
        with (
            host_faults(root if root.exists() else Path("/")),
            locked(root / "locks" / f"build-{key}", waiting, self._tell),
            self._cache.in_use(),
        ):
            lock = self._find_lock(recipe, choice)
            fill = _Build(recipe, lock, self._cache, self._settings, self._tell, self._layouts).fill
            image = self._store.make(lambda staging: fill_image(name, source, fill, staging, self._tell), Limits())
            self._tell(f"{name} is {image.digest}")
            return self._store.name_image(name, image)

    def _find_lock(self, recipe: WholeRecipe, choice: LockChoice) -> Lock:
        wanted = hash_wanted(recipe, find_architecture())
        lock = None if choice.is_renewed else read_lock(choice.path)
        if lock is not None and lock.wanted == wanted:
            return lock
        if choice.must_fit:
            why = "there is no lock" if lock is None else "the recipe was changed since it was locked"
            raise ImageInvalid.of(f"{choice.path}: {why}: build once without --locked, and keep the lock")
        if lock is not None:
            self._tell("the recipe was changed since it was locked")
        lock = self._new_lock(recipe, wanted)
        write_lock(choice.path, lock)
        self._tell(f"locked {len(lock.apt)} packages of Debian and {len(lock.pip)} of Python in {choice.path}")
        return lock

    def _new_lock(self, recipe: WholeRecipe, wanted: str) -> Lock:
        with staging_folder(self._settings.root / "staging") as (folder, descriptor):
            staging = StagingFolder(folder, descriptor, Limits())
            debs: tuple[LockedDeb, ...] = ()
            base = self._layouts.find_digest(recipe.base)
            if recipe.suite:
                self._tell(f"asking for the packages of Debian {recipe.suite}")
                mirror = find_mirror(self._settings.debian_mirror)
                python = PYTHON_PACKAGES if recipe.pip else ()
                debs = lock_debs(PrivateApt(staging, recipe.suite, mirror), (*python, *recipe.apt))
            if not recipe.pip:
                return Lock(wanted=wanted, base=base, apt=debs)
            version = find_python(debs) if recipe.suite else self._find_base_site(recipe.base, base, staging).version
            self._tell(f"asking for packages of Python {version}")
            wheels = Uv(staging, self._cache, version).lock(recipe.pip)
            return Lock(wanted=wanted, base=base, apt=debs, python=version, pip=wheels)

    def _find_base_site(self, base: str, digest: str, staging: StagingFolder) -> Site:
        self._tell(f"looking for Python in {base}")
        self._layouts.unpack(base, digest, staging)
        return find_site(staging.tree)


@dataclass(frozen=True, slots=True)
class _Build:
    """Fills the tree of one image."""

    recipe: WholeRecipe
    lock: Lock
    cache: BuildCache
    settings: ImagesSettings
    tell: Callable[[str], None]
    layouts: BaseLayouts

    def fill(self, staging: StagingFolder) -> ImageConfig:
        config = self._install_base(staging)
        if self.lock.pip:
            self._install_wheels(staging)
        copy_files(self.recipe.files, staging.tree, staging.limits)
        if self.recipe.working_dir:
            make_folder(staging.tree, self.recipe.working_dir)
        return self._configure(config)

    def _install_base(self, staging: StagingFolder) -> ImageConfig:
        recipe = self.recipe
        if not recipe.suite:
            self.tell(f"unpacking {recipe.base}")
            return self.layouts.unpack(recipe.base, self.lock.base, staging)
        size = sum(deb.size for deb in self.lock.apt)
        self.tell(f"fetching {len(self.lock.apt)} packages of Debian {recipe.suite}, {size / 1e6:.1f} MB")
        repository = fetch_debs(self.lock.apt, find_mirror(self.settings.debian_mirror), staging, self.cache)
        index_repository(repository, recipe.suite, staging)
        self.tell("installing them")
        install_debs(repository, recipe.suite, staging)
        return ImageConfig(env=(f"PATH={PATH}", "LANG=C.UTF-8"))

    def _install_wheels(self, staging: StagingFolder) -> None:
        site = debian_site(self.lock.python) if self.recipe.suite else find_site(staging.tree)
        if site.version != self.lock.python:
            raise ImageInvalid.of(
                f"the recipe is locked for Python {self.lock.python}, and its base has {site.version}: "
                "lock it anew with --update"
            )
        self.tell(f"installing {len(self.lock.pip)} packages of Python {site.version}")
        unpacked = staging.folder / "packages"
        Uv(staging, self.cache, site.version).install(self.lock.pip, unpacked)
        placed = place(unpacked, site, staging.tree)
        self.tell("compiling them")
        if not compile_ahead(site, placed, staging):
            self.tell(f"not compiled, which makes imports slow: this host has no python{site.version}")

    def _configure(self, base: ImageConfig) -> ImageConfig:
        recipe = self.recipe
        env = dict(item.split("=", 1) for item in base.env) | dict(recipe.env)
        command = base.cmd if recipe.command is None else recipe.command
        return ImageConfig(
            env=tuple(f"{name}={text}" for name, text in env.items()),
            entrypoint=base.entrypoint if recipe.entrypoint is None else recipe.entrypoint,
            cmd=command,
            working_dir=recipe.working_dir or base.working_dir,
            user=recipe.user or base.user,
        )


def new_cache(settings: ImagesSettings) -> BuildCache:
    """Return the build cache of a store."""
    return BuildCache(settings.root / "cache", settings.build_cache_bytes)
