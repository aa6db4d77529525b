"""`Record`, the base class of what the fleet reports."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A value that the fleet reports.

    It is frozen, and ignores unknown fields: an older reader reads newer workers.
    """

    # A spec refuses unknown fields, since the job would run without them.
    model_config = ConfigDict(frozen=True, extra="ignore")
