"""Compile the job's init and its launcher: small freestanding C programs, static, without a libc.

As hatchling's build hook it runs when the worker is installed or packed; as a program
(`make native`) it compiles what is older than its source. The binaries are for the machine they are
compiled on, so wheels carry its platform tag.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path(__file__).parent / "sandfleet_worker" / "sandbox" / "native"

# Freestanding: the programs start where no loader, no libc and no /proc is at hand. No stack
# protector and no unwind tables, since both need a run time that is not there.
FLAGS = (
    "-std=gnu11",
    "-Os",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-pie",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-s",
)


class NativeBuildError(Exception):
    """The C programs cannot be compiled; the message says what to do."""


class NativeBuildHook(BuildHookInterface[Any]):
    """Compile the C programs when a wheel is built, and name the platform in the wheel's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the binaries to the wheel."""
        del version
        compiled = [compile_if_older(source) for source in find_sources()]
        build_data["artifacts"] += [str(binary.relative_to(self.root)) for binary in compiled]
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


def find_sources() -> list[Path]:
    """Return the C programs."""
    return sorted(NATIVE.glob("*.c"))


def compile_if_older(source: Path) -> Path:
    """Compile `x.c` to `x` beside it unless `x` is newer than every source, header and this file.

    Raises:
        NativeBuildError: there is no C compiler, or it refuses the source.
    """
    binary = source.with_suffix("")
    inputs = [source, *NATIVE.glob("*.h"), Path(__file__)]
    if binary.exists() and binary.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in inputs):
        return binary
    # A sandbox may be starting from the present file: replace it whole, never write into it.
    fresh = binary.with_name(f".{binary.name}.{os.getpid()}")
    command = [find_compiler(), *FLAGS, "-o", str(fresh), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise NativeBuildError(f"cannot compile {source.name}: {' '.join(command)}\n{done.stderr}")
    fresh.replace(binary)
    return binary


def find_compiler() -> str:
    """Return the C compiler.

    Raises:
        NativeBuildError: there is none.
    """
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    raise NativeBuildError(
        "sandfleet-worker compiles a small C program, the job's init, and found no C compiler: "
        "install one (Debian: apt-get install gcc libc6-dev) or name it in CC."
    )


def main() -> int:
    """Compile what is out of date, without an installation."""
    try:
        for source in find_sources():
            compile_if_older(source)
    except NativeBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
