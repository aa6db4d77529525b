"""The images that hosts share: names in the fleet's Redis, objects in its store."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.errors import ImageInvalid, ImageNotFound, ImageUnavailable
from sandfleet_config.image_names import REGISTRY_PREFIX, matches_shared
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store.opening import open_store
from sandfleet_config.store.protocol import ObjectDamaged, ObjectMissing, StoreError
from sandfleet_config.store.references import References
from sandfleet_config.store_settings import REDIS_URL
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.image.references import is_digest, is_name
from sandfleet_worker.sandbox.image.shared import publish
from sandfleet_worker.sandbox.image.shared_facts import MAX_FACTS_BYTES, SharedFacts, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet_config.settings import WorkerSettings
    from sandfleet_config.store.protocol import ObjectStore

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.store import ImageStore

SHARED_KEY: Final = f"{KEY_PREFIX}shared_images"
EARLIER_KEY: Final = f"{SHARED_KEY}:earlier"
MAX_NAMES: Final = 1000
KNOWN_SECONDS: Final = 5.0
"""A host says to the fleet within this time that it can have a newly shared image."""
TOO_MANY: Final = -1
SHA256_CHARS: Final = 64
SHA256_PREFIX: Final = "sha256:"
KEEP_UPLOADED_SECONDS: Final = 2 * 86400.0
"""The store keeps what a push has uploaded for this time before its name is shared.

A large upload takes hours.
"""


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that is shared now; `uploaded_bytes` is 0 if the store had all of it.

    `here` is the digest that its name means on this host: another one if it was added again
    meanwhile.
    """

    name: str
    digest: str
    uploaded_bytes: int
    here: str


