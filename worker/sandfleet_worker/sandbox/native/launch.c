/* launch: the program that the worker executes on the host to start runsc.
 *
 *     launch <expected-ppid> <fd> <membarrier: 0 or 1> <batch: 0 or 1> <n>
 *            <cgroup.procs path>*n <kept fd>*
 *
 * 1. Asks to be killed when the worker dies, so that no sandbox outlives a killed worker. The
 *    kernel sends the signal when the *thread* that spawned us ends: spawn from a thread that lives
 *    as long as the worker. Then closes every descriptor from 3 on, but <fd> and those to keep, and
 *    goes to "/".
 * 2. Moves itself into its cgroups (v1: one a controller; v2: one). That waits for an RCU grace
 *    period (11.7 ms measured), so it is done before a job needs the sandbox.
 * 3. Resets signals to their defaults (Python ignores SIGPIPE), and speeds up older releases of
 *    runsc, see `speed_up`.
 * 4. Waits on <fd> for the command: u32 length (little-endian) of the rest, the program's path and
 *    its arguments, each with a zero byte at its end. It reads no further: the next bytes are
 *    init's. End of file means that no job needs the sandbox.
 * 5. Executes the program.
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
        /* Cut a long path, so that the errno and the end of the line always fit. */
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

/* Both make a sandbox of an older runsc faster (before 20260224 and before 20260714), and do
 * nothing else. So a kernel or a container may refuse them.
 *
 * SCHED_BATCH: a batch process that is woken does not preempt the process that woke it. Under
 * systrap the kernel of the sandbox and its stub wake each other at every system call and page
 * fault. If the stub is woken on the same core, it preempts the waker before that sleeps. It then
 * finds a waker that is not asleep, and calls FUTEX_WAKE in a loop until its time slice ends, 2.5
 * to 4 ms (measured with perf: half of all CPU of a short job). Shares of CPU stay as they are.
 *
 * membarrier(2): each start of runsc (20240729) registers for it, and a boot starts runsc four
 * times. Each waits for an RCU grace period in a process with threads: 30 ms a boot. A runsc that
 * sees no membarrier offers none to the program inside. */
