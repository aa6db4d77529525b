"""Options of ``sandfleet submit`` for the limits of a batch and for what its jobs wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from sandfleet.cli import completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.batch_limits import BatchLimits

MaxFailures: TypeAlias = Annotated[
    int | None, typer.Option(metavar="N", help="Stop the batch when N of its jobs have failed; needs --batch.")
]
FailFast: TypeAlias = Annotated[bool, typer.Option("--fail-fast", help="Stop the batch at its first failure.")]
AtMost: TypeAlias = Annotated[
    int | None, typer.Option(metavar="N", help="Run N of the batch's jobs at once, over the whole fleet.")
]
Deadline: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TIME", help="Stop the batch so long after now: 90s, 45m, 2h, 1d.")
]
OnStop: TypeAlias = Annotated[
    str,
    typer.Option(
        help="What a stop does with jobs that run: keep (let them end) or kill.",
        autocompletion=completion.of_words("keep", "kill"),
    ),
]
After: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID", help="Start when this job has ended OK; repeatable. For lines without `after`."),
]
AfterBatch: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Start when all jobs of this batch have ended OK; repeatable.",
        autocompletion=completion.complete_batch,
    ),
]
_OPTIONS: Final = {
    "max_failures": "--max-failures",
    "fail_fast": "--fail-fast",
    "at_most": "--at-most",
    "deadline": "--deadline",
    "on_stop": "--on-stop",
}


def read_limits(batch: str | None, on_stop: str, **typed: Any) -> BatchLimits | None:
    """Return the limits that were typed, None if none was.

    Raises:
        typer.BadParameter: a value cannot be, or there is no batch.
    """
    from pydantic import ValidationError
    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.faults import describe_faults

    given = {name: value for name, value in typed.items() if value is not None and value is not False}
    if not given:
        if on_stop != "keep":
            raise typer.BadParameter(
                "needs a limit that stops the batch, such as --max-failures", param_hint="--on-stop"
            )
        return None
    if not batch:
        raise typer.BadParameter(
            "needs --batch: the limit is one of the whole batch", param_hint=_OPTIONS[next(iter(given))]
        )
    try:
        return BatchLimits.model_validate({**given, "on_stop": on_stop})
    except ValidationError as error:
        fault = describe_faults(error, BatchLimits)[0][0]
        raise typer.BadParameter(fault["message"], param_hint=_OPTIONS.get(fault["field"])) from None


def read_after(jobs: Sequence[str] | None, batches: Sequence[str] | None) -> dict[str, list[str]] | None:
    """Return the field `after` of a spec, None if nothing was typed."""
    found = {name: list(values) for name, values in (("jobs", jobs), ("batches", batches)) if values}
    return found or None
