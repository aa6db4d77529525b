"""The demo's batch: real programs, at least one for each kind of ending, and how each must end."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet import Outcome


@dataclass(frozen=True)
class DemoJob:
    """A spec as plain data, the code that it must end with, and further conditions."""

    label: str
    code: str
    command: list[str]
    exit_code: int | None = None
    signal: int | None = None
    timed_out: str | None = None
    image: str = "python"
    more: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Outcome], bool] | None = None

    def to_spec(self) -> dict[str, Any]:
        """Return the spec as a user would write it in JSON."""
        return {
            "image": self.image,
            "command": self.command,
            "labels": {"name": self.label},
            "timeout": 20,
            **self.more,
        }

    def complaint(self, outcome: Outcome) -> str:
        """Say what is wrong with `outcome`; empty if it is what it must be."""
        seen = (outcome.code.value, outcome.exit_code, outcome.signal, outcome.timed_out)
        wanted = (self.code, self.exit_code, self.signal, self.timed_out)
        if seen != wanted:
            return f"expected {wanted}, got {seen}: {outcome.message}"
        if self.check is not None and not self.check(outcome):
            return f"wrong output: {outcome.stdout.text[-200:]!r} {outcome.stderr.text[-200:]!r}"
        return ""


def python(code: str, *argv: str) -> list[str]:
    """Return the command that runs `code`."""
    return ["python3", "-c", textwrap.dedent(code), *argv]


def shell(code: str) -> list[str]:
    """Return the command that runs `code` in a shell."""
    return ["sh", "-c", code]


def says(text: str) -> Callable[[Outcome], bool]:
    """Check for `text` in stdout."""
    return lambda outcome: text in outcome.stdout.text


SIEVE = """
    n = 100_000
    sieve = bytearray([1]) * n
    sieve[0:2] = b"\\0\\0"
    for i in range(2, int(n**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n, i)))
    print(sum(sieve), "primes")
"""
TRANSFORM = """
    import json, sys
    text = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()
    print(json.dumps({row["name"]: row["n"] ** 2 for row in json.loads(text)}, sort_keys=True))
"""
COMPILE = """
    import os, pathlib, py_compile, subprocess, sys
    os.chdir("/tmp")
    pathlib.Path("fib.py").write_text("a, b = 0, 1\\nfor _ in range(30):\\n    a, b = b, a + b\\nprint(a)\\n")
    compiled = py_compile.compile("fib.py", doraise=True)
    sys.exit(subprocess.run([sys.executable, compiled]).returncode)
"""
FORK_BOMB = """
    import os, time
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.1)
"""
IGNORES_TERM = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("still here", flush=True)
    time.sleep(60)
"""
NO_NETWORK = """
    import socket
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2)
    except OSError as error:
        print("no network:", error.strerror)
"""
FILL_DISK = """
    with open("/tmp/big", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
"""

ROWS = [{"name": "a", "n": 3}, {"name": "b", "n": 4}]
SQUARES = '{"a": 9, "b": 16}'

JOBS: list[DemoJob] = [
    DemoJob("prime sieve", "OK", python(SIEVE), 0, check=says("9592 primes")),
    DemoJob("json on stdin", "OK", python(TRANSFORM), 0, more={"stdin": json.dumps(ROWS)}, check=says(SQUARES)),
    DemoJob("json on argv", "OK", python(TRANSFORM, json.dumps(ROWS)), 0, check=says(SQUARES)),
    DemoJob("compile and run", "OK", python(COMPILE), 0, check=says("832040")),
    DemoJob("shell pipeline", "OK", shell("seq 1 1000 | grep -c 7"), 0, check=says("271")),
    DemoJob(
        "shell arithmetic",
        "OK",
        shell('i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; echo "$i"'),
        0,
        check=says("500"),
    ),
    DemoJob(
        "environment", "OK", shell('echo "$GREETING"'), 0, more={"env": {"GREETING": "hello"}}, check=says("hello")
    ),
    DemoJob("writable /tmp", "OK", shell("cd && echo x > y && echo z > /tmp/z && cat y"), 0, check=says("x")),
    DemoJob("no network", "OK", python(NO_NETWORK), 0, check=says("no network")),
    *[
        DemoJob(f"exits {number}", "EXIT_NONZERO", shell(f"exit {number}"), number)
        for number in (1, 124, 125, 126, 127, 128, 137, 255)
    ],
    DemoJob("segfault", "SIGNALED", python("import ctypes; ctypes.string_at(0)"), signal=11),
    DemoJob("kills itself", "SIGNALED", shell("kill -KILL $$"), signal=9),
    DemoJob(
        "out of memory",
        "OUT_OF_MEMORY",
        python("x = bytearray(1 << 30)"),
        more={"resources": {"memory_bytes": "96MiB"}},
    ),
    DemoJob(
        "fork bomb",
        "TIMEOUT",
        python(FORK_BOMB),
        signal=15,
        timed_out="soft",
        more={"timeout": 2, "resources": {"pids_limit": 32}},
    ),
    DemoJob("disk filled", "DISK_LIMIT", python(FILL_DISK), 1, more={"resources": {"disk_bytes": "16MiB"}}),
    DemoJob(
        "endless output",
        "TIMEOUT",
        ["yes"],
        signal=15,
        timed_out="soft",
        more={"timeout": 1, "output": {"max_bytes": 1024}},
        check=lambda outcome: outcome.stdout.truncated and outcome.stdout.total_bytes > len(outcome.stdout.bytes) > 0,
    ),
    DemoJob(
        "output capped by kill",
        "OUTPUT_LIMIT",
        shell("while :; do echo flood; done"),
        more={"output": {"max_bytes": 4096, "on_limit": "kill"}},
    ),
    DemoJob(
        "binary output",
        "OK",
        python("import os; os.write(1, bytes(range(256)))"),
        0,
        check=lambda outcome: outcome.stdout.bytes == bytes(range(256)),
    ),
    DemoJob("sleeps past its timeout", "TIMEOUT", ["sleep", "60"], signal=15, timed_out="soft", more={"timeout": 1}),
    DemoJob(
        "ignores TERM",
        "TIMEOUT",
        python(IGNORES_TERM),
        timed_out="hard",
        more={"timeout": 1, "grace": 1},
        check=says("still here"),
    ),
    DemoJob("missing command", "COMMAND_NOT_FOUND", ["no-such-program"]),
    DemoJob("not executable", "COMMAND_NOT_EXECUTABLE", ["/etc/passwd"]),
    DemoJob("missing working directory", "WORKING_DIR_INVALID", ["true"], more={"working_dir": "/no/such/folder"}),
    DemoJob("unknown user", "USER_INVALID", ["true"], more={"security": {"user": "no-such-user"}}),
    DemoJob("missing image", "IMAGE_NOT_FOUND", ["true"], image="no-such-image"),
    DemoJob("privileged", "SECURITY_VIOLATION", ["true"], more={"security": {"privileged": True}}),
    DemoJob("host network", "SECURITY_VIOLATION", ["true"], more={"security": {"network_mode": "host"}}),
]
