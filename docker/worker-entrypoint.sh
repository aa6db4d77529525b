#!/bin/sh
# Start sandfleet-worker in a user namespace of its own: root inside, no capability outside.
#
# runsc must make namespaces and mounts. In a user namespace every process may do that with what is
# its own, so the container needs no CAP_SYS_ADMIN; made here once, it costs the sandboxes no
# further one each. Two capabilities are used up here and are gone for the worker: DAC_OVERRIDE
# makes the cgroup folders, SETFCAP lets the kernel map root (Linux 5.12).
set -eu

# The root of a cgroup tree has mode 0555: only the owner of this right can make a folder there.
# What cannot be made is told by the worker itself, which refuses limits that it cannot enforce.
parent=${SANDFLEET_RUNSC__CGROUP_PARENT:-sandfleet}
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/$parent" 2>/dev/null || true
else
    for controller in memory pids cpu cpuacct; do
        if [ -e "/sys/fs/cgroup/$controller/tasks" ]; then
            mkdir -p "/sys/fs/cgroup/$controller/$parent" 2>/dev/null || true
        fi
    done
fi

if ! unshare --user --map-root-user --mount true; then
    echo "worker: no user namespace can be made here; see \"What each privilege is for\" in docs/how-to/compose.md" >&2
    exit 1
fi
exec unshare --user --map-root-user --mount -- sandfleet-worker "$@"
