"""Lines on stderr."""

from __future__ import annotations

import socket
import subprocess
import sys

SAY_TWICE = "from sandfleet_config.terminal import write_line; write_line('a password: secret'); write_line('two')"


def test_a_line_on_stderr_is_one_write() -> None:
    # What came between a line and its end, such as another thread's, would read as part of it.
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    with reader, writer:
        subprocess.run([sys.executable, "-c", SAY_TWICE], stderr=writer.fileno(), check=True, timeout=60)
        writer.close()
        assert [reader.recv(100), reader.recv(100), reader.recv(100)] == [b"a password: secret\n", b"two\n", b""]


def test_a_closed_stderr_takes_no_line_to_stdout() -> None:
    command = ["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, SAY_TWICE]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout == b""
