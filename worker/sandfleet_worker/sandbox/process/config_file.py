"""The bundle's config.json in a sandbox's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.bundle import encode_config

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.runsc import SandboxPaths


def write_config(paths: SandboxPaths, plan: Plan) -> None:
    """Write config.json for a sandbox of `plan`.

    Raises:
        OSError: its folder cannot be written.
    """
    config = encode_config(
        paths.rootfs,
        str(plan.erofs),
        plan.datasets,
        inherits_capabilities=plan.binary.abilities.inherits_capabilities,
        is_prepared=plan.interpreter is not None,
    )
    with open(f"{paths.folder}/config.json", "xb") as file:  # noqa: PTH123  faster than pathlib's
        file.write(config)
