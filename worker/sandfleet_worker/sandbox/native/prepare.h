/* The preparation: the image's interpreter starts before the job comes, and then becomes it.
 *
 * A part of init.c. The first message of such a sandbox has FLAG_PREPARE: it names the interpreter
 * as if it were the job. The second one is the job. The interpreter gets five descriptors beside
 * its streams, which are /dev/null:
 *
 *     5  requests, read: u32 length, u32 flags (0), text cwd, list(text) argv, list(text) envp
 *     6  lines, written: "p" once it is prepared, "t" once it has taken the request and is the job,
 *        "x REASON" if it cannot; it ends then
 *     7, 8, 9  the job's own stdin, stdout and stderr
 *
 * The image's code runs ahead here, and may be hostile. Init has its own uid and locked pipes
 * before, as for a job. No capability is in force while it waits; those that it needs to mount and
 * to limit for the job are kept back (HAND_OVER_CAPABILITIES). It believes nothing of the
 * interpreter but one bounded line at two moments. Before the job is started, each fault ends the
 * sandbox and the worker runs the job in another one: the image's code cannot choose how the job
 * ends. The prepared interpreter has a small tmpfs wherever the job may write; the job's own are
 * mounted over them, so that a descriptor from before does not pass the job's disk limit.
 */
enum { REQUEST = 5, GIVEN = 5, FIRST_FREE = REQUEST + GIVEN, HIGH = 64 };
enum { MAX_LINE = 500, RLIMIT_CPU = 0, CPUCLOCK_SCHED = 2 };

struct interpreter {
    long process, requests, lines; /* our ends of its pipes */
    u32 uid, gid;
    int has_ended, status; /* it took the job and ended before we read that */
};

static struct interpreter interpreter;
static int given[GIVEN] = {-1, -1, 0, 1, 2}; /* what becomes its descriptors from REQUEST on */

/* The preparation has failed, or the interpreter is lost: the worker takes another sandbox. */
static __attribute__((noreturn)) void report_lost(const char *reason, u32 size) {
    struct line line;
    line.length = 0;
    put_text(&line, "N ");
    for (u32 i = 0; i < size && i < MAX_LINE; i++)
        line.text[line.length++] = (u8)reason[i] < ' ' || reason[i] == 0x7f ? '?' : reason[i];
    write_line(&line);
    leave(0);
}

static __attribute__((noreturn)) void report_lost_text(const char *reason) {
    struct line line;
    line.length = 0;
    put_text(&line, reason);
    report_lost(line.text, line.length);
}

static __attribute__((noreturn)) void report_lost_number(const char *reason, u64 number) {
    struct line line;
    line.length = 0;
    put_text(&line, reason);
    put_number(&line, number);
    report_lost(line.text, line.length);
}

/* In the child: its streams are /dev/null, and the job's wait for it above. */
static void give_descriptors(void) {
    long moved[GIVEN], null = sys4(NR_openat, AT_FDCWD, "/dev/null", O_RDWR, 0);
    for (int i = 0; i < GIVEN; i++) moved[i] = sys3(NR_fcntl, given[i], F_DUPFD_CLOEXEC, HIGH);
    for (int fd = 0; fd <= 2; fd++)
        if (sys3(NR_dup3, null, fd, 0) < 0) fail_child('P', -FAULT_PREPARE, 0, 0);
    sys3(NR_close_range, 3, HIGH - 1, 0);
    for (int i = 0; i < GIVEN; i++)
        if (sys3(NR_dup3, moved[i], REQUEST + i, 0) < 0) fail_child('P', -FAULT_PREPARE, 0, 0);
    sys3(NR_close_range, FIRST_FREE, ~0u, 0);
}

static void start_interpreter(void) {
    int requests[2], lines[2];
    /* A job of uid 0 needs two more doors closed, before it runs. */
    if (job.flags != FLAG_PREPARE || !job.uid) report_fault(FAULT_LAYOUT);
    if (sys2(NR_pipe2, requests, O_CLOEXEC) < 0 || sys2(NR_pipe2, lines, O_CLOEXEC | O_NONBLOCK) < 0)
        report_fault(FAULT_PREPARE);
    given[0] = requests[0];
    given[1] = lines[1];
    interpreter = (struct interpreter){spawn_child(), requests[1], lines[0], job.uid, job.gid, 0, 0};
    sys1(NR_close, requests[0]);
    sys1(NR_close, lines[1]);
#ifndef WRITE_FILES_AS_JOB /* a test compiles init so, to show that the attack is real */
    shares_uid = 1;
#endif
    if (keep_capabilities(0, HAND_OVER_CAPABILITIES) < 0) report_fault(FAULT_PRIVILEGES);
}

/* Reaps what has ended; returns whether that was the interpreter. */
static int has_ended(int *status) {
    long ended;
    do ended = sys4(NR_wait4, -1, status, WNOHANG, 0);
    while (ended > 0 && ended != interpreter.process);
    return ended == interpreter.process;
}

static __attribute__((noreturn)) void report_interpreter_end(int status) {
    if (status & 0x7f) report_lost_number("the interpreter was ended by signal ", (u64)(status & 0x7f));
    report_lost_number("the interpreter exited ", (u64)(status >> 8 & 0xff));
}

/* Waits for a line of the interpreter, which is to be `letter` alone. Without one, only for the
 * control pipe. Returns when the line is there, or something to read on the control pipe. */
