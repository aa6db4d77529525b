"""numpy and pandas, and Debian 13's Python, prepared: with the ready recipe `python-data`.

For `make test-images`: it takes minutes to build.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conforming import can_be_prepared, open_host
from leftovers import left_behind
from preparedhost import read_version
from programs import Case, read_cases
from sandfleet_config.errors import ImageInvalid, ImageNotFound
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
from sandfleet_worker.sandbox.image.recipe.whole import find_ready, join, read_recipe
from sandfleet_worker.sandbox.image.starter import READY_RECIPES
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.prepared.preparation import Preparation
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings

ROOT = os.environ.get("TEST_READY_RECIPES", "")
IMAGE = "python-data"
MODULES = ("numpy", "pandas")
SAMPLE = 40
"""One case of so many of the conformance suite runs, and all whose command shows a traceback."""
pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(not ROOT, reason="takes long: make test-images"),
    pytest.mark.timeout(1800),
]

PROGRAMS = {
    "product": "print((np.arange(12.0).reshape(3, 4) @ np.ones((4, 2))).tolist())",
    "threads": "a = np.ones((600, 600)); print(float((a @ a).sum()))",
    "solve": "r = np.random.default_rng(1); print(np.linalg.solve(r.random((9, 9)), r.random(9)).round(6).tolist())",
    "seeded": "np.random.seed(3); print(np.random.rand(3).tolist())",
    "warning": "print(np.array([1.0, 2.0]) / 0)",
    "traceback": "np.zeros(3) @ np.zeros(4)",
    "group": "print(pd.DataFrame({'k': list('abab'), 'v': range(4)}).groupby('k').v.sum().to_dict())",
    "merge": "a = pd.DataFrame({'k': [1, 2], 'x': [3, 4]}); print(a.merge(a, on='k').to_string())",
    "dates": "print(pd.date_range('2026-01-31', periods=3, freq='ME').strftime('%F').tolist())",
    "csv": "pd.DataFrame({'x': [1.5, None]}).to_csv('x.csv'); print(pd.read_csv('x.csv').x.isna().sum())",
    "missing": "pd.DataFrame({'x': [1]})['y']",
    "fork": "from multiprocessing import Pool\nwith Pool(2) as pool: print(pool.map(np.sqrt, [4.0, 9.0]))",
    "exit": "import atexit; atexit.register(lambda: print(np.pi)); raise SystemExit(3)",
}


@pytest.fixture
def data_host(host: HostSettings) -> HostSettings:
    """Return settings with the store that is kept between runs; the image is built if it is not there."""
    images = ImagesSettings(root=Path(ROOT))
    store = ImageStore(images.root)
    try:
        store.resolve(IMAGE)
    except ImageNotFound:
        recipe = join(read_recipe(find_ready(IMAGE)), READY_RECIPES)
        choice = LockChoice(images.root / "recipes" / f"{IMAGE}.lock")
        RecipeBuilder(store, images, print).build(IMAGE, recipe, choice, f"recipe:{IMAGE}")
    return host.model_copy(update={"images": images})


def new_case(name: str, program: str) -> Case:
    base = replace(read_cases()[0], files={}, env={}, stdin=b"", masks=(), modules=MODULES)
    return replace(base, name=name, argv=("python3", "-c", f"import numpy as np, pandas as pd\n{program}"))


def test_programs_with_numpy_and_pandas_end_the_same(data_host: HostSettings) -> None:
    cases = [new_case(name, program) for name, program in PROGRAMS.items()]
    with open_host(data_host, IMAGE, cases) as opened:
        assert [line for case in cases for line in opened.compare(case)] == []


def test_threads_of_openblas_are_up_before_the_job_and_seeds_are_its_own(data_host: HostSettings) -> None:
    program = "import os; tasks = len(os.listdir('/proc/self/task')); import numpy; print(tasks, numpy.random.rand())"
    case = replace(new_case("tasks", ""), argv=("python3", "-c", program))
    with open_host(data_host, IMAGE, [case]) as opened:
        told = [opened.run_prepared(case).run.stdout.split() for _ in range(2)]
        assert opened.run_cold(case).run.stdout.split()[0] == b"1"
    assert all(int(tasks) > 1 for tasks, _ in told) or os.cpu_count() == 1
    assert told[0][1] != told[1][1], "both jobs drew the same number"


def test_matplotlib_is_refused_as_the_page_says(data_host: HostSettings) -> None:
    with (
        RunscRunner(data_host) as runner,
        pytest.raises(ImageInvalid, match="an import left a file: /tmp/matplotlib"),
    ):
        runner.try_preparation(runner.images.resolve(IMAGE), Preparation("plots", ("matplotlib.pyplot",)))
    assert not left_behind(data_host)


def test_programs_end_the_same_with_the_python_of_debian_13(data_host: HostSettings) -> None:
    """It keeps the text of `-c` for tracebacks in another way than 3.13.0, which `make test-conformance` may have."""
    with open_host(data_host, IMAGE, read_cases()) as opened:
        version = read_version(opened.runner, IMAGE)
        assert version == (3, 13)
        cases = [case for case in read_cases() if can_be_prepared(case, version)]
        shown = [case for case in cases if case.name.startswith("errors.") and case.name.endswith("[c]")]
        chosen = [case for case in cases if zlib.crc32(case.name.encode()) % SAMPLE == 0] + shown
        assert len(shown) > 3
        assert [line for case in chosen for line in opened.compare(case)] == []
