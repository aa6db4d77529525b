"""The files of this host's jobs: in before the start, out after the end."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import HostResources
from sandfleet_config.store.opening import open_store
from sandfleet_config.store.protocol import StoreDown
from sandfleet_config.store.references import References

from sandfleet_worker.files.cache import ObjectCache
from sandfleet_worker.files.inputs import InputFetcher
from sandfleet_worker.files.kept import KeptInputs
from sandfleet_worker.files.spool import Spool, StreamSpool
from sandfleet_worker.files.uploads import Uploader
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest, CollectLimits
from sandfleet_worker.sandbox.process.packed_job import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import PolicySettings, WorkerSettings
    from sandfleet_config.spec import SandboxSpec

    from sandfleet_worker.files.inputs import JobInputs
    from sandfleet_worker.files.spool import JobSpool
    from sandfleet_worker.sandbox.process.artifacts import Collection
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.start_hooks import StartHooks

STREAMS: Final = ("stdout", "stderr")


class HostFiles:
    """Prepares the files of one worker's jobs; safe for threads.

    `client` is the fleet's Redis. `pause` waits for so many seconds, and returns True where the
    worker may wait no longer.
    """

    def __init__(self, settings: WorkerSettings, client: redis.Redis, pause: Callable[[float], bool]) -> None:
        """Open the store; nothing is connected yet.

        Raises:
            SettingsInvalid: the store of the settings cannot be used here.
        """
        self._settings = settings
        self._store = open_store(settings, client)
        files, deadline_seconds = settings.files, settings.store.deadline_seconds
        references = References(client, self._store)
        self._kept = KeptInputs(references, settings.result_ttl_seconds)
        cache = ObjectCache(files.cache_dir, self._store, files.cache_bytes)
        self._fetcher = InputFetcher(cache, self._kept, deadline_seconds)
        self._uploader = Uploader(
            self._store,
            references,
            keep_seconds=settings.result_ttl_seconds,
            deadline_seconds=deadline_seconds,
            pause=pause,
        )
        self._lock = threading.Lock()

    @cached_property
    def _spool(self) -> Spool:
        return Spool(self._settings.files.spool_dir, self._settings.files.spool_bytes)

    def close(self) -> None:
        """Remove what jobs have left here, and close the store's connections."""
        if "_spool" in self.__dict__:
            self._spool.close()
        self._store.close()

    def prepare(self, spec: SandboxSpec, cancel: Cancellation, hooks: StartHooks) -> JobFiles | None:
        """Have the inputs of `spec` on this host, and a place for what its program leaves.

        Return None for a job without files; close any other result.

        Raises:
            SandboxError: the files cannot be had (`InputFetcher.prepare`), or kept on this host.
        """
        if not (spec.files or spec.stdin.sha256 or spec.artifacts or spec.output.store):
            return None
        try:
            inputs = self._fetcher.prepare(spec, cancel, hooks)
            with self._lock:
                spool = self._spool
            policy = self._settings.policy
            return JobFiles(spec, inputs, spool.new_job(), self._uploader, policy=policy, cancel=cancel)
        except OSError as error:
            raise HostResources.of(f"this host cannot keep the job's files: {error}") from error

    def keep_for_dead_letter(self, spec: SandboxSpec, cancel: Cancellation) -> None:
        """Let the store keep the inputs of a job that becomes a dead letter."""

        def check(_: float) -> None:
            if cancel.is_withdrawn:
                raise StoreDown("the worker stops")

        self._kept.keep_for_dead_letter(spec, check)


class JobFiles:
    """The files of one job, which has some. Used in the job's thread."""

    def __init__(
        self,
        spec: SandboxSpec,
        inputs: JobInputs,
        spool: JobSpool,
        uploader: Uploader,
        *,
        policy: PolicySettings,
        cancel: Cancellation,
    ) -> None:
        self._spool, self._uploader, self._cancel = spool, uploader, cancel
        self._streams: dict[str, StreamSpool] = {}
        self._max_stream_bytes = policy.stored_output_bytes
        self._kept_bytes = spec.output.max_bytes or policy.output_bytes
        self.collection: Collection | None = None
        """The files that were collected from the sandbox; the caller sets it."""
        artifacts = _new_request(spec, spool, policy) if spec.artifacts else None
        keep_output = self._keep_stream if spec.output.store else None
        self.transfer = Transfer(inputs.files, artifacts, stdin=inputs.stdin, keep_output=keep_output)

    def close(self) -> None:
        """Remove what is left on this host's disk."""
        self._spool.close()

    def deliver(self, outcome: Outcome) -> Outcome:
        """Upload what the job left; return `outcome` with its places, or why something is lost.

        A cancel of the job does not end this, for its program has ended; the stop of the worker
        does.
        """
        limits = self._uploader.new_limits(lambda: self._cancel.is_withdrawn)
        losses = [self.collection.lost] if self.collection and self.collection.lost else []
        for name, stream in self._streams.items():
            file, lacks = stream.finish(name)
            if file is not None:
                told, why = self._uploader.store_stream(getattr(outcome, name), file, limits)
                outcome = outcome.model_copy(update={name: told})
                lacks = why or lacks
            losses += [f"{name} in the store: {lacks}"] if lacks else []
        return self._uploader.store(outcome, self._spool.files, "; ".join(losses), limits)

    def _keep_stream(self, name: str) -> Callable[[bytes], None]:
        self._streams[name] = StreamSpool(self._spool, self._kept_bytes, self._max_stream_bytes)
        return self._streams[name].write


def _new_request(spec: SandboxSpec, spool: JobSpool, policy: PolicySettings) -> ArtifactRequest:
    patterns = [ArtifactPattern(item.glob, item.max_bytes, item.when) for item in spec.artifacts]
    limits = CollectLimits(policy.artifact_files, policy.artifact_bytes, policy.artifacts_bytes)
    return ArtifactRequest(patterns, spool, limits)
