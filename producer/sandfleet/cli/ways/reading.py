"""Read and check all jobs of a submit; nothing is uploaded or queued before all are right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandfleet_config.errors import RequestError
from sandfleet_config.wire import new_spec

from sandfleet.cli.files import LineFiles, LocalFiles
from sandfleet.cli.hints import describe_refusal
from sandfleet.cli.jsonl import STDIN
from sandfleet.cli.show import note
from sandfleet.cli.ways.checking import check_entries, paused_collector
from sandfleet.cli.ways.common import DEFAULT_IMAGE
from sandfleet.cli.ways.entry import Fault, InputInvalid
from sandfleet.cli.ways.sources import JOBS, Source, find_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.cli.ways.stages import Stages
    from sandfleet.fleet import Fleet


@dataclass(frozen=True)
class Common:
    """All jobs' part of the command line: fields of the spec, files, artifacts, a file as stdin."""

    fields: dict[str, Any]
    files: Sequence[str] = ()
    artifacts: Sequence[str] = ()
    stdin_file: str | None = None


def read_specs(
    source: Source, common: Common, local: LocalFiles, max_spec_bytes: int, stages: Stages
) -> list[SandboxSpec]:
    """Return the checked specs; `local` has read their files.

    Return the empty list if anything is faulty. stderr tells every fault, with its line or option.

    Raises:
        OSError: the input cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    try:
        fields, files = _read_common(source, common, local)
        total, entries = find_entries(source, fields, local)
    except InputInvalid as error:
        count = len(error.faults)
        return _refuse(error.faults, f"{count} {'fault' if count == 1 else 'faults'}")
    except RequestError as error:
        note(f"nothing was queued: {describe_refusal(error) if error.errors else error.message}")
        return []
    with stages.stage("checking", "checked", total) as report, paused_collector():
        specs, faults = check_entries(entries, max_spec_bytes, files, report)
        report(total)
    if faults:
        bad = len({fault.place for fault in faults})
        return _refuse(faults, f"{bad} of {bad + len(specs)} {'lines' if source.kind == JOBS else 'jobs'} are faulty")
    if not specs:
        note(f"nothing was queued: {_name_input(source)} has no jobs")
    return specs


def _read_common(source: Source, common: Common, local: LocalFiles) -> tuple[dict[str, Any], LineFiles]:
    """Return the fields of all jobs, checked, and what reads the local files that lines name."""
    fields = dict(common.fields)
    added = local.add_options(common.files)
    if common.stdin_file is not None:
        fields["stdin"] = local.add_stdin(Path(common.stdin_file))
    is_table = source.kind != JOBS
    if is_table:
        fields = {"image": DEFAULT_IMAGE, **fields}
    if fields:
        # The image of a file's lines is their own.
        spec = new_spec({"image": DEFAULT_IMAGE, **fields, "artifacts": common.artifacts})
        if is_table:
            fields = {name: getattr(spec, name) for name in spec.model_fields_set if name != "artifacts"}
    folder = Path() if is_table or source.names[0] == STDIN else Path(source.names[0]).parent
    return fields, LineFiles(local, folder, added, common.artifacts)


def _name_input(source: Source) -> str:
    return "stdin" if source.names[0] == STDIN else source.names[0]


def _refuse(faults: Sequence[Fault], summary: str) -> list[SandboxSpec]:
    for fault in faults:
        note(str(fault))
    note(f"nothing was queued: {summary}")
    return []


def upload_files(local: LocalFiles, fleet: Fleet, stages: Stages) -> None:
    """Upload the large files; raises as `LocalFiles.upload`."""
    if local.large_bytes:
        with stages.stage("uploading", "uploaded", local.large_bytes, "bytes") as report:
            local.upload(fleet, report)
