from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_every_setting() -> None:
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts/settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text()
    assert module.rewrite(readme) == readme, "run: python scripts/settings_table.py --write"
