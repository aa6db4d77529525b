"""Runs one program cold and prepared, as plain processes: the harness does what the sandbox's init does.

No sandbox is needed, so a run takes tens of milliseconds, and every Python of the machine can be tried.
"""

import contextlib
import os
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandfleet_worker.sandbox.prepared.python_source import source

RUN_SECONDS = 60
"""No program of the suite takes a tenth of it; a run that hangs is killed and fails its test."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a program ended; `code` is negative for a signal, as subprocess has it."""

    code: int
    stdout: bytes
    stderr: bytes


class PreparationRefused(Exception):
    """The interpreter reported that it cannot become a job; the message is its reason."""


def run_cold(python: Path, argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes) -> Run:
    """Run `argv` by a new interpreter."""
    done = subprocess.run(
        argv,
        executable=python,
        cwd=cwd,
        env=dict(env),
        input=stdin,
        capture_output=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


class Prepared:
    """An interpreter that has imported `modules` and waits; it becomes one job.

    Its imports may leave nothing in the `writable` folders, which are empty before.
    """

    def __init__(
        self, python: Path, env: Mapping[str, str], modules: Sequence[str] = (), writable: Sequence[Path] = ()
    ) -> None:
        request, report, stdin, stdout, stderr = (os.pipe() for _ in range(5))
        own = (request[0], report[1], stdin[0], stdout[1], stderr[1])
        self._process = subprocess.Popen(
            ["python3", "-c", source(), *map(str, own), ",".join(modules), *map(str, writable)],
            executable=python,
            env=dict(env),
            cwd="/",
            pass_fds=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in own:
            os.close(fd)
        self._request, self._stdin = request[1], stdin[1]
        self._report, self._stdout, self._stderr = (os.fdopen(pipe[0], "rb") for pipe in (report, stdout, stderr))
        self._expect(b"p\n")

    def _expect(self, line: bytes) -> None:
        got = self._report.readline(1000)
        if got != line:
            self.close()
            raise PreparationRefused(got.decode(errors="replace").strip())

    def abandon(self) -> int:
        """Close the request's pipe and return the exit code."""
        os.close(self._request)
        self._request = -1
        try:
            return self._process.wait(RUN_SECONDS)
        finally:
            self.close()

    def become(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes) -> Run:
        """Give it the job and wait for its end."""
        body = struct.pack("<I", 0) + _text(str(cwd)) + _texts(argv) + _texts([f"{name}={env[name]}" for name in env])
        os.write(self._request, struct.pack("<I", len(body)) + body)
        self._expect(b"t\n")
        outputs: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda name=name, pipe=pipe: outputs.update({name: pipe.read()}))
            for name, pipe in (("stdout", self._stdout), ("stderr", self._stderr))
        ]
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._stdin, "wb") as pipe:
            pipe.write(stdin)
        self._stdin = -1
        try:
            code = self._process.wait(RUN_SECONDS)
        finally:
            self._process.kill()
            for reader in readers:
                reader.join()
            self.close()
        return Run(code, outputs["stdout"], outputs["stderr"])

    def close(self) -> None:
        """End the interpreter, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._report, self._stdout, self._stderr):
            pipe.close()
        for fd in (self._request, self._stdin):
            if fd >= 0:
                os.close(fd)
        self._request = self._stdin = -1


def _text(text: str) -> bytes:
    return os.fsencode(text) + b"\0"


def _texts(texts: Sequence[str]) -> bytes:
    return struct.pack("<I", len(texts)) + b"".join(map(_text, texts))
