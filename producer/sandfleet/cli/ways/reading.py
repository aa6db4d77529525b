"""Read and check all jobs of a submit; nothing is uploaded or queued before all are right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sandfleet_config.errors import RequestError, SpecInvalid
from sandfleet_config.units import format_count
from sandfleet_config.wire import new_spec

from sandfleet.cli.files import LineFiles, LocalFiles
from sandfleet.cli.hints import list_refusals
from sandfleet.cli.jsonl import STDIN
from sandfleet.cli.show import note
from sandfleet.cli.ways.checking import check_entries, new_reader, paused_collector
from sandfleet.cli.ways.entry import Fault, Faults
from sandfleet.cli.ways.shared_fields import DEFAULT_IMAGE
from sandfleet.cli.ways.sources import JOBS, Found, Source, find_entries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.cli.ways.stages import Stages
    from sandfleet.fleet import Fleet
    from sandfleet.submit.encoders import Encoders


@dataclass(frozen=True)
class Common:
    """All jobs' part of the command line: fields of the spec, files, artifacts, a file as stdin.

    `faults` are those of options that could not be read; their fields are left out.
    """

    fields: dict[str, Any]
    files: Sequence[str] = ()
    artifacts: Sequence[str] = ()
    stdin_file: str | None = None
    faults: Sequence[str] = ()


class Input(NamedTuple):
    """All jobs of a submit, not checked yet, and what reads the local files that they name."""

    source: Source
    found: Found
    files: LineFiles

    def new_encoders(self, fleet: Fleet, how: Mapping[str, Any]) -> Encoders | None:
        """Return processes that check and encode the jobs; None if this one is to.

        `how` are the arguments of `Fleet.new_encoders`.
        """
        if self.found.is_local or self.files.is_adding:
            return None
        read = new_reader(self.found, fleet.settings.max_spec_bytes, self.files)
        return fleet.new_encoders(read, self.found.total, **how)


def read_input(source: Source, common: Common, local: LocalFiles, max_spec_bytes: int) -> Input | None:
    """Read all jobs; `local` takes the files of all of them.

    Return None if the input as a whole is faulty, or an option. stderr tells all faults, those of
    the jobs, too, as far as they can be read.

    Raises:
        OSError: the input cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    faults = Faults()
    fields, files = _read_common(source, common, local, faults)
    found = faults.collect(lambda: find_entries(source, fields, local))
    if found is not None and not faults:
        return Input(source, found, files)
    if found is not None:
        with paused_collector():
            faults += check_entries(found.read(0, found.total), max_spec_bytes, files)[1]
    _refuse(faults, format_count(len(faults), "fault"))
    return None


def check_input(
    given: Input, max_spec_bytes: int, stages: Stages, encoders: Encoders | None = None
) -> list[SandboxSpec] | Encoders:
    """Return the checked specs, or `encoders` if they have checked them.

    Return the empty list if anything is faulty, or there are none. stderr tells every fault, with
    its line or option.
    """
    total, read, _ = given.found
    checked: list[SandboxSpec] | Encoders = []
    with stages.stage("checking", "checked", total) as report, paused_collector():
        elsewhere = None if encoders is None else encoders.check(report)
        if encoders is None or elsewhere is None:
            checked, bad = check_entries(read(0, total), max_spec_bytes, given.files, report)
        else:
            checked, bad = encoders, [Fault(*fault) for fault in elsewhere]
        report(total)
    if bad:
        places = len({fault.place for fault in bad})
        return _refuse(bad, f"{places} of {total} {'lines' if given.source.kind == JOBS else 'jobs'} are faulty")
    if not checked:
        note(f"nothing was queued: {_name_input(given.source)} has no jobs")
    return checked


def read_specs(
    source: Source, common: Common, local: LocalFiles, max_spec_bytes: int, stages: Stages
) -> list[SandboxSpec]:
    """Return the checked specs; `local` has read their files.

    Return the empty list if anything is faulty; stderr tells it. Raises as `read_input`.
    """
    given = read_input(source, common, local, max_spec_bytes)
    checked = [] if given is None else check_input(given, max_spec_bytes, stages)
    return checked if isinstance(checked, list) else []


def _read_common(
    source: Source, common: Common, local: LocalFiles, faults: list[Fault]
) -> tuple[dict[str, Any], LineFiles]:
    """Return the fields of all jobs, checked, and what reads the local files that lines name.

    A faulty field is left out, and added to `faults`.
    """
    told = [*common.faults]
    fields, artifacts, added = dict(common.fields), common.artifacts, local.collect_options(common.files, told)
    faults += [Fault("", text) for text in told]
    if common.stdin_file is not None:
        try:
            fields["stdin"] = local.add_stdin(Path(common.stdin_file))
        except (OSError, SpecInvalid) as error:
            said = error.message if isinstance(error, SpecInvalid) else f"{common.stdin_file}: {error.strerror}"
            faults.append(Fault("--stdin-file", said))
    is_table = source.kind != JOBS
    if is_table:
        fields = {"image": DEFAULT_IMAGE, **fields}
    if fields:
        try:
            # The image of a file's lines is their own.
            spec = new_spec({"image": DEFAULT_IMAGE, **fields, "artifacts": artifacts})
        except RequestError as error:
            faults += [Fault("", f"{error.code.value}: {text}") for text in list_refusals(error)]
            faulty = {fault["field"].partition(".")[0] for fault in error.errors}
            # So that no job is told again what was told of the options: none is queued.
            kept = () if "spec" in faulty else fields.items()
            fields = {name: value for name, value in kept if name not in faulty}
            artifacts = () if "artifacts" in faulty else artifacts
            if not fields or "image" in faulty:
                fields["image"] = DEFAULT_IMAGE
        else:
            if is_table:
                fields = {name: getattr(spec, name) for name in spec.model_fields_set if name != "artifacts"}
    folder = Path() if is_table or source.names[0] == STDIN else Path(source.names[0]).parent
    return fields, LineFiles(local, folder, added, artifacts)


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
