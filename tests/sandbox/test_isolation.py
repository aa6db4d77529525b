"""Attacks of a program on init, the network and the host's files; all fail. One attack a test."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from attacking import REFUSED, SECRET, answers
from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attacking import Attack
    from sandfleet_worker.sandbox.runner import RunscRunner

ROUNDS = ("cold", "warm", "prepared")

# ---- the verdict ----


def test_the_verdict_cannot_be_forged_through_inits_descriptors(attack: Attack) -> None:
    outcome = attack("""
for fd in range(64):
    for mode in (os.O_WRONLY, os.O_RDONLY, os.O_RDWR):
        path = f"/proc/1/fd/{fd}"
        answer = attempt(lambda: os.write(os.open(path, mode | os.O_NONBLOCK), b"E 0 0 1\\n"))
        # The first three are the job's own streams. ENODEV: nobody can open a signalfd anew.
        if fd > 2 and answer != "ENOENT": tell(f"{fd}/{mode}", answer)
tell("mem", attempt(os.open, "/proc/1/mem", os.O_RDWR))
sys.exit(9)
""")
    assert (outcome.code, outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 9)
    told = {line for line in outcome.stdout.text.splitlines() if not line.startswith("E ")}
    assert {"3/0 EACCES", "3/1 EACCES", "4/0 EACCES", "4/1 EACCES"} <= told
    assert {line.split()[1] for line in told} <= REFUSED | {"ENODEV"}


def test_nothing_but_the_three_streams_is_inherited(attack: Attack) -> None:
    outcome = attack("""
for fd in range(65536):
    try: tell(fd, stat.S_IFMT(os.fstat(fd).st_mode) == stat.S_IFIFO)
    except OSError: pass
""")
    assert answers(outcome) == {"0": "True", "1": "True", "2": "True"}


def test_reports_printed_by_a_program_are_its_output(attack: Attack) -> None:
    forged = "R\nS\nE 0 0 1\nG 9 1 1\nP 3\n"
    outcome = attack(f"os.write(1, {forged.encode()!r}); os.write(2, {forged.encode()!r}); sys.exit(7)")
    assert (outcome.code, outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 7)
    assert (outcome.stdout.text, outcome.stderr.text) == (forged, forged)


def test_reports_written_to_every_possible_descriptor_are_not_heard(attack: Attack) -> None:
    outcome = attack("""
for fd in range(3, 300): attempt(os.write, fd, b"E 0 0 1\\n")
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert (outcome.code, outcome.signal) == (ErrorCode.SIGNALED, signal.SIGKILL)


def test_init_cannot_be_signalled(attack: Attack) -> None:
    outcome = attack("for number in range(1, 65): tell(number, attempt(os.kill, 1, number))\nsys.exit(9)")
    assert outcome.exit_code == 9
    told = answers(outcome)
    assert len(told) == 64
    assert set(told.values()) == {"EPERM"}


def test_init_cannot_be_traced_or_read(attack: Attack) -> None:
    outcome = attack("""
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
tell("attach", call("ptrace", PTRACE_ATTACH, 1, 0, 0))
tell("seize", call("ptrace", PTRACE_SEIZE, 1, 0, 0))
buffer = (ctypes.c_char * 16)()
span = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
there = (ctypes.c_void_p * 2)(0x400000, 16)
tell("read", call("process_vm_readv", 1, span, 1, there, 1, 0))
tell("write", call("process_vm_writev", 1, span, 1, there, 1, 0))
for name in ("cwd", "root"): tell(name, attempt(os.readlink, f"/proc/1/{name}"))
sys.exit(9)
""")
    assert outcome.exit_code == 9
    assert {name: answer for name, answer in answers(outcome).items() if answer not in REFUSED} == {}


def test_the_sandbox_cannot_be_stopped_from_inside(attack: Attack) -> None:
    outcome = attack("""
for number, name in ((0x01234567, "restart"), (0x4321fedc, "off"), (0xcdef0123, "halt")):
    tell(name, call("reboot", ctypes.c_int(number)))
tell("all", attempt(os.kill, -1, signal.SIGCONT))
tell("sysrq", attempt(lambda: os.write(os.open("/proc/sysrq-trigger", os.O_WRONLY), b"o")))
sys.exit(9)
""")
    assert outcome.exit_code == 9
    told = answers(outcome)
    told.pop("all")  # everything it may signal, which is itself: fine
    assert set(told.values()) <= REFUSED | {"ENOENT", "EIO"}


# ---- the network ----