class FleetImages:
    """The fleet's shared images; see the protocol `SharedImages`. Safe for threads.

    `client` is the fleet's Redis and must not decode responses. The store is opened when it is
    first used.
    """

    def __init__(self, settings: WorkerSettings, client: redis.Redis) -> None:
        self._settings, self._client = settings, client
        self._takeable: frozenset[str] = frozenset()
        self._listed_at = -KNOWN_SECONDS

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._settings, self._client)

    def close(self) -> None:
        """Close the connections."""
        if "_store" in self.__dict__:
            self._store.close()
        self._client.close()

    def find(self, name: str) -> str:
        """Return the digest that is shared under `name`, unchecked; empty if there is none.

        Raises:
            ImageUnavailable: Redis does not answer.
        """
        with self._guard():
            try:
                found = self._client.hget(SHARED_KEY, name)
            except redis.ResponseError:  # a forged key of a wrong type
                return ""
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""

    def was_shared(self, name: str, digest: str) -> bool:
        """Whether somebody shares the image under this name, or did so within the last two days.

        Raises:
            ImageUnavailable: Redis does not answer.
        """
        if self.find(name) == digest:
            return True
        with self._guard():
            try:
                return self._client.zscore(EARLIER_KEY, f"{name} {digest}") is not None
            except redis.ResponseError:
                return False

    def list_names(self) -> dict[str, str]:
        """Return the digest of each shared name; what is no name or no digest is left out.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        try:
            raw: dict[bytes, bytes] = dict(self._client.hgetall(SHARED_KEY))  # type: ignore[arg-type]
        except redis.ResponseError:
            return {}
        found = {name.decode("utf-8", "replace"): digest.decode("utf-8", "replace") for name, digest in raw.items()}
        return {name: found[name] for name in sorted(found) if is_name(name) and is_digest(found[name])}

    def can_take(self, name: str, digest: str) -> bool:
        """Whether this host's settings let it take the image."""
        return any(matches_shared(name, digest, pattern) for pattern in self._settings.images.shared)

    def list_takeable(self) -> frozenset[str]:
        """Return names and digests of the shared images that this host takes.

        They are as of the last `KNOWN_SECONDS`.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        now = time.monotonic()
        if self._settings.images.shared and not is_in_redis(self._settings) and now - self._listed_at >= KNOWN_SECONDS:
            found = [pair for pair in self.list_names().items() if self.can_take(*pair)]
            self._takeable, self._listed_at = frozenset(text for pair in found for text in pair), now
        return self._takeable

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield an object of the store; see `SharedImages.read`."""
        if is_in_redis(self._settings):
            raise ImageNotFound.of(
                "the store of this host is in Redis, which holds no images: set SANDFLEET_STORE__URL here as on the "
                "host that pushed it, and start the workers again"
            )
        with self._guard():
            yield from self._store.read(sha256)

    def find_lost(self, shared: Mapping[str, str]) -> set[str]:
        """Return those names of `shared`, with their digests, whose facts the store does not have.

        Raises:
            ImageUnavailable: the store cannot be reached.
        """
        facts = {name: digest.removeprefix(SHA256_PREFIX) for name, digest in shared.items()}
        with self._guard():
            missing = self._store.find_missing(set(facts.values()))
        return {name for name, sha256 in facts.items() if sha256 in missing}

    def push(self, images: ImageStore, name: str) -> Pushed:
        """Share the image `name` of this host with the fleet.

        An image that is shared already is not uploaded again.

        Raises:
            ImageNotFound: it is not on this host.
            ImageInvalid: it has no name of its own, or was damaged; or the store takes no object of
            its size.
            ImageUnavailable: the store or Redis cannot be reached, or has no room.
        """
        if name.startswith(REGISTRY_PREFIX) or is_digest(name):
            raise ImageInvalid.of(
                f"{name[:200]}: push a name of your own. Hosts pull images of registries themselves "
                "(SANDFLEET_IMAGES__PULL_FROM)"
            )
        image = images.resolve(name)
        facts = SharedFacts.of(image).encode()
        digest = digest_of(facts)
        with self._guard(), images.hold(image):
            self._check_store(image, facts)
            uploaded = self._upload(image, facts, digest)
        here = publish(images, image)
        return Pushed(image.name, digest, uploaded, here)

    def _check_store(self, image: Image, facts: bytes) -> None:
        largest = self._store.max_object_bytes
        # Such a store, in Redis, also lets objects expire that are pinned.
        if largest is not None:
            raise ImageInvalid.of(
                f"image {image.name} has {format_bytes(image.size_bytes)}, and {self._store.name} is for small files of "
                f"jobs ({format_bytes(largest)} each). Give all hosts another store, then push again: "
                "`export SANDFLEET_STORE__URL=file:///FOLDER` (a folder that all hosts mount; or s3://BUCKET), "
                f"`sandfleet-worker images push {image.name}`"
            )
        if len(facts) > MAX_FACTS_BYTES:
            raise ImageInvalid.of(
                f"image {image.name}: its users, groups and variables have {format_bytes(len(facts))}, hosts read "
                f"{format_bytes(MAX_FACTS_BYTES)} of a shared image"
            )

    def _upload(self, image: Image, facts: bytes, digest: str) -> int:
        """Upload what the store lacks, then share the name; return the uploaded bytes."""
        names = (digest.removeprefix(SHA256_PREFIX), image.erofs_sha256)
        references = References(self._client, self._store)
        # Pinned only once the name is shared: a push that is killed before would leave a pin that
        # nobody ends.
        references.keep(names, KEEP_UPLOADED_SECONDS)
        # The facts come last: who finds them finds the rest.
        size = image.size_bytes if self._store.put_file(image.erofs_sha256, image.erofs_path) else 0
        size += len(facts) if self._store.put_bytes(names[0], facts) else 0
        self._share(references, image.name, digest, names)
        return size

    def unshare(self, name: str) -> bool:
        """Share `name` no more; return False if it was not shared.

        Its objects stay in the store for a day.

        Raises:
            ImageUnavailable: Redis or the store does not answer.
        """
        with self._guard():
            return bool(self._share(References(self._client, self._store), name.removesuffix(":latest"), "", ()))

    def _share(self, references: References, name: str, digest: str, names: tuple[str, ...]) -> int:
        if others := [sha256 for sha256 in self._list_pinned(name) if sha256 not in names]:
            references.keep(others, 0)  # batches that began with the earlier image go on for a day
        done = int(references.call("share_image", name, digest, MAX_NAMES, *names))
        if done == TOO_MANY:
            raise ImageInvalid.of(
                f"{MAX_NAMES} images are shared already: end some with `sandfleet-worker images unshare NAME`"
            )
        return done

    def _list_pinned(self, name: str) -> list[str]:
        """Return the objects that the store keeps for a shared name."""
        pins = [bytes(pin).decode("utf-8", "replace") for pin, _ in self._client.zscan_iter(f"{KEY_PREFIX}store:pins")]
        return [pin[:SHA256_CHARS] for pin in pins if pin[SHA256_CHARS:] == f" {_owner(name)}"]

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn the errors of the store and of Redis into those of an image."""
        try:
            yield
        except ObjectMissing as error:
            raise ImageNotFound.of(error.message) from error
        except ObjectDamaged as error:
            raise ImageInvalid.of(error.message) from error
        except StoreError as error:
            raise ImageUnavailable.of(error.message) from error
        except redis.RedisError as error:
            why = str(error) or type(error).__name__
            raise ImageUnavailable.of(f"Redis does not say which images are shared: {why}") from error


def is_in_redis(settings: WorkerSettings) -> bool:
    """Whether the store is the fleet's Redis, which holds no images."""
    return settings.store_url == REDIS_URL


def _owner(name: str) -> str:
    """Return the owner of the pins of a shared name."""
    return f"image:{name}"
