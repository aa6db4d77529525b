"""The page on files and artifacts, followed to the letter: a chart from a CSV with pandas, 500 times.

For `make test-images`: it needs the ready recipe `python-data`, and takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
from sandfleet_worker.sandbox.image.recipe.whole import find_ready, join, read_recipe
from sandfleet_worker.sandbox.image.starter import READY_RECIPES
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from stage import Stage

ROOT = os.environ.get("TEST_READY_RECIPES", "")
PAGE = Path(__file__).parents[2] / "docs/how-to/files-and-artifacts.md"
JOBS = 500
PNG = b"\x89PNG"
pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not ROOT, reason="takes long: make test-images"),
    pytest.mark.timeout(3600),
]


class Reader:
    """Somebody who has the page, a fleet and an empty folder."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self._env = folder, env
        self._page = PAGE.read_text()
        folder.mkdir()
        for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", self._page, re.DOTALL):
            (folder / name).write_text(text)

    def find_block(self, kind: str, start: str) -> str:
        """Return the block of the page that begins with `start`."""
        found = re.search(rf"```{kind}\n({re.escape(start)}.*?)```", self._page, re.DOTALL)
        assert found is not None, start
        return found[1]

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    def find_charts(self, folder: str) -> list[Path]:
        return [path for path in (self.folder / folder).rglob("*.png") if path.read_bytes().startswith(PNG)]


@pytest.fixture
def reader(stage: Stage, tmp_path: Path) -> Reader:
    images = ImageStore(Path(ROOT))
    if "python-data" not in images.list_references():
        choice = LockChoice(images.root / "recipes" / "python-data.lock")
        recipe = join(read_recipe(find_ready("python-data")), READY_RECIPES)
        RecipeBuilder(images, ImagesSettings(root=images.root), print).build(
            "python-data", recipe, choice, "recipe:python-data"
        )
    stage.images = images.root
    store = tmp_path / "store"
    store.mkdir()
    settings = {"SANDFLEET_STORE__URL": f"file://{store}", "SANDFLEET_REDIS_URL": stage.redis_url}
    stage.start(2, **settings).wait_ready()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Reader(tmp_path / "reader", os.environ | settings | {"PATH": path})


def test_a_newcomer_draws_500_charts_with_what_the_page_says(reader: Reader) -> None:
    once = reader.find_block("console", "$ sandfleet run --image python-data").splitlines()
    told = reader.run("sh", "-c", once[0].removeprefix("$ "))
    assert told.splitlines()[0] == once[1] == "5.0"
    assert len(reader.find_charts("out")) == 1

    line = reader.find_block("json", '{"image": "python-data"').strip()
    (reader.folder / "jobs.jsonl").write_text(f"{line}\n" * JOBS)
    command, said = reader.find_block("console", "$ sandfleet submit jobs.jsonl --batch charts").splitlines()[:2]
    told = reader.run("sh", "-c", command.removeprefix("$ "))
    assert said.partition(" (")[0] in told
    assert len(reader.find_charts("charts")) == JOBS
    assert len((reader.folder / "ids.txt").read_text().split()) == JOBS
    for later in reader.find_block("console", "$ sandfleet artifacts --batch charts").splitlines():
        reader.run("sh", "-c", later.removeprefix("$ "))

    program = reader.find_block("python", "from sandfleet import Fleet, SandboxSpec")
    assert "range(250)" in program
    (reader.folder / "charts.py").write_text(program.replace("range(250)", "range(5)"))
    reader.run(sys.executable, "charts.py")
    assert len(reader.find_charts("charts")) == JOBS + 10
