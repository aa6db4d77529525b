"""Read local files for specs: ``--file``, ``--stdin-file``, and ``from`` in a file of jobs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydantic import ValidationError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.files import WORK_FOLDER, Content, FileSpec
from sandfleet_config.wire import raise_faults

from sandfleet.files.local import LocalFile, find_file, find_files, hash_file, open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sandfleet_config.spec import Payload

    from sandfleet.files.reference import FileRef
    from sandfleet.fleet import Fleet

INLINE_BYTES: Final = 32 * 1024
"""A larger file is uploaded; of smaller ones `submit` uploads what is too much together."""
COPY_BYTES: Final = 1 << 20
UPLOADED_FILES: Final = 32
"""Progress of an upload is told after so many files."""
FROM: Final = "from"


class FileOption(NamedTuple):
    """One ``SOURCE[:PATH]`` as typed, and its source.

    PATH is empty, a file, or a folder with a slash at its end.
    """

    source: Path
    path: str


def parse_option(text: str) -> FileOption:
    """Split ``SOURCE[:PATH]`` at its last colon; a SOURCE with a colon that exists stays whole."""
    if ":" in text and not os.path.lexists(text):
        source, _, path = text.rpartition(":")
        return FileOption(Path(source), path)
    return FileOption(Path(text), "")


def find_local(option: FileOption) -> list[LocalFile]:
    """Return the file of `option`, or all files of its folder.

    Raises:
        OSError, SpecInvalid: it cannot be read, or a folder has what cannot be sent.
    """
    source, path = option
    if source.is_dir():
        return find_files(source, path or f"{WORK_FOLDER}/{source.resolve().name}")
    name = source.name
    return [find_file(source, f"{path}{name}" if path.endswith("/") else path or name)]


class LocalFiles:
    """Local files as files of specs.

    Each is read or hashed once; the large ones are uploaded by `upload`.
    """

    def __init__(self) -> None:
        self._known: dict[Path, Content | FileRef] = {}

    def add(self, file: LocalFile) -> FileSpec:
        """Return the file of a spec.

        Raises:
            OSError: it cannot be read.
            SpecInvalid: no file may have its path.
        """
        found = self._read(file.source, file.size)
        fields: dict[str, Any] = {"path": file.path, "mode": file.mode}
        if isinstance(found, Content):
            fields["content"] = found
        else:
            fields |= {"sha256": found.sha256, "size": found.size}
        try:
            return FileSpec.model_validate(fields)
        except ValidationError as error:
            raise_faults(error, FileSpec)

    def add_options(self, texts: Iterable[str]) -> list[FileSpec]:
        """Return the files that ``--file`` options name.

        Raises:
            SpecInvalid: tells the faults of all options.
        """
        faults: list[str] = []
        found = self.collect_options(texts, faults)
        if faults:
            raise SpecInvalid.of("; ".join(faults))
        return found

    def collect_options(self, texts: Iterable[str], faults: list[str]) -> list[FileSpec]:
        """Do what `add_options` does, but add to `faults` what cannot be sent, and leave it out."""
        found: list[FileSpec] = []
        for text in texts:
            try:
                found += [self.add(file) for file in find_local(parse_option(text))]
            except (OSError, SpecInvalid) as error:
                faults.append(f"--file {_describe(error, text)}")
        return found

    def add_stdin(self, source: Path) -> bytes | Payload:
        """Return a local file as `stdin` of a spec; raises as `add`."""
        with open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
        found = self._read(source, size)
        return found.to_bytes() if isinstance(found, Content) else found.as_stdin()

    def _read(self, source: Path, size: int) -> Content | FileRef:
        known = self._known.get(source)
        if known is None:
            self._known[source] = known = _read_content(source) if size <= INLINE_BYTES else hash_file(source)
        return known

    @property
    def large_bytes(self) -> int:
        """The bytes of the files that `upload` uploads, if the store lacks them."""
        return sum(found.size for found in self._list_large().values())

    def _list_large(self) -> dict[Path, FileRef]:
        return {source: found for source, found in self._known.items() if not isinstance(found, Content)}

    def upload(self, fleet: Fleet, on_progress: Callable[[int], object] = lambda _: None) -> None:
        """Upload the large files that the store lacks; `on_progress` gets the bytes so far.

        Raises:
            SpecInvalid: one has changed since it was added.
            OSError, SpecTooLarge, FleetUnavailable: as `Fleet.upload`.
        """
        large, done = self._list_large(), 0
        sources = list(large)
        for start in range(0, len(sources), UPLOADED_FILES):
            some = sources[start : start + UPLOADED_FILES]
            for source, ref in zip(some, fleet.upload_many(some), strict=True):
                if ref != large[source]:
                    raise SpecInvalid.of(f"{source}: has changed since it was first read; try again")
                done += ref.size
            on_progress(done)


def _read_content(source: Path) -> Content:
    with open_regular(source) as file:
        return Content.model_validate(file.read())


def _describe(error: OSError | SpecInvalid, text: str) -> str:
    if isinstance(error, OSError):
        return f"{text}: {error.strerror or error}"
    return error.message if error.message.startswith(text) else f"{text}: {error.message}"


class LineFiles:
    """Replaces ``from`` in the fields of specs, as a file of jobs has them.

    Names are relative to `folder`.
    """

    def __init__(
        self,
        local: LocalFiles | None = None,
        folder: Path = Path(),
        files: Sequence[FileSpec] = (),
        artifacts: Sequence[str] = (),
    ) -> None:
        """`files` and `artifacts` are added to those of each spec."""
        self._local = local or LocalFiles()
        self._folder = folder
        self._added: dict[str, Sequence[object]] = {"files": files, "artifacts": artifacts}
        self.is_adding = bool(files or artifacts)

    @staticmethod
    def may_name_any(fields: Mapping[str, Any]) -> bool:
        """Whether the fields of a spec may name local files."""
        return "files" in fields or isinstance(fields.get("stdin"), dict)

    def resolve(self, fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[dict[str, str]]]:
        """Return the fields of a spec without ``from``, and the faults of what it names."""
        if not self.is_adding and not self.may_name_any(fields):
            return fields, []
        found, faults = dict(fields), list[dict[str, str]]()
        files: object = fields.get("files")
        if isinstance(files, list):
            resolved: list[object] = []
            for index, entry in enumerate(cast("list[object]", files)):
                if _has_number_as_mode(entry):
                    message = 'must be text, such as "0755": a number in JSON is decimal'
                    faults.append({"field": f"files.{index}.mode", "message": message})
                    continue
                try:
                    resolved += self._resolve_file(entry)
                except (OSError, SpecInvalid) as error:
                    faults.append({"field": f"files.{index}.{FROM}", "message": _describe_entry(error)})
            found["files"] = resolved
        for name, added in self._added.items():
            own: object = found.get(name, [])
            if added and isinstance(own, list):
                found[name] = [*added, *cast("list[object]", own)]
        if (stdin := _with_from(fields.get("stdin"))) is not None:
            try:
                found["stdin"] = self._local.add_stdin(self._read_from(stdin, allowed=()))
            except (OSError, SpecInvalid) as error:
                faults.append({"field": f"stdin.{FROM}", "message": _describe_entry(error)})
                del found["stdin"]
        return found, faults

    def _resolve_file(self, given: object) -> list[object]:
        if (entry := _with_from(given)) is None:
            return [given]
        source = self._read_from(entry, allowed=("path", "mode"))
        path, mode = entry.get("path", ""), entry.get("mode")
        if not isinstance(path, str):
            raise SpecInvalid.of("path must be a string")
        if mode is not None and source.is_dir():
            raise SpecInvalid.of("mode cannot be given for a folder: its files keep their own")
        found = [self._local.add(file) for file in find_local(FileOption(source, path))]
        return list(found) if mode is None else [{**dict(file), "mode": mode} for file in found]

    def _read_from(self, entry: Mapping[str, Any], allowed: Sequence[str]) -> Path:
        source: object = entry[FROM]
        if not isinstance(source, str) or not source or "\0" in source:
            raise SpecInvalid.of("must be the name of a local file")
        if unknown := [name for name in entry if name not in {FROM, *allowed}]:
            raise SpecInvalid.of(f"cannot stand beside {', '.join(ascii(name) for name in unknown)}")
        return self._folder / source


def _with_from(entry: object) -> Mapping[str, Any] | None:
    """Return an entry that has ``from``, else None."""
    return cast("Mapping[str, Any]", entry) if isinstance(entry, dict) and FROM in entry else None


def _has_number_as_mode(entry: object) -> bool:
    return isinstance(entry, dict) and type(cast("Mapping[str, object]", entry).get("mode")) is int


def _describe_entry(error: OSError | SpecInvalid) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return error.message


def read_stdin(fleet: Fleet) -> bytes | Payload:
    """Read this process's stdin to its end; what is too large for a spec is uploaded.

    Raises:
        SpecTooLarge: it is larger than what the store takes.
        FleetUnavailable: the store is down.
    """
    source = sys.stdin.buffer
    raw = source.read(fleet.settings.max_spec_bytes + 1)
    if len(raw) <= fleet.settings.max_spec_bytes:
        return raw
    with tempfile.NamedTemporaryFile(prefix="sandfleet-stdin-") as file:
        file.write(raw)
        while chunk := source.read(COPY_BYTES):
            file.write(chunk)
        file.flush()
        return fleet.upload(file.name).as_stdin()
