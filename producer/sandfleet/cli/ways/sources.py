"""Make entries of what a person typed: one for each line, row, script or index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandfleet_config.errors import SpecInvalid

from sandfleet.cli.jsonl import STDIN, parse_object, read_lines, read_text
from sandfleet.cli.ways import array, scripts
from sandfleet.cli.ways.entry import Entry, Fault, Faults, InputInvalid
from sandfleet.cli.ways.shared_fields import merge_fields
from sandfleet.cli.ways.table import parse_table
from sandfleet.cli.ways.template import Template, suggest
from sandfleet.files.local import find_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sandfleet_config.files import FileSpec

    from sandfleet.cli.files import LocalFiles

JOBS: Final = "jobs"
EACH: Final = "each"
ARRAY: Final = "array"
INDEX: Final = "index"
"""Values of `Source.kind` besides tables; and the placeholder of a row's or job's number."""
CHAR_BYTES: Final = 6
"""A character takes at most so many bytes in JSON."""
SLACK_BYTES: Final = 4096
"""An encoded spec has at most so many bytes besides its texts."""


@dataclass(frozen=True)
class Source:
    """A way of submit, as typed.

    `kind` is ``jobs``, ``each``, ``csv``, ``tsv``, ``jsonl`` or ``array``; `names` are the file,
    the patterns or the indexes. `labels` are columns, or ``key=column``.
    """

    kind: str
    names: Sequence[str]
    command: Sequence[str] = ()
    labels: Sequence[str] = ()
    name: str | None = None


class Found(NamedTuple):
    """How many entries there are, and what yields those from one index to another, or faults.

    `is_local` says that it reads local files; any other may be called again, in any process.
    """

    total: int
    read: Callable[[int, int], Iterator[Entry | Fault]]
    is_local: bool = False


def find_entries(source: Source, common: Mapping[str, Any], local: LocalFiles) -> Found:
    """Read what `source` names; `common` are fields of all jobs, `local` takes the scripts.

    Raises:
        InputInvalid: the input as a whole is faulty: a table, an index, a placeholder.
        OSError: it cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    if source.kind == JOBS:
        lines = [(number, line) for number, line in enumerate(read_lines(source.names[0]), 1) if line.strip()]
        return Found(len(lines), _new_line_reader(lines, common))
    if source.kind == ARRAY:
        return _read_array(source, common)
    if source.kind == EACH:
        return _read_scripts(source, common, local)
    return _read_table(source, common)


def _new_line_reader(
    lines: Sequence[tuple[int, str]], common: Mapping[str, Any]
) -> Callable[[int, int], Iterator[Entry | Fault]]:
    common_bytes = len(json.dumps(common, default=str)) * CHAR_BYTES + SLACK_BYTES

    def read(start: int, stop: int) -> Iterator[Entry | Fault]:
        for number, line in lines[start:stop]:
            place = f"line {number}"
            try:
                own = parse_object(line)
            except SpecInvalid as error:
                yield Fault(place, str(error))
                continue
            yield Entry(place, merge_fields(common, own) if common else own, CHAR_BYTES * len(line) + common_bytes)

    return read


class Filler:
    """Fills the command, the name and the labels of each job with its values."""

    def __init__(
        self, source: Source, common: Mapping[str, Any], names: Collection[str], *, whole: str = "", unused: str = ""
    ) -> None:
        """Read the placeholders; `unused` is the fault of a command without any, empty if it may have none.

        Raises:
            InputInvalid: some have no value, or columns for labels do not exist; tells every fault.
        """
        faults = Faults()
        command = faults.collect(lambda: Template(source.command, names, whole=whole))
        if unused and command is not None and not command.used:
            faults.append(Fault("the command", unused))
        name = faults.collect(lambda: _new_name(source.name, names, whole))
        columns = faults.collect(lambda: _read_label_columns(source.labels, names))
        if command is None or columns is None or faults:
            raise faults.new_error()
        self.command, self._name, self._columns = command, name, columns
        self._common = dict(common)
        self._labels: dict[str, str] = dict(common.get("labels", {}))
        self._env: tuple[str, ...] = tuple(common.get("env", ()))
        self._bytes = sum(map(len, self._env)) * CHAR_BYTES + SLACK_BYTES
        self._has_name = "name" in self._labels or "name" in self._columns

    def new_entry(
        self, place: str, name: str, values: Mapping[str, str], env: Sequence[str] = (), files: Sequence[FileSpec] = ()
    ) -> Entry:
        """Return the entry of one job; `name` is its label ``name`` by default."""
        words = self.command.fill(values)
        labels = dict(self._labels)
        if self._name is not None:
            labels["name"] = self._name.fill(values)[0]
        elif not self._has_name:
            labels["name"] = name
        for key, column in self._columns.items():
            labels[key] = values[column]
        fields = {**self._common, "command": words, "labels": labels}
        if env:
            fields["env"] = (*self._env, *env)
        if files:
            fields["files"] = list(files)
        length = sum(map(len, words)) + sum(map(len, labels.values()))
        return Entry(place, fields, CHAR_BYTES * (length + 8 * len(words)) + self._bytes)

    @property
    def used(self) -> frozenset[str]:
        """The names whose values are used."""
        name = frozenset[str]() if self._name is None else self._name.used
        return self.command.used | name | frozenset(self._columns.values())


