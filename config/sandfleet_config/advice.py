"""The next thing to do after each code, in one sentence.

`sandfleet show` prints it, and the page what-now.md has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sandfleet_config.codes import Category, ErrorCode

PAGE: Final = "docs/how-to/what-now.md"

ADVICE: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.OK: "Nothing to do.",
    ErrorCode.EXIT_NONZERO: "Read stderr, fix the program or give it what it misses, and submit it again.",
    ErrorCode.SIGNALED: "Run the program with a debugger on your own machine, or print more before the crash.",
    ErrorCode.TIMEOUT: "Raise `timeout`, or make the job smaller.",
    ErrorCode.OUT_OF_MEMORY: "Raise `resources.memory_bytes`, or make the job smaller.",
    ErrorCode.OUTPUT_LIMIT: "Raise `output.max_bytes`, print less, or let the output be cut (`on_limit: truncate`).",
    ErrorCode.DISK_LIMIT: "Raise `resources.disk_bytes` and `resources.memory_bytes`, or delete temporary files.",
    ErrorCode.PIDS_LIMIT: "Start fewer processes and threads, or raise `resources.pids_limit`.",
    ErrorCode.SPEC_INVALID: "Correct the fields that the message names, and submit it again.",
    ErrorCode.SPEC_TOO_LARGE: "Send large inputs as files, or put them into the image.",
    ErrorCode.SECURITY_VIOLATION: "Leave out what the message names, or let the operator allow it.",
    ErrorCode.IMAGE_NOT_FOUND: "Correct the image's name, or add the image to a host.",
    ErrorCode.IMAGE_INVALID: "Add the image to the host again.",
    ErrorCode.COMMAND_NOT_FOUND: "Correct the command, or take an image that has the program.",
    ErrorCode.COMMAND_NOT_EXECUTABLE: "Make the file executable, with an interpreter that the image has.",
    ErrorCode.WORKING_DIR_INVALID: "Name a folder of the image that the job's user may enter.",
    ErrorCode.USER_INVALID: "Give the user as a number, such as 1000:1000.",
    ErrorCode.CANCELLED: "Nothing to do; run it again if the cancel was a mistake.",
    ErrorCode.EXPIRED: "Start a worker that can take the job, then run it again.",
    ErrorCode.GVISOR_NOT_AVAILABLE: "Run `sandfleet-worker doctor` on the host that the outcome names.",
    ErrorCode.DAEMON_UNAVAILABLE: "Start Redis, or set SANDFLEET_REDIS_URL.",
    ErrorCode.CLIENT_NOT_CONFIGURED: "Pass a runner: `Config(client=FleetRunner(fleet))`.",
    ErrorCode.SANDBOX_CREATION_FAILED: "Run `sandfleet-worker doctor` on the host, then run the job again.",
    ErrorCode.SANDBOX_EXECUTION_FAILED: "Run it again; if it fails so on each host, try a newer `runsc`.",
    ErrorCode.IMAGE_UNAVAILABLE: "Look at the registry and the host's access to it, then run the job again.",
    ErrorCode.HOST_RESOURCES: "Give the host more of what the message names, or fewer jobs at once; then run the job again.",
    ErrorCode.STORE_UNAVAILABLE: "Look at the store, then run the job again.",
    ErrorCode.WORKER_LOST: "Run it again, unless its attempts show that it kills its workers.",
    ErrorCode.INTERNAL: "Report it, with the traceback from the worker's log; then run the job again.",
}
"""One sentence for each code."""

_BY_CATEGORY: Final[Mapping[Category, str]] = {
    Category.OK: "Nothing to do.",
    Category.PROGRAM: "Fix the program.",
    Category.LIMIT: "Raise the limit, or make the job smaller.",
    Category.REQUEST: "Change the spec, or the hosts.",
    Category.CONTROL: "Run it again if that was a mistake.",
    Category.HOST: "Run it again.",
}


def find_advice(code: ErrorCode) -> str:
    """Return the next thing to do; for a code of a newer release, that of its category."""
    return ADVICE.get(code) or _BY_CATEGORY[code.category]
