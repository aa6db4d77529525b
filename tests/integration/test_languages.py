"""Programs over real workers: a toy language in busybox, whose compiler is a shell script.

`make test-languages` does the same with nine real languages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Case, ErrorCode, Fleet, Program, Settings
from sandfleet_config.store_settings import StoreSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet import Judgement
    from stage import Stage, Worker

TOY = """
[toy]
image = "busybox"
source = "main.toy"
compile = ["sh", "-c", \"\"\"
if grep -n BAD $1; then echo "$1: BAD is no word" >&2; exit 2; fi
{{ echo '#!/bin/sh'; cat $1; echo; test ! -e large || yes '#' | head -c 2000000; }} > a.out; chmod 755 a.out
\"\"\", "toyc", "{source}"]
artifacts = ["a.out"]
run = ["./a.out"]
compile_timeout = 20
"""
DOUBLE = "read n; echo $((2 * n)); exit"
LARGE = {"path": "large", "content": ""}
"""Makes a program of 2 MB."""


class Shop:
    """A fleet whose producers know the toy language, and one worker."""

    def __init__(self, stage: Stage, worker: Worker, fleet: Fleet, env: dict[str, str]) -> None:
        self.stage, self.worker, self.fleet, self.env = stage, worker, fleet, env

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``sandfleet run --lang toy`` with `words`."""
        command = [sys.executable, "-m", "sandfleet.cli", "run", "--lang", "toy", *words]
        return subprocess.run(
            command, env=self.env, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )

    def count_starts(self) -> int:
        return self.worker.log.count("action=job_started")


@pytest.fixture(scope="module")
def shop(module_stage_folder: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    stage, folder = module_stage_folder, tmp_path_factory.mktemp("shop")
    (folder / "toy.toml").write_text(TOY)
    (folder / "store").mkdir()
    url = f"file://{folder}/store"
    worker = stage.start(concurrency=4, SANDFLEET_STORE__URL=url)
    worker.wait_ready()
    settings = Settings(
        redis_url=SecretStr(stage.redis_url), store=StoreSettings(url=url), languages=str(folder / "toy.toml")
    )
    env = {**stage.env, "SANDFLEET_STORE__URL": url, "SANDFLEET_LANGUAGES": str(folder / "toy.toml")}
    with Fleet(settings) as fleet:
        yield Shop(stage, worker, fleet, env)


def new_program(code: str, **spec: Any) -> Program:
    return Program(code, "toy", spec={"timeout": 10, **spec})


def verdicts(judgement: Judgement) -> list[tuple[str, str]]:
    return [(case.name, case.verdict) for case in judgement.cases]


def test_a_program_is_compiled_in_one_sandbox_and_run_in_another(shop: Shop) -> None:
    result = shop.fleet.run_program(Program(DOUBLE, "toy", "prog.toy"), b"21\n")
    assert result.run is not None
    assert result.compile is not None
    assert (result.run.stdout.text, result.shared) == ("42\n", "")
    assert result.compile.job_id != result.run.job_id
    assert result.compile.labels == {"language": "toy", "step": "compile"}


def test_a_program_that_did_not_compile_is_never_run(shop: Shop) -> None:
    result = shop.fleet.run_program(new_program("BAD"))
    assert result.compile is not None
    assert (result.run, result.compile.code, result.compile.exit_code) == (None, ErrorCode.EXIT_NONZERO, 2)
    assert result.compile.stderr.text == "main.toy: BAD is no word\n"


def test_a_hundred_cases_compile_once_and_each_has_its_verdict(shop: Shop, tmp_path: Path) -> None:
    before = shop.count_starts()
    for number in range(100):
        (tmp_path / f"{number}.in").write_text(f"{number}\n")
        (tmp_path / f"{number}.out").write_text(f"{2 * number if number % 10 else 1}\n")
    judgement = shop.fleet.judge(new_program(DOUBLE), tmp_path)
    assert [case.name for case in judgement.cases if not case.is_accepted] == [f"{n}0" if n else "0" for n in range(10)]
    assert judgement.verdicts == {"ACCEPTED": 90, "WRONG_ANSWER": 10}
    assert judgement.cases[10].detail == 'line 1: expected "1", got "20"'
    assert shop.count_starts() - before == 101
    assert shop.fleet.batch(judgement.batch).codes == {"OK": 100}


def test_each_kind_of_failure_has_its_verdict(shop: Shop) -> None:
    code = "read how; case $how in crash) kill -SEGV $$;; slow) sleep 60;; exit) echo 42; exit 3;; esac; echo 42; exit"
    cases = [Case(name, f"{name}\n", "42\n") for name in ("right", "crash", "slow", "exit")]
    judgement = shop.fleet.judge(new_program(code, timeout=2, grace=1), cases)
    assert verdicts(judgement) == [
        ("right", "ACCEPTED"),
        ("crash", "SIGNALED"),
        ("slow", "TIMEOUT"),
        ("exit", "EXIT_NONZERO"),
    ]


def test_a_program_that_the_store_cannot_take_is_compiled_in_the_sandbox_of_each_run(shop: Shop) -> None:
    """The store in Redis takes 1 MiB. This worker and this producer know no other."""
    small = shop.stage.start(concurrency=4, SANDFLEET_HOST_LABELS="store=redis")
    small.wait_ready()
    settings = Settings(redis_url=SecretStr(shop.stage.redis_url), languages=shop.fleet.settings.languages)
    fields = {"files": [LARGE], "requires": {"store": "redis"}}
    with Fleet(settings) as fleet:
        judgement = fleet.judge(new_program(DOUBLE, **fields), [Case("a", "1\n", "2"), Case("b", "2\n", "5")])
        failing = fleet.run_program(new_program("echo out; echo err >&2; exit 1", **fields))
    assert small.stop() == 0
    assert "is too large for" in judgement.shared
    assert verdicts(judgement) == [("a", "ACCEPTED"), ("b", "WRONG_ANSWER")]
    assert failing.run is not None
    assert (failing.run.stdout.text, failing.run.stderr.text, failing.run.exit_code) == ("out\n", "err\n", 1)


def test_the_command_tells_a_compile_error_from_a_failure(shop: Shop, tmp_path: Path) -> None:
    good, bad, failing = (tmp_path / name for name in ("good.toy", "bad.toy", "failing.toy"))
    good.write_text(DOUBLE)
    bad.write_text("BAD\n")
    failing.write_text("exit 2")
    done = shop.run("-i", str(good), stdin="4\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
    done = shop.run(str(bad))
    assert (done.returncode, done.stdout) == (123, "")
    assert done.stderr == "1:BAD\nbad.toy: BAD is no word\nsandfleet: did not compile: the compiler exited 2\n"
    done = shop.run(str(failing))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    (tmp_path / "1.in").write_text("4\n")
    (tmp_path / "1.out").write_text("9\n")
    done = shop.run("--cases", str(tmp_path), "-o", "jsonl", str(good))
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "WRONG_ANSWER")


def test_ctrl_c_cancels_the_cases(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "slow.toy").write_text("sleep 100")
    for number in range(20):
        (tmp_path / f"{number}.in").write_text("")
        (tmp_path / f"{number}.out").write_text("")
    before = shop.count_starts()
    command = [
        sys.executable,
        "-m",
        "sandfleet.cli",
        "run",
        "--lang",
        "toy",
        "--timeout",
        "90",
        "--cases",
        str(tmp_path),
    ]
    with subprocess.Popen(
        [*command, str(tmp_path / "slow.toy")], env=shop.env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(lambda: shop.count_starts() >= before + 3, 30, "some cases run")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    wait_until(lambda: not shop.stage.find_running(), 20, "no case runs")
    assert shop.fleet.run_program(new_program("echo $0")).is_ok


def test_execute_runs_compiled_code(shop: Shop) -> None:
    result = shop.fleet.execute("echo __OUT__:7; exit", "toy")
    assert (result.value, result.did_compile) == (7, True)
    assert result.limits_enforced.memory
    assert not shop.fleet.execute("BAD", "toy").did_compile
