"""The options of every list: its form, how many rows, and whether it is printed again."""

from __future__ import annotations

from dataclasses import dataclass

from sandfleet.cli.rows import Form, FormOption, Limit, NoTrunc, Quiet
from sandfleet.cli.watching import Watch


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The options of a list; `shown` is the form that is printed."""

    form: FormOption = Form.TABLE
    is_quiet: Quiet = False
    is_whole: NoTrunc = False
    limit: Limit = 0
    watch: Watch = None

    @property
    def shown(self) -> Form:
        """The form; ``-q`` is the ids."""
        return Form.IDS if self.is_quiet else self.form