class Listener:
    """A TCP server of the host that counts who comes."""

    def __init__(self, family: socket.AddressFamily, address: Any) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.bind(address)
        self.socket.listen()
        self.socket.setblocking(False)

    @property
    def has_caller(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.socket.accept()[0].close()
            return True
        return False


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[dict[str, Listener]]:
    """Listen on every address of the host, on a unix socket of its files and on an abstract one."""
    found = {
        "tcp": Listener(socket.AF_INET, ("", 0)),
        "path": Listener(socket.AF_UNIX, str(tmp_path / "socket")),
        "abstract": Listener(socket.AF_UNIX, f"\0{SECRET}"),
    }
    yield found
    for listener in found.values():
        listener.socket.close()


def test_no_listener_of_the_host_can_be_reached(listeners: dict[str, Listener], attack: Attack) -> None:
    port = listeners["tcp"].socket.getsockname()[1]
    hosts = {address.address for card in psutil.net_if_addrs().values() for address in card if address.family == 2}
    for host in hosts:  # the listener really listens there
        socket.create_connection((host, port)).close()
        assert listeners["tcp"].has_caller
    outcome = attack(f"""
for host in {sorted(hosts | {"127.0.0.1", "localhost", "10.0.2.2", "172.17.0.1", "169.254.169.254", "0"})!r}:
    tell(host, attempt(socket.create_connection, (host, {port}), 3))
tell("path", attempt(socket.socket(socket.AF_UNIX).connect, {listeners["path"].socket.getsockname()!r}))
tell("abstract", attempt(socket.socket(socket.AF_UNIX).connect, "\\0{SECRET}"))
""")
    told = answers(outcome)
    assert len(told) >= 8
    assert "done" not in told.values()
    assert not any(listener.has_caller for listener in listeners.values())


def test_there_is_no_interface_but_loopback_and_no_way_out(attack: Attack) -> None:
    outcome = attack("""
tell("cards", [name for _, name in socket.if_nameindex()])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for host in ("8.8.8.8", "192.168.0.1", "169.254.169.254", "255.255.255.255"):
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    tell(host, attempt(udp.sendto, b"x", (host, 53)))
tell("raw", attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1))
tell("packet", attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3))
tell("vsock", attempt(socket.socket, 40, socket.SOCK_STREAM))
""")
    told = answers(outcome)
    assert told.pop("cards") == "['lo']"
    assert "done" not in told.values()


def test_no_name_can_be_resolved(attack: Attack) -> None:
    outcome = attack("""
try: print(socket.getaddrinfo("example.com", 443))
except socket.gaierror as error: tell("refused", error.errno)
""")
    assert set(answers(outcome)) == {"refused"}


# ---- the host's files ----


def test_no_file_of_the_host_can_be_seen(tmp_path: Path, attack: Attack) -> None:
    marker = tmp_path / SECRET
    marker.write_text(SECRET)
    outcome = attack(f"""
path = {str(marker)!r}
for root in ("", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../..", "/dev/fd/../../..", "/../../.."):
    tell("open" + root, attempt(open, root + path))
found = []
for folder, folders, files in os.walk("/", onerror=None):
    found += [os.path.join(folder, name) for name in (*folders, *files) if {SECRET!r} in name]
tell("found", found)
""")
    told = answers(outcome)
    assert told.pop("found") == "[]"
    assert set(told.values()) <= REFUSED | {"ENOENT"}


def test_proc_and_sys_tell_nothing_of_the_host(runner: RunscRunner, attack: Attack) -> None:
    outcome = attack("""
for name in ("version", "cmdline", "mounts", "self/mountinfo", "self/cgroup", "self/environ", "self/maps", "net/tcp",
             "net/unix", "net/route", "sys/kernel/hostname", "sys/kernel/osrelease", "uptime", "1/cmdline", "stat"):
    try: print(f"== {name}\\n" + open(f"/proc/{name}").read())
    except OSError as error: print(f"== {name} {error.errno}")
for folder, folders, files in os.walk("/sys"):
    print(folder, *folders, *files)
""")
    seen = outcome.stdout.text
    # The kernel's version is gVisor's own: 4.4.0, and 4.19.0-gvisor since 20260427.
    assert re.search(r"== version\nLinux version (4\.4\.0|4\.19\.0-gvisor) #1 SMP Sun Jan 10 15:06:54 PST 2016\n", seen)
    host = {socket.gethostname(), os.uname().release, str(runner.config.runsc.root_dir), str(runner.config.images.root)}
    host |= {path.name for path in Path("/sys/block").iterdir()}
    host |= {card for card in psutil.net_if_addrs() if card != "lo"}
    assert not [word for word in host if re.search(rf"\b{re.escape(word)}\b", seen)]


def test_settings_of_the_kernel_cannot_be_changed(attack: Attack) -> None:
    outcome = attack("""
count = 0
for top in ("/proc/sys", "/sys", "/proc/1", "/proc/irq"):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if name not in ("fd", "cwd", "root")]
        for name in files:
            path, count = os.path.join(folder, name), count + 1
            if attempt(lambda: open(path, "r+b", buffering=0).write(b"|/tmp/x")) == "done": tell(path, "done")
tell("tried", count > 10)
""")
    assert answers(outcome) == {"tried": "True"}


def test_device_nodes_open_nothing_of_the_host(attack: Attack) -> None:
    disks = [path.read_text().strip() for path in Path("/sys/block").glob("*/dev")]
    outcome = attack(f"""
os.chdir("/tmp")
for kind, numbers in ((stat.S_IFBLK, {disks!r}), (stat.S_IFCHR, ["1:1", "1:2", "1:4", "10:232", "4:0", "5:1"])):
    for number in numbers:
        name = f"{{kind}}:{{number}}"
        attempt(os.mknod, name, kind | 0o666, os.makedev(*map(int, number.split(":"))))
        tell(name, attempt(os.open, name, os.O_RDONLY))
tell("dev", sorted(os.listdir("/dev")))
""")
    told = answers(outcome)
    devices = "fd full fuse net null ptmx pts random shm stderr stdin stdout tty urandom zero"
    # char holds links to the others, since 20260817.
    assert set(ast.literal_eval(told.pop("dev"))) - {"char"} == set(devices.split())
    assert len(told) >= 6
    assert "done" not in told.values()


def test_the_environment_of_the_worker_is_not_visible(monkeypatch: pytest.MonkeyPatch, attack: Attack) -> None:
    monkeypatch.setenv("SANDFLEET_TEST_SECRET", SECRET)
    outcome = attack("""
print(dict(os.environ))
for name in os.listdir("/proc"):
    if name.isdecimal(): attempt(lambda: print(open(f"/proc/{name}/environ").read()))
""")
    assert "PATH" in outcome.stdout.text
    assert SECRET not in outcome.stdout.text
    assert "SANDFLEET" not in outcome.stdout.text