static void await(char letter, long signals) {
    char line[MAX_LINE + 2];
    u32 length = 0;
    struct { int fd; short events, revents; } polled[3] = {
        {CONTROL, POLLIN, 0}, {(int)signals, POLLIN, 0}, {letter ? (int)interpreter.lines : -1, POLLIN, 0}};
    for (;;) {
        int status = 0;
        int is_over = has_ended(&status); /* before the read: its last line is in the pipe by then */
        if (letter) {
            long got = sys3(NR_read, interpreter.lines, line + length, sizeof line - length);
            if (got > 0) length += (u32)got;
            if (length == sizeof line) report_lost_text("the interpreter's report is too long");
            if (length && line[length - 1] == '\n') {
                if (length == 2 && line[0] == letter) {
                    if (is_over && letter == 'p') report_interpreter_end(status);
                    interpreter.has_ended = is_over;
                    interpreter.status = status;
                    return;
                }
                if (line[0] == 'x' && length > 2) report_lost(line + 2, length - 3);
                report_lost_text("the interpreter's report is not understood");
            }
            if (!got && !is_over) report_lost_text("the interpreter has closed its report without one");
        }
        if (is_over) report_interpreter_end(status);
        sys(NR_ppoll, polled, 3, 0, 0, 8);
        if (polled[1].revents) {
            u8 information[128];
            sys3(NR_read, signals, information, sizeof information);
        }
        if (polled[0].revents) {
            if (!letter) return;
            leave(0); /* the worker is gone: it writes nothing now */
        }
        polled[0].revents = polled[1].revents = polled[2].revents = 0;
    }
}

/* The time that the preparation took does not count for the job. */
static u64 read_cpu_seconds(void) {
    u64 time[2] = {0, 0};
    if (sys2(NR_clock_gettime, ~interpreter.process << 3 | CPUCLOCK_SCHED, time) < 0)
        report_lost_text("the interpreter's CPU time cannot be read");
    return time[0] + 1;
}

/* init needs CAP_SYS_RESOURCE for this: the process has another uid (tried). A hard limit can only
 * be lowered: gVisor asks for the capability of the process that is limited. */
static void limit_interpreter(void) {
    for (u32 i = 0; i < job.rlimit_count; i++) {
        struct rlimit *limit = &job.rlimits[i];
        if (job.resources[i] == RLIMIT_CPU) {
            u64 used = read_cpu_seconds();
            limit->soft += used;
            limit->hard += used;
        }
        if (sys4(NR_prlimit64, interpreter.process, job.resources[i], limit, 0) < 0)
            report_lost_number("the interpreter cannot be limited in resource ", job.resources[i]);
    }
}

static void send_request(void) {
    u32 cwd_size = 1;
    for (const char *at = job.cwd; *at; at++) cwd_size++;
    u64 size = 8 + cwd_size + job.tail_size;
    if (size > CHUNK_BYTES) report_lost_text("the command and environment are too long");
    u32 head[2] = {(u32)size - 4, 0};
    memcpy(chunk, head, 8);
    memcpy(chunk + 8, job.cwd, cwd_size);
    memcpy(chunk + 8 + cwd_size, job.tail, job.tail_size);
    if (write_all(interpreter.requests, chunk, size) < 0) report_lost_text("the interpreter takes no request");
    sys1(NR_close, interpreter.requests);
}

/* Daemons that an import has left are not the interpreter's children any more. */
static u32 count_processes(void) {
    u32 count = 0;
    long size, folder = sys4(NR_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (folder < 0) report_lost_text("/proc cannot be opened");
    while ((size = sys3(NR_getdents64, folder, chunk, CHUNK_BYTES)) > 0)
        for (long at = 0; at < size; at += ((struct entry *)(chunk + at))->length) {
            char first = ((struct entry *)(chunk + at))->name[0];
            count += first >= '0' && first <= '9';
        }
    sys1(NR_close, folder);
    return count;
}

/* Prepares, waits for the job, and makes the interpreter its main process. */
static long hand_over(long signals) {
    start_interpreter();
    await('p', signals);
    if (count_processes() != 2) report_lost_text("an import left a process");
    report("Q", 0, 0, 0);
    await(0, signals);
    read_job();
    if (job.uid != interpreter.uid || job.gid != interpreter.gid || job.flags & (FLAG_WRITABLE_ROOT | FLAG_PREPARE))
        report_fault(FAULT_LAYOUT);
    if (keep_capabilities(HAND_OVER_CAPABILITIES, 0) < 0) report_fault(FAULT_PRIVILEGES);
    mount_writable_paths();
    limit_interpreter();
    /* A process that came while it idled keeps the limits of the preparation. One that comes from now
     * on has those of the job. */
    if (count_processes() != 2) report_lost_text("a process came beside the interpreter");
    if (keep_capabilities(1u << CAP_KILL | 1u << CAP_SETUID | 1u << CAP_SETGID, later_capabilities()) < 0)
        report_fault(FAULT_PRIVILEGES);
    take_files();
    if (keep_capabilities(1u << CAP_KILL, later_capabilities()) < 0) report_fault(FAULT_PRIVILEGES);
    send_request();
    await('t', signals);
    sys1(NR_close, interpreter.lines);
    return interpreter.process;
}
