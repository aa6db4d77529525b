"""Small programs end the same, cold and prepared, as plain processes of this machine's Pythons."""

import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from comparing import KNOWN, differences, end
from plain_runs import PreparationRefused, Prepared, Run
from programs import CASES, Case, read_cases
from pythons import IS_WHOLE, Python, find_pythons

PAGE = Path(__file__).parents[2] / "docs/explanation/prepared.md"
SAMPLE = 12
"""Without TEST_CONFORMANCE=all, one case of so many runs."""
PYTHONS = pytest.mark.parametrize(
    "python", find_pythons(), ids=lambda python: python.path.parts[-3] if ".pyenv" in python.path.parts else "system"
)


def is_chosen(case: Case) -> bool:
    return IS_WHOLE or zlib.crc32(case.name.encode()) % SAMPLE == 0


def compare(case: Case, python: Python, folder: Path) -> list[str]:
    cold = end(case, folder, python.path, python.begin_cold)
    try:
        prepared = end(case, folder, python.path, python.begin_prepared)
    except PreparationRefused as refusal:
        return [] if case.refused and case.refused in str(refusal) else [f"{case.name}: {refusal}"]
    return [f"{case.name}: is not refused"] if case.refused else differences(case, cold, prepared)


@PYTHONS
@pytest.mark.parametrize("group", sorted(path.stem for path in CASES.glob("*.toml")))
@pytest.mark.timeout(3600)
def test_programs_end_the_same(group: str, python: Python, tmp_path: Path) -> None:
    cases = [c for c in read_cases() if c.name.startswith(f"{group}.") and python.runs(c) and is_chosen(c)]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda pair: compare(pair[1], python, tmp_path / str(pair[0])), enumerate(cases))
        assert [line for lines in found for line in lines] == []


def test_there_are_more_than_300_programs() -> None:
    names = [case.name for case in read_cases()]
    assert len(names) == len(set(names))
    assert len({name.partition("[")[0] for name in names}) > 300


def test_the_page_lists_the_differences_that_the_suite_allows() -> None:
    listed = re.findall(r"^- \*\*([a-z-]+)\*\*: ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(KNOWN)


# Mounts are those of a sandbox: tests/sandbox/test_conformance.py has them.
@pytest.mark.parametrize("known", [name for name in KNOWN if name != "mounts"])
def test_a_known_difference_is_one(known: str, tmp_path: Path) -> None:
    """Else it has to leave the list: the programs that show it end the same without it."""
    shown = []
    for python in find_pythons():
        for case in read_cases():
            if known in case.masks and python.runs(case):
                bare = replace(case, masks=tuple(mask for mask in case.masks if mask != known))
                shown += compare(bare, python, tmp_path / "job")
    if known == "syntax-warning" and max(python.version for python in find_pythons()) < (3, 13):
        assert shown == []
    else:
        assert shown


@PYTHONS
def test_each_job_has_its_own_seeds(python: Python, tmp_path: Path) -> None:
    program = "import random, uuid; print(hash('abc'), random.random(), uuid.uuid4(), id(object()))"
    case = replace(read_cases()[0], argv=("python3", "-c", program), files={}, modules=("random", "uuid"), env={})
    runs = [python.prepared(case, tmp_path).stdout.split() for _ in range(3)]
    assert all(len(set(values)) == 3 for values in zip(*(run[:3] for run in runs), strict=True)), runs


REFUSED = {
    "import socket\nkept = socket.socket()": "an import left a socket open",
    "import os\nif not os.fork():\n    import time; time.sleep(5); os._exit(0)": "an import left a child process",
    "kept = open('kept.txt', 'w')": "an import left a file open for writing: ",
    "import os\nkept = os.pipe()": "an import left a pipe or an event descriptor open: ",
    "import select\nkept = select.epoll()": "an import left a pipe or an event descriptor open: ",
    "open('writable/cache', 'w').close()": "an import left a file: ",
    "import os\nos.mkdir('writable/.cache')": "an import left a file: ",
    "1 / 0": "import leftover: ZeroDivisionError: division by zero",
    "raise SystemExit('two\\nlines')": "import leftover: SystemExit: two lines",
}


@PYTHONS
@pytest.mark.parametrize(("program", "reason"), REFUSED.items(), ids=REFUSED.values())
def test_a_preparation_is_refused(program: str, reason: str, python: Python, tmp_path: Path) -> None:
    path, writable = tmp_path / "leftover.py", tmp_path / "writable"
    path.write_text(f"import os; os.chdir({str(tmp_path)!r})\n{program}\n")
    writable.mkdir()
    with pytest.raises(PreparationRefused, match=re.escape(f"x {reason}")):
        Prepared(python.path, {"PYTHONPATH": str(tmp_path)}, ["leftover"], [tmp_path / "none", writable])


@PYTHONS
def test_threads_of_an_import_are_allowed(python: Python, tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    run = Prepared(python.path, env, ["threaded"]).become(
        ["python3", "-c", "print(1); raise SystemExit(3)"], tmp_path, env, b""
    )
    assert (run.code, run.stdout, run.stderr) == (3, b"1\n", b"")


@pytest.mark.parametrize(
    "argv", [["python3", "-c"], ["python3", "-m"], ["python3", ""], ["python3", "-i"], ["python3", "-cpass"]]
)
def test_a_command_of_another_form_is_not_taken(argv: list[str], tmp_path: Path) -> None:
    python = find_pythons()[0]
    with pytest.raises(PreparationRefused, match="x a command of this form is not run by a prepared interpreter"):
        Prepared(python.path, {}).become(argv, tmp_path, {}, b"")


def test_a_folder_that_cannot_be_entered_is_told(tmp_path: Path) -> None:
    with pytest.raises(PreparationRefused, match=r"x .*No such file or directory"):
        Prepared(find_pythons()[0].path, {}).become(["python3", "-c", ""], tmp_path / "missing", {}, b"")


def test_an_interpreter_that_nobody_needs_ends(tmp_path: Path) -> None:
    assert Prepared(find_pythons()[0].path, {}).abandon() == 0


TELLS = """import gc, os
def tell(_): os.write(1, b"frozen" if gc.get_freeze_count() else b"thawed")
def suspend(): yield
"""
TOLD = """
import weakref, tells
class C: pass
c = C()
tells.kept = weakref.ref(c, tells.tell)
"""


@pytest.mark.parametrize(
    ("made", "told"), [("x = [1]", b"frozen"), ("x = open(__file__)", b"thawed"), ("x = tells.suspend()", b"thawed")]
)
def test_frozen_modules_are_thawed_only_if_the_job_has_finalizers(made: str, told: bytes, tmp_path: Path) -> None:
    """Thawing costs a job of numpy and pandas 150 ms of CPU at its end."""
    (tmp_path / "tells.py").write_text(TELLS)
    (tmp_path / "job.py").write_text(TOLD + made)
    prepared = Prepared(find_pythons()[0].path, {}, ["json"])
    assert prepared.become(["python3", "job.py"], tmp_path, {}, b"") == Run(0, told, b"")
