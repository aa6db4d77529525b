"""Hints for wrong command lines: words of docker and of Slurm, and options that set a faulty field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.errors import RequestError

NO_NETWORK: Final = "sandboxes have no network but loopback"
NO_MOUNT: Final = (
    "no folder of the host is mounted: send files by --file, or use a --dataset, and get files back by --artifact"
)
NO_NEED: Final = "each sandbox is removed when its job ends"

_AFTER: Final = "did you mean --after-batch NAME, or --after ID?"
_LIST: Final = "did you mean sandfleet batches, or sandfleet jobs --batch NAME?"
_OUTPUTS: Final = "outputs are kept: sandfleet batch results NAME -o FILE --outputs FOLDER"

OTHER_OPTIONS: Final[Mapping[str, str]] = {
    "--cap-add": "no job gets capabilities",
    "--entrypoint": "the command comes after --",
    "--hostname": "did you mean --label name=...?",
    "--mount": NO_MOUNT,
    "--name": "did you mean --label name=...?",
    "--net": NO_NETWORK,
    "--network": NO_NETWORK,
    "--privileged": "no job is privileged",
    "--rm": NO_NEED,
    "--volume": NO_MOUNT,
    "-v": NO_MOUNT,
    "--detach": "did you mean sandfleet submit?",
    "-d": "did you mean sandfleet submit?",
    "--cpus-per-task": "did you mean --cpu?",
    "--dependency": _AFTER,
    "--export": "did you mean --env?",
    "--hold": "submit it, then: sandfleet batch hold NAME",
    "--job-name": "did you mean --batch NAME for all jobs, or --name for each?",
    "--mail-type": "did you mean --on-done, or sandfleet batch wait NAME --exec COMMAND?",
    "--mail-user": "did you mean --on-done, or sandfleet batch wait NAME --exec COMMAND?",
    "--mem": "did you mean --memory?",
    "--output": _OUTPUTS,
    "-o": _OUTPUTS,
    "--partition": "did you mean --queue?",
    "--time": "did you mean --timeout of each job, or --deadline of the batch?",
    "--wrap": "the command comes after --, and no shell reads it: -- sh -c '...'",
    "sbatch": "did you mean sandfleet submit?",
    "scancel": "did you mean sandfleet cancel ID, or sandfleet batch cancel NAME?",
    "sinfo": "did you mean sandfleet batches?",
    "squeue": _LIST,
    "sacct": _LIST,
    "srun": "did you mean sandfleet run?",
    "list": _LIST,
    "ls": _LIST,
    "ps": _LIST,
    "status": "did you mean sandfleet show ID, or sandfleet batch show NAME?",
    "stop": "did you mean cancel, or hold?",
    "kill": "did you mean cancel?",
}
"""Options and commands of `docker` and of Slurm, and hints for each."""

UNITS: Final[Mapping[str, str]] = {
    "--cpu": "cores, such as 0.5",
}
"""The units of options that take a number."""

RUN_OPTIONS: Final[Mapping[str, str]] = {
    "after": "--after",
    "artifacts": "--artifact",
    "command": "the command",
    "datasets": "--dataset",
    "env": "--env",
    "files": "--file",
    "grace": "--grace",
    "idempotency_key": "--idempotency-key",
    "image": "--image",
    "labels": "--label",
    "max_attempts": "--max-attempts",
    "output.keep": "--keep",
    "output.live": "--live",
    "output.max_bytes": "--max-output",
    "output.on_limit": "--on-output-limit",
    "output.store": "--store-output",
    "prepared": "--prepared",
    "priority": "--priority",
    "queue_ttl": "--queue-ttl",
    "resources.cpu_quota": "--cpu",
    "resources.disk_bytes": "--disk",
    "resources.memory_bytes": "--memory",
    "resources.pids_limit": "--pids",
    "security.user": "--user",
    "stdin": "--stdin",
    "timeout": "--timeout",
    "working_dir": "--workdir",
}
"""The option of ``sandfleet run`` that sets a field of the spec."""


def describe_refusal(error: RequestError) -> str:
    """Return why ``sandfleet run`` was refused; names options instead of fields."""
    return f"{error.code.value}: {'; '.join(list_refusals(error))}" if error.errors else str(error)


def list_refusals(error: RequestError) -> list[str]:
    """Return each fault of the spec, with the option that sets the field."""
    return [f"{_option_of(fault['field'])}: {fault['message']}" for fault in error.errors]


def name_options(message: str) -> str:
    """Return a message about a job with the option of ``run`` beside each field of ``resources``."""

    def add_option(field: re.Match[str]) -> str:
        option = RUN_OPTIONS.get(field[0])
        return f"{field[0]} ({option})" if option else field[0]

    return re.sub(r"\bresources\.\w+", add_option, message)


def _option_of(field: str) -> str:
    if field in RUN_OPTIONS:
        return RUN_OPTIONS[field]
    head, _, rest = field.partition(".")
    number = rest.partition(".")[0]
    if number.isdecimal() and head in RUN_OPTIONS and head != "files":
        return f"{RUN_OPTIONS[head]}, item {int(number) + 1}"
    if head == "files":
        return RUN_OPTIONS[head]
    return f"{RUN_OPTIONS[head]} {rest}" if head == "labels" else field
