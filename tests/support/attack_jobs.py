"""Jobs that attack the sandbox or reach a limit, like the demo's: each says how it must end."""

from __future__ import annotations

from jobs import DemoJob, python, says, shell

KILL_INIT = """
    import fcntl, os
    reader, writer = os.pipe()
    for ask, value in ((fcntl.F_SETOWN, 1), (10, 9)):  # F_SETSIG: what reaches the owner where there is something to read
        try:
            fcntl.fcntl(reader, ask, value)
        except OSError as error:
            print("refused:", error.strerror)
    os.write(writer, b"x")
"""
THREAD_BOMB = """
    import os, threading, time
    try:
        while True:
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    except RuntimeError:
        print("no more threads", flush=True)
    os._exit(5)
"""
LEAVES_DAEMONS = """
    import os, time
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
    os._exit(4)
"""
# Not `sleep`: without grace SIGTERM and SIGKILL come together, and either may end it.
NEVER_ENDS = "trap '' TERM; while :; do sleep 1; done"
LITTLE_MEMORY = {"resources": {"memory_bytes": "64MiB", "disk_bytes": "200MiB"}}
ROOT = {"security": {"user": "0:0"}}
LITTLE_DISK = {"resources": {"disk_bytes": "8MiB"}}
ATTACKS = [
    DemoJob("kills all it may", "EXIT_NONZERO", shell("kill -9 1; kill -STOP 1; kill -9 -1; exit 9"), 9),
    DemoJob("kills all it may, as root", "EXIT_NONZERO", shell("kill -9 1; kill -9 -1; exit 9"), 9, more=ROOT),
    DemoJob("owns a pipe in init's name, as root", "OK", python(KILL_INIT), 0, more=ROOT, check=says("refused")),
    DemoJob(
        "is root without capabilities",
        "OK",
        shell("id -u; grep CapEff /proc/self/status"),
        0,
        more=ROOT,
        check=says("0" * 16),
    ),
    DemoJob(
        "forges a report", "EXIT_NONZERO", shell("for n in 3 4; do echo 'E 0 0 1' >/proc/1/fd/$n; done; exit 8"), 8
    ),
    DemoJob(
        "thread bomb",
        "EXIT_NONZERO",
        python(THREAD_BOMB),
        5,
        more={"resources": {"pids_limit": 20}},
        check=says("no more"),
    ),
    DemoJob("leaves daemons", "EXIT_NONZERO", python(LEAVES_DAEMONS), 4),
    DemoJob("closes its output", "EXIT_NONZERO", shell("exec <&- >&- 2>&-; exit 6"), 6),
    DemoJob(
        "files count as memory",
        "OUT_OF_MEMORY",
        shell("dd if=/dev/zero of=/tmp/x bs=1M count=150; exit 1"),
        more=LITTLE_MEMORY,
    ),
    DemoJob("fills /dev/shm", "DISK_LIMIT", shell("dd if=/dev/zero of=/dev/shm/x bs=1M"), 1, more=LITTLE_DISK),
    DemoJob("fills a disk and ends well", "OK", shell("dd if=/dev/zero of=/tmp/x bs=1M; exit 0"), 0, more=LITTLE_DISK),
    DemoJob("writes the image", "EXIT_NONZERO", shell("touch /etc/x && exit 0; exit 7"), 7),
    DemoJob(
        "writes its own root",
        "OK",
        python("open('/var/tmp/x', 'w').write('kept'); print(open('/var/tmp/x').read())"),
        0,
        more={"security": {"read_only_rootfs": False}},
        check=says("kept"),
    ),
    DemoJob(
        "floods stderr", "OUTPUT_LIMIT", shell("yes >&2"), more={"output": {"max_bytes": 1000, "on_limit": "kill"}}
    ),
    DemoJob(
        "a megabyte is counted",
        "OK",
        shell("yes | head -c 1000000"),
        0,
        more={"output": {"max_bytes": 1000}},
        check=lambda outcome: outcome.stdout.total_bytes == 1_000_000 and len(outcome.stdout.bytes) == 1000,
    ),
    DemoJob("aborts", "SIGNALED", python("import os; os.abort()"), signal=6),
    DemoJob("terminates itself", "SIGNALED", shell("kill -TERM $$"), signal=15),
    DemoJob("killed child", "OK", shell("sleep 60 & kill -9 $!; wait $!; echo after $?"), 0, check=says("after 137")),
    DemoJob("no grace", "TIMEOUT", shell(NEVER_ENDS), timed_out="hard", more={"timeout": 1, "grace": 0}),
    DemoJob("opens no device", "EXIT_NONZERO", shell("cat /dev/mem /dev/kmsg /dev/sda; exit 3"), 3),
    DemoJob("least of everything", "OK", ["true"], 0, image="busybox", more={"resources": {"pids_limit": 1}}),
    DemoJob("in a small image", "OK", ["echo", "hello"], 0, image="busybox", check=says("hello")),
    DemoJob("is cancelled", "CANCELLED", ["sleep", "60"]),
]
"""Of attacks and limits, beside the demo's jobs."""
