"""Acts of operators on a fleet. Each act counts its jobs first, and adds a line to the audit."""

from sandfleet.actions.actor import Actor as Actor
from sandfleet.actions.operator import Operator as Operator
from sandfleet.actions.results import ActionResult as ActionResult
from sandfleet.actions.results import HostPreview as HostPreview
from sandfleet.actions.results import JobsPreview as JobsPreview
from sandfleet.actions.results import QueuePreview as QueuePreview
from sandfleet.actions.selection import Selection as Selection
from sandfleet.errors import ActionRefused as ActionRefused
