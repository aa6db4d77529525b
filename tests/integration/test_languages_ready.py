"""Nine languages in their ready recipes, really built: hello, a compile error, a crash, a timeout, an input.

For `make test-languages`: it takes long.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from pydantic import SecretStr
from sandfleet import Case, ErrorCode, Fleet, Program, Settings
from sandfleet_config.settings import ImagesSettings
from sandfleet_config.store_settings import StoreSettings
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
from sandfleet_worker.sandbox.image.recipe.whole import find_ready, join, read_recipe
from sandfleet_worker.sandbox.image.starter import READY_RECIPES
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Outcome
    from stage import Stage, Worker

ROOT = os.environ.get("TEST_LANGUAGES_ROOT", "")
pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not ROOT, reason="takes long: make test-languages"),
    pytest.mark.timeout(1800),
]
RECIPES = ("python", "bash", "node", "typescript", "gcc", "go", "rust", "java")
EXIT, SIGNAL = ErrorCode.EXIT_NONZERO, ErrorCode.SIGNALED
WAIT_SECONDS = 600


class Sources(NamedTuple):
    """Programs of one language. `double` reads a number and prints twice of it.

    `crashed` is the code of `crash`, with its exit code or its signal.
    """

    hello: str
    broken: str
    crash: str
    crashed: tuple[ErrorCode, int]
    endless: str
    double: str


GO = 'package main\nimport "fmt"\nfunc main() { %s }\n'
JAVA = "public class Main { public static void main(String[] a) { %s } }"
LANGUAGES = {
    "python": Sources(
        "print('hello')", "print('hello'", "[][1]", (EXIT, 1), "while True: pass", "print(2 * int(input()))"
    ),
    "bash": Sources(
        "echo hello", "if true; then", "kill -SEGV $$", (SIGNAL, 11), "while :; do :; done", "read n; echo $((2 * n))"
    ),
    "node": Sources(
        "console.log('hello')",
        "console.log('hello'",
        "null.x",
        (EXIT, 1),
        "for (;;) {}",
        "console.log(2 * require('fs').readFileSync(0, 'utf8'))",
    ),
    "typescript": Sources(
        "const text: string = 'hello'; console.log(text)",
        "const text: number = 'hello'; console.log(text)",
        "const x: number[][] = []; console.log(x[1][2])",
        (EXIT, 1),
        "for (;;) {}",
        "import { readFileSync } from 'fs'; console.log(2 * Number(readFileSync(0, 'utf8')))",
    ),
    "c": Sources(
        '#include <stdio.h>\nint main(void) { puts("hello"); }',
        "int main(void) { return x; }",
        "int main(void) { *(volatile int *)0 = 1; }",
        (SIGNAL, 11),
        "int main(void) { for (volatile int i = 0;; i++); }",
        '#include <stdio.h>\nint main(void) { long n; scanf("%ld", &n); printf("%ld\\n", 2 * n); }',
    ),
    "cpp": Sources(
        '#include <iostream>\nint main() { std::cout << "hello\\n"; }',
        '#include <iostream>\nint main() { std::cout << "hello\\n" }',
        "#include <vector>\nint main() { return std::vector<int>().at(1); }",
        (SIGNAL, 6),
        "int main() { for (volatile int i = 0;; i = i + 1); }",
        "#include <iostream>\nint main() { long n; std::cin >> n; std::cout << 2 * n << '\\n'; }",
    ),
    "go": Sources(
        GO % 'fmt.Println("hello")',
        GO % 'x := 1; fmt.Println("hello")',
        GO % "a := []int{}; fmt.Println(a[len(a)])",
        (EXIT, 2),
        GO % "fmt.Print(); for {}",
        GO % "var n int; fmt.Scan(&n); fmt.Println(2 * n)",
    ),
    "rust": Sources(
        'fn main() { println!("hello"); }',
        'fn main() { let n: i32 = "hello"; }',
        'fn main() { let v: Vec<i32> = vec![]; println!("{}", v[std::env::args().count()]); }',
        (EXIT, 101),
        "fn main() { loop {} }",
        "fn main() { let mut s = String::new(); std::io::stdin().read_line(&mut s).unwrap();"
        ' println!("{}", 2 * s.trim().parse::<i64>().unwrap()); }',
    ),
    "java": Sources(
        JAVA % 'System.out.println("hello");',
        JAVA % 'System.out.println("hello")',
        JAVA % "int[] x = {}; x[1] = 2;",
        (EXIT, 1),
        JAVA % "while (true);",
        JAVA % "System.out.println(2 * new java.util.Scanner(System.in).nextLong());",
    ),
}
INTERPRETED = {"python": "SyntaxError", "node": "SyntaxError", "bash": "syntax error"}


class Ready:
    """A fleet with one worker on a host that has the images of all languages."""

    def __init__(self, fleet: Fleet, worker: Worker) -> None:
        self.fleet, self.worker = fleet, worker

    def count_starts(self) -> int:
        return self.worker.log.count("action=job_started")


@pytest.fixture(scope="module")
def images_root() -> Path:
    """Build what is missing; the folder may be kept."""
    images = ImagesSettings(root=Path(ROOT))
    store = ImageStore(images.root)
    known = {image.name for image in store.list()}
    for name in RECIPES:
        if name not in known:
            choice = LockChoice(images.root / "recipes" / f"{name}.lock")
            whole = join(read_recipe(find_ready(name)), READY_RECIPES)
            RecipeBuilder(store, images, print).build(name, whole, choice, f"recipe:{name}")
    return images.root


@pytest.fixture(scope="module")
def ready(module_stage_folder: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    store = tmp_path_factory.mktemp("store")
    worker = module_stage_folder.start(concurrency=2, SANDFLEET_STORE__URL=f"file://{store}")
    worker.wait_ready()
    settings = Settings(redis_url=SecretStr(module_stage_folder.redis_url), store=StoreSettings(url=f"file://{store}"))
    with Fleet(settings) as fleet:
        yield Ready(fleet, worker)


def tell(name: str, step: str, outcome: Outcome | None) -> None:
    """Print the figures of a job: `make test-languages` shows them, and the docs have them."""
    if outcome is not None:
        peak = (outcome.usage.memory_peak_bytes or 0) / (1 << 20)
        print(f"\n{name}: {step} {outcome.duration or 0:.2f} s, {peak:.0f} MiB", end="")  # noqa: T201


@pytest.mark.parametrize("name", LANGUAGES)
def test_hello(name: str, ready: Ready) -> None:
    result = ready.fleet.run_program(Program(LANGUAGES[name].hello, name), timeout=WAIT_SECONDS)
    tell(name, "compile", result.compile)
    tell(name, "run", result.run)
    assert result.run is not None, str(result)
    assert (result.run.stdout.text, result.run.code, result.shared) == ("hello\n", ErrorCode.OK, ""), str(result)
    assert (result.compile is None) == (name in INTERPRETED)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_compile_error(name: str, ready: Ready) -> None:
    result = ready.fleet.run_program(Program(LANGUAGES[name].broken, name), timeout=WAIT_SECONDS)
    if name in INTERPRETED:
        assert result.run is not None
        assert (result.compile, result.run.code) == (None, EXIT)
        assert INTERPRETED[name] in result.run.stderr.text
        return
    assert result.compile is not None
    assert (result.run, result.did_compile, result.compile.code) == (None, False, EXIT)
    source = ready.fleet.languages[name].source
    assert source in result.compile.stdout.text + result.compile.stderr.text


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_crash_a_timeout_and_an_input(name: str, ready: Ready) -> None:
    sources = LANGUAGES[name]
    crash = ready.fleet.run_program(Program(sources.crash, name), timeout=WAIT_SECONDS)
    assert crash.run is not None, str(crash)
    code, number = sources.crashed
    assert (crash.run.code, crash.run.signal if code is SIGNAL else crash.run.exit_code) == (code, number), str(crash)

    endless = Program(sources.endless, name, spec={"timeout": 3, "grace": 1})
    slow = ready.fleet.run_program(endless, timeout=WAIT_SECONDS)
    assert slow.run is not None, str(slow)
    assert slow.run.code is ErrorCode.TIMEOUT, str(slow)

    cases = [Case("right", "21\n", "42\n"), Case("wrong", "21\n", "43\n")]
    judged = ready.fleet.judge(Program(sources.double, name), cases, timeout=WAIT_SECONDS)
    assert [case.verdict for case in judged.cases] == ["ACCEPTED", "WRONG_ANSWER"], str(judged)


def test_a_hundred_cases_of_one_program_compile_once(ready: Ready) -> None:
    before = ready.count_starts()
    cases = [Case(str(number), f"{number}\n", f"{2 * number}\n") for number in range(100)]
    judged = ready.fleet.judge(Program(LANGUAGES["cpp"].double, "cpp"), cases, timeout=WAIT_SECONDS)
    assert judged.is_accepted, str(judged)
    assert ready.count_starts() - before == 101


@pytest.mark.parametrize("name", ["go", "rust", "java"])
def test_execute_compiles(name: str, ready: Ready) -> None:
    result = ready.fleet.execute(LANGUAGES[name].hello, name)
    assert (result.stdout, result.exit_code, result.did_compile) == ("hello\n", 0, True)