def _new_name(text: str | None, names: Collection[str], whole: str) -> Template | None:
    return None if text is None else Template([text], names, whole=whole, what="--name")


def _read_label_columns(texts: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """Return the column of each label; ``column`` alone is the label's key, too."""
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for text in texts:
        key, _, column = text.rpartition("=")
        if column in names:
            found[key or column] = column
        else:
            meant = suggest(column, names)
            hint = f"did you mean {meant[0]}?" if meant else f"the columns are {', '.join(names)}"
            faults.append(Fault("--label-from", f"there is no column {ascii(column)[1:-1]}: {hint}"))
    if faults:
        raise InputInvalid(*faults)
    return found


def _read_table(source: Source, common: Mapping[str, Any]) -> Found:
    name, faults = source.names[0], Faults()
    table = parse_table(read_text(name), source.kind, faults)
    has_index = INDEX in table.columns
    names = table.columns if has_index else [*table.columns, INDEX]
    filler = faults.collect(lambda: Filler(source, common, names)) if table.columns or not faults else None
    if filler is None or faults:
        raise faults.new_error()
    needed = filler.used - (frozenset() if has_index else {INDEX})
    shown = "line " if name == STDIN else f"{Path(name).name}:"

    def read(start: int, stop: int) -> Iterator[Entry | Fault]:
        for index, (line, values) in enumerate(table.rows[start:stop], start):
            missing = [column for column in table.columns if column in needed and column not in values]
            if missing:
                yield Fault(f"line {line}", f"has no {', '.join(missing)}")
                continue
            own = values if has_index else {**values, INDEX: str(index)}
            yield filler.new_entry(f"line {line}", f"{shown}{line}", own)

    return Found(len(table.rows), read)


def _read_array(source: Source, common: Mapping[str, Any]) -> Found:
    faults = Faults()
    indexes = faults.collect(lambda: array.parse_array(source.names[0]))
    filler = faults.collect(lambda: Filler(source, common, (INDEX,)))
    if indexes is None or filler is None:
        raise faults.new_error()
    program = Path(source.command[0]).name if source.command else ""
    count = f"{array.COUNT}={len(indexes)}"

    def read(start: int, stop: int) -> Iterator[Entry | Fault]:
        for index in indexes[start:stop]:
            env = (f"{array.INDEX}={index}", count)
            yield filler.new_entry(f"index {index}", f"{program}[{index}]", {INDEX: str(index)}, env)

    return Found(len(indexes), read)


def _read_scripts(source: Source, common: Mapping[str, Any], local: LocalFiles) -> Found:
    faults = Faults()
    found = faults.collect(lambda: scripts.find_scripts(source.names))
    unused = "names no script: write {} where its path belongs, such as -- python3 {}"
    filler = faults.collect(lambda: Filler(source, common, scripts.NAMES, whole="path", unused=unused))
    if found is None or filler is None:
        raise faults.new_error()
    is_unique = len({script.name for script in found}) == len(found)

    def read(start: int, stop: int) -> Iterator[Entry | Fault]:
        for index, script in enumerate(found[start:stop], start):
            try:
                file = local.add(find_file(script, script.name))
            except OSError as error:
                yield Fault(str(script), error.strerror or str(error))
            except SpecInvalid as error:
                yield Fault("", error.message)
            else:
                name = script.name if is_unique else str(script)
                yield filler.new_entry(str(script), name, scripts.name_script(script, index), files=(file,))

    return Found(len(found), read, is_local=True)
