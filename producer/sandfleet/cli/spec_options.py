"""The options for a job: those of ``sandfleet run``, and of ``sandfleet submit`` for all jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class SpecOptions:
    """The options of a job as typed; `read_fields` returns them as fields of a spec."""

    timeout: options.Timeout = 0.0
    grace: options.Grace = None
    memory: options.Memory = "0"
    cpu: options.Cpu = 0.0
    pids: options.Pids = 0
    disk: options.Disk = "0"
    env: options.Env = None
    workdir: options.Workdir = ""
    user: options.User = ""
    label: options.Labels = None
    require: options.Requires = None
    writable: options.Writable = False
    max_output: options.MaxOutput = None
    keep: options.Keep = "head"
    on_output_limit: options.OnOutputLimit = "truncate"
    store: options.StoreOutput = False
    live: options.Live = False
    prepared: options.Prepared = None
    file: options.Files = None
    artifact: options.Artifacts = None
    dataset: options.DatasetNames = None
    stdin_file: options.StdinFile = None
    queue: options.Queue = None
    priority: options.Priority = None
    queue_ttl: options.QueueTtl = None
    max_attempts: options.MaxAttempts = None

    def read_fields(self) -> dict[str, Any]:
        """Return the fields of a spec, without those of local files.

        Raises:
            SpecInvalid: options cannot be read; tells all of them.
        """
        from sandfleet_config.errors import SpecInvalid

        faults: list[str] = []
        fields = self.collect_fields(faults)
        if faults:
            raise SpecInvalid.of("; ".join(faults))
        return fields

    def collect_fields(self, faults: list[str]) -> dict[str, Any]:
        """Do what `read_fields` does, but add to `faults` what cannot be read, and leave it out."""
        from sandfleet_config.errors import SpecInvalid

        from sandfleet.cli import typed

        fields = typed.drop_unset(
            grace=self.grace,
            prepared=self.prepared,
            priority=self.priority,
            queue_ttl=self.queue_ttl,
            max_attempts=self.max_attempts,
        )
        fields |= {"working_dir": self.workdir}
        fields |= {"datasets": [{"name": name} for name in self.dataset]} if self.dataset else {}
        fields |= typed.read_output(self.max_output, self.keep, self.on_output_limit, store=self.store, live=self.live)
        fields |= typed.read_limits(self.memory, self.pids, self.disk, self.timeout)
        fields |= typed.read_security(self.user, is_writable=self.writable)
        parts: dict[str, Callable[[], object]] = {
            "labels": lambda: typed.read_labels(self.label or []),
            "requires": lambda: typed.read_labels(self.require or [], "--require"),
            "env": lambda: typed.read_env(self.env or []),
        }
        for name, read in parts.items():
            try:
                fields[name] = read()
            except SpecInvalid as error:
                faults.append(error.message)
        try:
            fields["resources"]["cpu_quota"] = typed.read_cores(self.cpu)
        except SpecInvalid as error:
            faults.append(error.message)
        return fields


def drop_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value, without options that were not typed, nested ones too."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        kept = drop_defaults(cast("dict[str, Any]", value)) if isinstance(value, dict) else value
        if kept not in _UNSET.get(name, _NOTHING):
            found[name] = kept
    return found


_NOTHING: Final[Sequence[object]] = (0, "0", "", None, [], {})
_UNSET: Final[Mapping[str, Sequence[object]]] = {
    **dict.fromkeys(("grace", "prepared", "priority", "queue_ttl", "max_attempts"), (None,)),
    "keep": ("head",),
    "on_limit": ("truncate",),
    "read_only_rootfs": (True,),
}
"""Values of options that were not typed; for the other fields `_NOTHING`.

They are the spec's defaults.
"""
