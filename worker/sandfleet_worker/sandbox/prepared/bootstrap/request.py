"""Read the request that hands over a job, and report to init."""

import os

from sandfleet_worker.sandbox.prepared.bootstrap.checks import Unfit

_MOST_REASON = 500


class Request:
    """A job: its folder, command and environment."""

    def __init__(self, body):
        self._body, self._at = body, 0
        self.flags = self._number()
        self.cwd = self._text()
        self.argv = [os.fsdecode(self._text()) for _ in range(self._number())]
        self.environment = [self._text() for _ in range(self._number())]
        if self.flags or self._at != len(body) or not self.argv:
            raise Unfit("the request is not understood")
        form, needed = (*self.argv[1:2], "-")[0], 3
        if (
            not form
            or (form in ("-c", "-m") and len(self.argv) < needed)
            or (form[0] == "-" and form not in ("-", "-c", "-m"))
        ):
            raise Unfit("a command of this form is not run by a prepared interpreter")

    def _number(self):
        self._at += 4
        if self._at > len(self._body):
            raise Unfit("the request is cut off")
        return int.from_bytes(self._body[self._at - 4 : self._at], "little")

    def _text(self):
        begin = self._at
        self._at = self._body.index(b"\0", begin) + 1
        return self._body[begin : self._at - 1]


def read(fd, count):
    """Read so many bytes; at the end of the pipe, end."""
    data = b""
    while len(data) < count:
        part = os.read(fd, count - len(data))
        if not part:
            os._exit(0)  # nobody needs this interpreter any more
        data += part
    return data


def report(fd, line):
    """Write one line to init."""
    os.write(fd, line.encode("utf-8", "backslashreplace")[:_MOST_REASON].replace(b"\n", b" ") + b"\n")
