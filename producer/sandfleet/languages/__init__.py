"""Languages: source code becomes plain specs, to compile it and to run it.

The names are imported at their first use: most commands run no program of a language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.lazy_names import import_lazily

if TYPE_CHECKING:
    from sandfleet.languages.cases import read_cases
    from sandfleet.languages.judging import Judging, new_failed_judgement, new_result, new_run
    from sandfleet.languages.program import Expansion
    from sandfleet.languages.table import read_table

__all__ = ["Expansion", "Judging", "new_failed_judgement", "new_result", "new_run", "read_cases", "read_table"]

_NAMES: Final = {
    "sandfleet.languages.cases": "read_cases",
    "sandfleet.languages.judging": "Judging new_failed_judgement new_result new_run",
    "sandfleet.languages.program": "Expansion",
    "sandfleet.languages.table": "read_table",
}

__getattr__, __dir__ = import_lazily(__name__, _NAMES)
