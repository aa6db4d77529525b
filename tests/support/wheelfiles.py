"""Tiny Python packages for tests: hand-made wheels and source archives, as an index has them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

GREETING = "hello from the wheel"


def new_wheel(
    folder: Path, name: str = "greeter", version: str = "1.0", *, needs: str = "", text: str = GREETING
) -> Path:
    """Write a wheel with a module `name`, a program `name` and a file of data."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}/__init__.py": f"def main() -> None:\n    print({text!r})\n",
        f"{name}-{version}.data/data/share/{name}/data.txt": "data\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{file},,\n" for file in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), content)
    return path


def new_source_archive(folder: Path, name: str, version: str, canary: Path) -> Path:
    """Write a package without a wheel; its build runs its code, which makes the file `canary`."""
    path = folder / f"{name}-{version}.tar.gz"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "setup.py": f"open({str(canary)!r}, 'w').close()\n"
        f"from setuptools import setup\nsetup(name={name!r}, version={version!r})\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            facts = tarfile.TarInfo(f"{name}-{version}/{file}")
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content.encode()))
    return path
