"""A fleet in memory for your own tests: the API of `Fleet` without Redis, worker and sandbox.

::

    def handler(spec):
        return SandboxResult(exit_code=0, stdout="42", stderr="", duration=0.1)

    fleet = FakeFleet(handler)
    assert my_code(fleet) == 42
    assert fleet.specs[0].image == "python"
"""

from sandfleet.testing.fake_channel import FakeChannel
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet.testing.fake_job import Ending, Handler, WithArtifacts
from sandfleet.testing.fake_store import FakeStore

__all__ = ["Ending", "FakeChannel", "FakeFleet", "FakeStore", "Handler", "WithArtifacts"]