static void speed_up(long allow_membarrier, long is_batch) {
    enum { SCHED_BATCH = 3, SECCOMP_SET_MODE_FILTER = 1 };
    enum { LOAD = 0x20, JUMP_EQUAL = 0x15, RETURN = 0x06, ALLOW = 0x7fff0000, ERRNO = 0x00050000, NR = 0, ARCH = 4 };
    int priority = 0;
    if (is_batch) sys3(NR_sched_setscheduler, 0, SCHED_BATCH, &priority);
    if (allow_membarrier) return;
    struct { unsigned short code; u8 if_true, if_false; u32 value; } filter[] = {
        {LOAD, 0, 0, ARCH},
        {JUMP_EQUAL, 0, 3, AUDIT_ARCH},
        {LOAD, 0, 0, NR},
        {JUMP_EQUAL, 0, 1, NR_membarrier},
        {RETURN, 0, 0, ERRNO | ENOSYS},
        {RETURN, 0, 0, ALLOW},
    };
    struct { unsigned short length; void *filter; } program = {sizeof filter / sizeof *filter, filter};
    sys3(NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

enum { MAX_COMMAND = 1 << 16, MAX_ARGUMENTS = 256 };
static u8 command[MAX_COMMAND + 1];
static char *arguments[MAX_ARGUMENTS + 1];

static void read_exactly(long file, u8 *to, u64 size) {
    while (size) {
        long got = sys3(NR_read, file, to, size);
        if (got == -EINTR) continue;
        if (got <= 0) leave(0);
        to += got;
        size -= (u64)got;
    }
}

static void read_command(long file) {
    u8 prefix[4];
    u32 count = 0;
    read_exactly(file, prefix, 4);
    u32 length = (u32)prefix[0] | (u32)prefix[1] << 8 | (u32)prefix[2] << 16 | (u32)prefix[3] << 24;
    if (!length || length > MAX_COMMAND) fail(FAILED_USAGE, "command of a wrong length", 0, -(long)length);
    read_exactly(file, command, length);
    for (u8 *at = command; at < command + length && count < MAX_ARGUMENTS; at++) {
        arguments[count++] = (char *)at;
        while (*at) at++; /* a zero byte follows the buffer */
    }
    arguments[count] = 0;
}

/* Ignored signals stay ignored across execve (Python ignores SIGPIPE), and so does the mask. */
static void reset_signals(void) {
    u64 none = 0;
    u64 action[4] = {0, 0, 0, 0}; /* kernel struct sigaction: handler SIG_DFL; 32 bytes at most on both machines */
    for (int signal = 1; signal <= LAST_SIGNAL; signal++) sys4(NR_rt_sigaction, signal, action, 0, 8);
    sys4(NR_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
}

enum { FIRST_OTHER = 3, MAX_KEPT = 8, LAST_RANGE = 0x7fffffff, RLIMIT_NOFILE = 7 };

/* Closes first..last. Before Linux 5.9 (no close_range(2)) it tries each number up to the limit. */
static void close_range(long first, long last) {
    if (first > last || sys3(NR_close_range, first, last, 0) != -ENOSYS) return;
    u64 limit[2] = {0, 0};
    sys4(NR_prlimit64, 0, RLIMIT_NOFILE, 0, limit);
    if (last >= (long)limit[0]) last = (long)limit[0] - 1;
    for (long file = first; file <= last; file++) sys1(NR_close, file);
}

/* Inherits nothing of the worker's by chance: libraries may open files without O_CLOEXEC. */
static void close_others(long *kept, long count) {
    long first = FIRST_OTHER;
    for (long i = 1; i < count; i++) /* sorts them */
        for (long j = i; j && kept[j - 1] > kept[j]; j--) {
            long greater = kept[j - 1];
            kept[j - 1] = kept[j];
            kept[j] = greater;
        }
    for (long i = 0; i < count; i++)
        if (kept[i] >= first) {
            close_range(first, kept[i] - 1);
            first = kept[i] + 1;
        }
    close_range(first, LAST_RANGE);
}

__attribute__((used)) static void start(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    char **envp = argv + argc + 1;

    long parent = argc > 1 ? parse_number(argv[1]) : -1;
    long file = argc > 2 ? parse_number(argv[2]) : -1;
    long membarrier = argc > 3 ? parse_number(argv[3]) : -1;
    long batch = argc > 4 ? parse_number(argv[4]) : -1;
    long cgroups = argc > 5 ? parse_number(argv[5]) : -1;
    long kept[MAX_KEPT] = {file}, keeps = 1, is_wrong = 0;
    for (long i = 6 + cgroups; cgroups >= 0 && i < argc && keeps < MAX_KEPT; i++) {
        kept[keeps] = parse_number(argv[i]);
        is_wrong |= kept[keeps++] < 0;
    }
    if (parent < 0 || file < 0 || membarrier < 0 || batch < 0 || cgroups < 0 || is_wrong || 6 + cgroups > argc ||
        6 + cgroups + keeps - 1 != argc)
        fail(FAILED_USAGE, "usage: launch <ppid> <fd> <membarrier> <batch> <n> <cgroup.procs>*n <kept fd>*", 0, -EINVAL);

    /* Asked for before the check: one of the two then catches a parent that dies in between. */
    long error = sys2(NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
    if (error < 0) fail(FAILED_PARENT, "parent", 0, error);
    if (sys0(NR_getppid) != parent) fail(FAILED_PARENT, "parent", 0, 0);
    close_others(kept, keeps);
    error = sys1(NR_chdir, "/");
    if (error < 0) fail(FAILED_USAGE, "chdir", "/", error);
    for (long i = 0; i < cgroups; i++) join_cgroup(argv[6 + i]);
    reset_signals();
    speed_up(membarrier, batch);
    read_command(file);
    error = sys3(NR_execve, arguments[0], arguments, envp);
    fail(FAILED_EXEC, "exec", arguments[0], error);
}

ENTRY(start);
