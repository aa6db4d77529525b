"""`BatchOverview`: what a `Batch` tells about its jobs, and their next runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.wire import MAX_SPEC_BYTES

from sandfleet.overview.job_filter import JobFilter, find_jobs
from sandfleet.overview.summary import read_summary
from sandfleet.retry.batch_retry import BatchRetry, RetryResult
from sandfleet.retry.changes import JobChanger
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import ImageChoice
    from sandfleet.channel.protocol import Channel
    from sandfleet.overview.summary import BatchSummary
    from sandfleet.retry.batch_retry import RetryPlan


class BatchOverview:
    """Part of `Batch`: its summary, its jobs by code, label and state, and their next runs."""

    name: str
    _channel: Channel

    def summary(self) -> BatchSummary:
        """Return counts, rate, time left and last failures, at the same cost for any size."""
        return read_summary(self._channel.overview, self.name)

    def find_jobs(
        self,
        *,
        codes: Iterable[str] = (),
        categories: Iterable[str] = (),
        states: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        host: str = "",
    ) -> Iterator[JobFacts]:
        """Yield the jobs with one of the codes or categories, a state, all labels, and the host.

        An argument that is left out matches all jobs. The jobs come in the order of submit; with
        a code or a category, in the order of their ends. Memory does not grow with the batch.

        Raises:
            ValueError: there is no such code, category or state.
        """
        wanted = JobFilter.of(codes=codes, categories=categories, states=states, labels=labels, host=host)
        return find_jobs(self._channel.overview, self.name, wanted)

    def iter_ids(self) -> Iterator[str]:
        """Yield its jobs' ids in the order of submit; memory does not grow with the batch."""
        for page in self._channel.overview.member_pages(self.name):
            yield from page

    def plan_retry(
        self,
        *,
        codes: Iterable[str] = (),
        categories: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        changes: Mapping[str, object] | None = None,
    ) -> RetryPlan:
        """Return what `retry` would do now, and do nothing.

        Raises:
            ValueError: there is no such code or category.
            SpecInvalid: the changes do not fit a job.
        """
        wanted = JobFilter.of(codes=codes, categories=categories, labels=labels)
        return self.new_retry(wanted, changes).plan()

    def retry(
        self,
        *,
        codes: Iterable[str] = (),
        categories: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        changes: Mapping[str, object] | None = None,
        resolve_images: bool = False,
    ) -> RetryResult:
        """Start the next run of the jobs that match and whose newest run did not end OK.

        `changes` are other values for fields of their specs: ``{"timeout": 60,
        "resources.memory_bytes": "1GiB"}``. They are checked for all jobs before the first is
        queued. The jobs keep their ids and the digests of their images; `resolve_images` lets the
        next one look these up again. A second call changes nothing that the first has done.

        Raises:
            ValueError: there is no such code or category.
            SpecInvalid: the changes do not fit a job. Nothing was queued.
        """
        wanted = JobFilter.of(codes=codes, categories=categories, labels=labels)
        retry = self.new_retry(wanted, changes, resolve_images=resolve_images)
        if changes:
            retry.plan()
        if resolve_images:
            self.forget_pins()
        result = RetryResult()
        result.states.update(state for _, state in retry.start())
        return result

    def forget_pins(self) -> None:
        """Let the next job look up the digests of image names again; running jobs do not change."""
        self._channel.overview.forget_pins(self.name)

    def new_retry(
        self,
        wanted: JobFilter,
        changes: Mapping[str, object] | None = None,
        *,
        resolve_images: bool = False,
        find_spec: Callable[[JobFacts], SandboxSpec | None] | None = None,
        max_spec_bytes: int = MAX_SPEC_BYTES,
    ) -> BatchRetry:
        """Prepare a retry: `plan` shows it, `start` does it."""
        changer = None
        if changes or resolve_images or find_spec is not None:
            # With images to look up, a job no longer needs the digest that a host has found for it.
            changer = JobChanger(
                self.name,
                changes or {},
                max_spec_bytes,
                self._channel.find_largest_budget,
                lambda: self._channel.objects,
            )
        images: ImageChoice = "as_batch" if resolve_images else "kept"
        return BatchRetry(
            self._channel.overview, self.name, wanted, changer=changer, find_spec=find_spec, images=images
        )

    summary_async = in_thread(summary)
    plan_retry_async = in_thread(plan_retry)
    retry_async = in_thread(retry)
    forget_pins_async = in_thread(forget_pins)
