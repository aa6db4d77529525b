"""Each ready recipe, really built, and a program of its language in a sandbox.

For `make test-images`: it takes long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ImageInvalid
from sandfleet_config.settings import ImagesSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
from sandfleet_worker.sandbox.image.recipe.whole import WholeRecipe, find_ready, join, list_ready, read_recipe
from sandfleet_worker.sandbox.image.starter import READY_RECIPES
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings

pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not os.environ.get("TEST_READY_RECIPES"), reason="takes long: make test-images"),
    pytest.mark.timeout(1800),
]

C = '#include <stdio.h>\\nint main(void) { puts("hello"); return 0; }\\n'
CPP = '#include <iostream>\\nint main() { std::cout << "hello\\\\n"; }\\n'
KEYTOOL = "keytool -list -storepass changeit -keystore /etc/ssl/certs/java/cacerts"
GO = 'package main\\nimport "fmt"\\nfunc main() { fmt.Println("hello") }\\n'
RUST = 'fn main() { println!("hello"); }\\n'
TYPESCRIPT = 'const text: string = "hello"; console.log(text);\\n'
JAVA = 'class Hello { public static void main(String[] a) { System.out.println("hello"); } }\\n'
DATA = """
import matplotlib.pyplot as plt, numpy as np, pandas as pd
from scipy import stats
frame = pd.DataFrame({"x": np.arange(10.0)})
frame.plot(); plt.savefig("/tmp/chart.png")
assert open("/tmp/chart.png", "rb").read(4) == b"\\x89PNG"
assert stats.norm.cdf(0) == 0.5
print("hello" if frame.x.sum() == 45 else frame)
"""

HELLO = {
    "bash": ["bash", "-c", "printf '%s\\n' hello | sed s/x/y/"],
    "gcc": [
        "sh",
        "-c",
        f"cd /tmp && printf '{C}' > c.c && gcc -O2 c.c && ./a.out && printf '{CPP}' > d.cc && g++ d.cc -o d && ./d | wc -l >&2",
    ],
    "go": ["sh", "-c", f"cd /tmp && printf '{GO}' > h.go && go run h.go"],
    "java": ["sh", "-c", f"cd /tmp && printf '{JAVA}' > Hello.java && javac Hello.java && java Hello && {KEYTOOL} >&2"],
    "node": ["node", "-e", "console.log('hello')"],
    "python": ["sh", "-c", "pip --version >&2 && python -c 'print(\"hello\")'"],
    "python-data": ["python3", "-c", DATA],
    "typescript": ["sh", "-c", f"cd /tmp && printf '{TYPESCRIPT}' > h.ts && tsc h.ts && node h.js"],
    "rust": ["sh", "-c", f"cd /tmp && printf '{RUST}' > h.rs && rustc h.rs && ./h"],
}


@pytest.fixture(scope="module")
def images() -> ImagesSettings:
    """Return a store that is kept between runs, as the folder of the variable."""
    return ImagesSettings(root=Path(os.environ["TEST_READY_RECIPES"]))


def new_builder(images: ImagesSettings) -> RecipeBuilder:
    return RecipeBuilder(ImageStore(images.root), images, print)


def read_ready(name: str) -> WholeRecipe:
    return join(read_recipe(find_ready(name)), READY_RECIPES)


def test_each_ready_recipe_has_a_program_here() -> None:
    assert set(HELLO) == set(list_ready())


@pytest.mark.parametrize("name", sorted(HELLO))
def test_a_ready_recipe_says_hello(name: str, images: ImagesSettings, host: HostSettings) -> None:
    began = time.monotonic()
    choice = LockChoice(images.root / "recipes" / f"{name}.lock")
    image = new_builder(images).build(name, read_ready(name), choice, f"recipe:{name}")
    seconds = time.monotonic() - began
    policy = host.policy.model_copy(update={"memory_bytes": 2 << 30, "disk_bytes": 2 << 30})
    with RunscRunner(host.model_copy(update={"images": images, "policy": policy})) as runner:
        spec = SandboxSpec(image=name, command=tuple(HELLO[name]), timeout=300)
        outcome = runner.execute(admit(spec, runner.config)).to_outcome(job_id="test")
    peak = (outcome.usage.memory_peak_bytes or 0) / 1e6
    print(  # noqa: T201  `make test-images` shows it, and the docs have it
        f"{name}: {image.size_bytes / 1e6:.0f} MB, built in {seconds:.0f} s, "
        f"hello in {outcome.duration:.1f} s and {peak:.0f} MB"
    )
    assert outcome.code is ErrorCode.OK, outcome.stderr.text
    assert outcome.stdout.text.splitlines()[0] == "hello"


@pytest.mark.parametrize("name", sorted(HELLO))
def test_a_ready_recipe_comes_out_the_same_again(name: str, images: ImagesSettings) -> None:
    """The first build is that of the test before."""
    first = ImageStore(images.root).resolve(name)
    again = LockChoice(images.root / "recipes" / f"{name}.lock", must_fit=True)
    assert new_builder(images).build(f"{name}-again", read_ready(name), again, f"recipe:{name}").digest == first.digest


def test_packages_that_debian_does_not_have_are_told_together(images: ImagesSettings, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('apt = ["nosuch-one", "bash=0.1", "nosuch-two"]\n')
    with pytest.raises(ImageInvalid) as caught:
        new_builder(images).build("x", join(read_recipe(path), tmp_path), LockChoice(tmp_path / "l.lock"), "recipe:x")
    for said in ("nosuch-one", "nosuch-two", "'0.1' for 'bash'"):
        assert said in caught.value.message


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_nothing(kill: signal.Signals, images: ImagesSettings, tmp_path: Path) -> None:
    choice = LockChoice(images.root / "recipes" / "bash.lock")
    new_builder(images).build("bash", read_ready("bash"), choice, "recipe:bash")
    argv = [str(Path(sys.executable).with_name("sandfleet-worker")), "images", "build", "bash"]
    env = {**os.environ, "SANDFLEET_IMAGES__ROOT": str(images.root)}
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if line.startswith("installing"):
                break
        staging = images.root / "staging"
        wait_until(lambda: list(staging.glob("add-*/tree/usr/bin")), 60, "packages are being unpacked")
        os.killpg(build.pid, kill)
    assert build.returncode != 0
    if kill == signal.SIGINT:
        assert list(staging.iterdir()) == []
    wait_until(lambda: not find_processes(str(staging)), 10, "no process of it is left")
    mounts = Path("/proc/self/mounts").read_text()
    assert str(staging) not in mounts
    assert ImageStore(images.root).resolve("bash").name == "bash"
    del tmp_path

    def is_swept() -> bool:
        """Make an image, which removes what a killed build left; one that is there would not be made."""
        ImageStore(images.root).add("busybox", is_fresh=True)
        return list(staging.iterdir()) == []

    # A tool of the build may live a moment longer, such as dpkg, which its words do not name. It holds the lock.
    wait_until(is_swept, 20, "the staging folder is removed")


def find_processes(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found
