/* launch: what the worker execs on the host to start runsc.
 *
 *     launch <expected-ppid> <n> <cgroup.procs path>*n -- <program> <args>...
 *
 * 1. Asks to be killed when the worker dies, so that no sandbox outlives a killed worker. The kernel sends
 *    the signal when the *thread* that spawned us ends: spawn from a thread that lives as long as the worker.
 * 2. Moves itself into its cgroups (v1: one a controller; v2: one). The child moves itself because attaching
 *    another process from the worker waits for an RCU grace period (11.5 ms measured) in the worker's thread.
 * 3. Puts signals back to their defaults (Python ignores SIGPIPE) and execs the program by its path.
 *
 * On failure one line on stderr and exit 120 (cgroup), 121 (exec), 122 (parent gone), 123 (usage).
 *
 * Build (the same flags as init.c):
 *     cc -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie \
 *        -fno-asynchronous-unwind-tables -Wl,-z,noexecstack -Wl,--build-id=none -o launch launch.c
 */
#include "sys.h"

enum { FAILED_CGROUP = 120, FAILED_EXEC = 121, FAILED_PARENT = 122, FAILED_USAGE = 123 };

static __attribute__((noreturn)) void fail(int code, const char *what, const char *path, long error) {
    struct line line;
    line.length = 0;
    put_text(&line, "launch: ");
    put_text(&line, what);
    if (path) {
        put_text(&line, " ");
        /* A long path is cut so that the errno and the end of the line always fit. */
        for (u32 i = 0; path[i] && i < 400; i++) line.text[line.length++] = path[i];
    }
    put_text(&line, ": ");
    put_number(&line, (u64)-error);
    put_text(&line, "\n");
    sys3(NR_write, 2, line.text, line.length);
    leave(code);
}

/* Returns a decimal number below 2^31, or -1. */
static long parse_number(const char *text) {
    long number = 0;
    if (!*text) return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || number > 0x7fffffff / 10) return -1;
        number = number * 10 + (*text - '0');
    }
    return number;
}

static void join_cgroup(const char *path) {
    long file = sys4(NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (file < 0) fail(FAILED_CGROUP, "cgroup", path, file);
    long written = sys3(NR_write, file, "0", 1);
    if (written != 1) fail(FAILED_CGROUP, "cgroup", path, written);
    sys1(NR_close, file);
}

__attribute__((used)) static void start(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    char **envp = argv + argc + 1;

    long parent = argc > 1 ? parse_number(argv[1]) : -1;
    long cgroups = argc > 2 ? parse_number(argv[2]) : -1;
    long dashes = 3 + cgroups;
    if (parent < 0 || cgroups < 0 || dashes + 1 >= argc || argv[dashes][0] != '-' || argv[dashes][1] != '-' || argv[dashes][2])
        fail(FAILED_USAGE, "usage: launch <ppid> <n> <cgroup.procs>*n -- <program> <args>...", 0, -EINVAL);

    /* Asked for before the check: a parent that dies in between is then caught by one or the other. */
    long error = sys2(NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
    if (error < 0) fail(FAILED_PARENT, "parent", 0, error);
    if (sys0(NR_getppid) != parent) fail(FAILED_PARENT, "parent", 0, 0);
    for (long i = 0; i < cgroups; i++) join_cgroup(argv[3 + i]);
    reset_signals();
    char **program = argv + dashes + 1;
    error = sys3(NR_execve, program[0], program, envp);
    fail(FAILED_EXEC, "exec", program[0], error);
}

ENTRY(start);
