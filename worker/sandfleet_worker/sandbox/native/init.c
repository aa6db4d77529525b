/* init: PID 1 of every sandbox.
 *
 * Reports over a pipe how the job ended, because runsc's own exit status is wrong: an OOM under
 * systrap is "exit 1", a missing program 128, a killed sentry looks like the program's death. A
 * spare sandbox waits in it for its job. It runs one job and exits, which ends the sandbox and
 * every process in it.
 *
 *     fd 3  control pipe, read: one job message, its files if it has some, then single bytes:
 *           'T' = SIGTERM to every process, 'K' = end every process and report that;
 *           end of file = exit at once (the worker is gone)
 *     fd 4  status pipe, written: text lines, each by one write. init_reports.py lists them,
 *           init_job.py has the layout of the job message and of its files.
 *
 * A sandbox may prepare for its job: the interpreter of the image starts before the job comes, and
 * then becomes it. prepare.h has that part.
 *
 * Where the job has artifacts, init does not exit with it: it ends the job's processes, and then
 * answers the worker's requests to list and to read files. collection.py has those on both pipes.
 *
 * Started by runsc from host descriptors:
 *     runsc ... run --bundle B --pass-fd=<control read end>:3 --pass-fd=<status write end>:4 \
 *         --exec-fd=<this ELF> ID
 *
 * The job could want to forge the report. So while it runs, init has a uid of its own that no job
 * gets (neither root nor the job's), CAP_KILL as its only capability, and every signal blocked: the
 * job can neither signal nor ptrace it, nor open /proc/1/fd. That holds for jobs of uid 0, too,
 * which run without capabilities. A job with artifacts leaves it one more, to read the job's files
 * later, which is not in force while the job runs.
 *
 * Build (no libc: see sys.h; prepare.h is a part of this program):
 *     cc -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie \
 *        -fno-asynchronous-unwind-tables -Wl,-z,noexecstack -Wl,--build-id=none -o init init.c
 */
#include "sys.h"

enum { CONTROL = 3, STATUS = 4 };
enum { MAX_MESSAGE = 1 << 20, MAX_POINTERS = 1 << 17, MAX_GROUPS = 64, MAX_RLIMITS = 16, MAX_PATHS = 64 };
enum { MAGIC = 0x324a4653 /* "SFJ2" */ };
enum { FLAG_WRITABLE_ROOT = 1, FLAG_FILES = 2, FLAG_ARTIFACTS = 4, FLAG_DATASETS = 8, FLAG_PREPARE = 16, ALL_FLAGS = 31 };
enum { MAX_PATH_BYTES = 4096, MAX_DEPTH = 64, CHUNK_BYTES = 1 << 18, ENTRIES_BYTES = 4096 };
/* Stands in an `M` line for the writable root, instead of a writable path's number. */
enum { ROOT_INDEX = 0xffff };
/* A number that no image uses. For a job that asks for it, init takes the one before. */
enum { INIT_UID = 0x7ffffffe };
enum { UMASK = 022 };

enum fault {
    FAULT_LENGTH = 1, FAULT_LAYOUT = 2, FAULT_ROOT = 4, FAULT_PRIVILEGES = 5,
    FAULT_SIGNALS = 6, FAULT_SPAWN = 7, FAULT_PREPARE = 8,
};

enum {
    CAP_CHOWN = 0, CAP_DAC_READ_SEARCH = 2, CAP_KILL = 5, CAP_SETGID = 6, CAP_SETUID = 7, CAP_SETPCAP = 8,
    CAP_SYS_ADMIN = 21, CAP_SYS_RESOURCE = 24,
};
enum { MS_NOSUID = 2, MS_NODEV = 4, MS_BIND = 4096, MS_REC = 16384 };
enum { BYTES_PER_INODE = 2048, LEAST_INODES = 1024 };
enum { CLONE_VM = 0x100, CLONE_VFORK = 0x4000 };
enum { POLLIN = 1, WNOHANG = 1, CLOCK_MONOTONIC = 1 };

struct rlimit { u64 soft, hard; };
/* struct linux_dirent64 */
struct entry { u64 inode, offset; unsigned short length; u8 kind; char name[]; };

struct job {
    u32 flags, uid, gid;
    u64 disk_bytes;
    u32 group_count, groups[MAX_GROUPS];
    u32 rlimit_count, resources[MAX_RLIMITS];
    struct rlimit rlimits[MAX_RLIMITS];
    const char *cwd;
    u32 path_count, path_modes[MAX_PATHS];
    const char *paths[MAX_PATHS];
    char **candidates, **argv, **envp;
    u8 *tail; /* argv and envp as they are in the message, up to its end */
    u64 tail_size;
};

/* Written by the child, which shares our memory until its execve, when it does not get that far. */
struct failure {
    char letter; /* 0: the program runs */
    u32 error, detail;
    int has_detail;
};

static u8 message[MAX_MESSAGE];
static char *pointers[MAX_POINTERS];
static u32 pointers_used;
static struct job job;
static volatile struct failure failure;
static u8 chunk[CHUNK_BYTES] __attribute__((aligned(8))); /* of a file, on its way in or out */
static u8 child_stack[16384] __attribute__((aligned(16)));
static int disk = -1, has_inode_limit;
static u64 started; /* when the program was executed, in microseconds of the sandbox's clock */

/* ---- reports ---- */

static void write_line(struct line *line) {
    put_text(line, "\n");
    /* A worker that went away shows as end of file on the control pipe; SIGPIPE is blocked. */
    while (sys3(NR_write, STATUS, line->text, line->length) == -EINTR) {}
}

static void report(const char *letter, int numbers, u64 first, u64 second) {
    struct line line;
    line.length = 0;
    put_text(&line, letter);
    if (numbers > 0) {
        put_text(&line, " ");
        put_number(&line, first);
    }
    if (numbers > 1) {
        put_text(&line, " ");
        put_number(&line, second);
    }
    write_line(&line);
}

static __attribute__((noreturn)) void report_last(const char *letter, int numbers, u64 first, u64 second) {
    report(letter, numbers, first, second);
    leave(0);
}

static __attribute__((noreturn)) void report_fault(enum fault fault) {
    report_last("P", 1, fault, 0);
}

/* ---- the job message ---- */

static long read_exactly(void *to, u64 size) {
    u64 have = 0;
    while (have < size) {
        long got = sys3(NR_read, CONTROL, (u8 *)to + have, size - have);
        if (got == -EINTR) continue;
        if (got <= 0) return 0;
        have += (u64)got;
    }
    return 1;
}

struct cursor { u8 *at, *end; };

static u64 take_number(struct cursor *cursor, int bytes) {
    u64 number = 0;
    if (cursor->end - cursor->at < bytes) report_fault(FAULT_LAYOUT);
    for (int i = 0; i < bytes; i++) number |= (u64)cursor->at[i] << (8 * i);
    cursor->at += bytes;
    return number;
}

static u32 take_count(struct cursor *cursor, u32 most) {
    u32 count = (u32)take_number(cursor, 4);
    if (count > most) report_fault(FAULT_LAYOUT);
    return count;
}

static char *take_string(struct cursor *cursor) {
    char *text = (char *)cursor->at;
    while (cursor->at < cursor->end && *cursor->at) cursor->at++;
    if (cursor->at == cursor->end) report_fault(FAULT_LAYOUT);
    cursor->at++;
    return text;
}

static char **take_strings(struct cursor *cursor) {
    u32 count = take_count(cursor, MAX_POINTERS);
    if (count >= MAX_POINTERS - pointers_used) report_fault(FAULT_LAYOUT);
    char **list = pointers + pointers_used;
    for (u32 i = 0; i < count; i++) list[i] = take_string(cursor);
    list[count] = 0;
    pointers_used += count + 1;
    return list;
}

static void read_job(void) {
    u8 prefix[4];
    if (!read_exactly(prefix, 4)) leave(0); /* no job came: the pool closed its end */
    u32 length = (u32)prefix[0] | (u32)prefix[1] << 8 | (u32)prefix[2] << 16 | (u32)prefix[3] << 24;
    if (length > MAX_MESSAGE) report_fault(FAULT_LENGTH);
    if (!read_exactly(message, length)) report_fault(FAULT_LENGTH);

    struct cursor cursor = {message, message + length};
    pointers_used = 0;
    if (take_number(&cursor, 4) != MAGIC) report_fault(FAULT_LAYOUT);
    job.flags = (u32)take_number(&cursor, 4);
    if (job.flags & ~(u32)ALL_FLAGS) report_fault(FAULT_LAYOUT);
    job.uid = (u32)take_number(&cursor, 4);
    job.gid = (u32)take_number(&cursor, 4);
    job.disk_bytes = take_number(&cursor, 8);
    job.group_count = take_count(&cursor, MAX_GROUPS);
    for (u32 i = 0; i < job.group_count; i++) job.groups[i] = (u32)take_number(&cursor, 4);
    job.rlimit_count = take_count(&cursor, MAX_RLIMITS);
    for (u32 i = 0; i < job.rlimit_count; i++) {
        job.resources[i] = (u32)take_number(&cursor, 4);
        job.rlimits[i].soft = take_number(&cursor, 8);
        job.rlimits[i].hard = take_number(&cursor, 8);
    }
    job.path_count = take_count(&cursor, MAX_PATHS);
    for (u32 i = 0; i < job.path_count; i++) {
        job.path_modes[i] = (u32)take_number(&cursor, 4);
        job.paths[i] = take_string(&cursor);
    }
    job.cwd = take_string(&cursor);
    job.candidates = take_strings(&cursor);
    job.tail = cursor.at;
    job.tail_size = (u64)(cursor.end - cursor.at);
    job.argv = take_strings(&cursor);
    job.envp = take_strings(&cursor);
    if (cursor.at != cursor.end || !job.candidates[0] || !job.argv[0]) report_fault(FAULT_LAYOUT);
    /* A writable root lies on the disk of the writable paths: without a disk it has no limit. */
    if (job.flags & FLAG_WRITABLE_ROOT && !(job.disk_bytes && job.path_count)) report_fault(FAULT_LAYOUT);
}

/* ---- set-up as guest root ---- */

static void check_mount(long result, u32 index) {
    if (result < 0) report_last("M", 2, (u64)-result, index);
}

/* One tmpfs holds everything that the job can write, so that disk_bytes bounds the sum. It is
 * mounted on the first path, and is the working directory until all is bound: a relative name stays
 * right whatever has been mounted over that path since. The size bounds files that are not empty:
 * each takes a page of 4 KiB at least. nr_inodes bounds empty files and folders. Releases before
 * 20260520 refuse that option (EINVAL). There the memory cgroup alone bounds them. */
static long mount_limited_tmpfs(int limits_inodes) {
    struct line options;
    u64 inodes = job.disk_bytes / BYTES_PER_INODE;
    options.length = 0;
    put_text(&options, "mode=0700,size=");
    put_number(&options, job.disk_bytes);
    if (limits_inodes) {
        put_text(&options, ",nr_inodes=");
        put_number(&options, inodes < LEAST_INODES ? LEAST_INODES : inodes);
    }
    options.text[options.length] = 0;
    return sys(NR_mount, "tmpfs", job.paths[0], "tmpfs", MS_NOSUID | MS_NODEV, options.text);
}

static void mount_disk(void) {
    if (disk >= 0) sys1(NR_close, disk); /* that of the preparation */
    /* gVisor mounts on a plain file without an error. And an earlier mount could hide a path: check
     * all first. */
    for (u32 i = 0; i < job.path_count; i++) {
        long folder = sys4(NR_openat, AT_FDCWD, job.paths[i], O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
        check_mount(folder, i);
        sys1(NR_close, folder);
    }
    long mounted = mount_limited_tmpfs(1);
    has_inode_limit = mounted != -EINVAL;
    check_mount(has_inode_limit ? mounted : mount_limited_tmpfs(0), 0);
    check_mount(sys1(NR_chdir, job.paths[0]), 0);
    disk = (int)sys4(NR_openat, AT_FDCWD, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    check_mount(disk, 0);
}

/* A writable root is an overlay of the image, which stays read-only, and a folder of the disk. An
 * overlay shows no other mounts, so they are bound into it. Afterwards it is our root, while our
 * working directory is still outside of it, on the disk. */
static void enter_writable_root(void) {
    static const char *const bound[] = {"/proc", "root/proc", "/sys", "root/sys", "/dev", "root/dev"};
    struct statx image_root;
    struct line options;
    options.length = 0;
    check_mount(sys(NR_statx, AT_FDCWD, "/", 0, STATX_BASIC_STATS, &image_root), ROOT_INDEX);
    check_mount(sys3(NR_mkdirat, AT_FDCWD, "upper", 0700), ROOT_INDEX);
    check_mount(sys3(NR_mkdirat, AT_FDCWD, "work", 0700), ROOT_INDEX);
    check_mount(sys3(NR_mkdirat, AT_FDCWD, "root", 0700), ROOT_INDEX);
    /* The merged root is the upper folder's in owner and mode. */
    check_mount(sys3(NR_fchmodat, AT_FDCWD, "upper", image_root.mode & 07777), ROOT_INDEX);
    check_mount(sys(NR_fchownat, AT_FDCWD, "upper", image_root.uid, image_root.gid, 0), ROOT_INDEX);
    /* gVisor takes absolute paths only. The first path still names the disk: nothing is mounted
     * over it yet. */
    put_text(&options, "lowerdir=/,upperdir=");
    put_text(&options, job.paths[0]);
    put_text(&options, "/upper,workdir=");
    put_text(&options, job.paths[0]);
    put_text(&options, "/work");
    check_mount(options.length == sizeof options.text ? -EINVAL : 0, ROOT_INDEX);
    options.text[options.length] = 0;
    check_mount(sys(NR_mount, "overlay", "root", "overlay", MS_NOSUID | MS_NODEV, options.text), ROOT_INDEX);
    for (u32 i = 0; i < sizeof bound / sizeof *bound; i += 2)
        check_mount(sys(NR_mount, bound[i], bound[i + 1], 0, MS_BIND | MS_REC, 0), ROOT_INDEX);
    if (job.flags & FLAG_DATASETS) check_mount(sys(NR_mount, "/data", "root/data", 0, MS_BIND | MS_REC, 0), ROOT_INDEX);
    check_mount(sys1(NR_chroot, "root"), ROOT_INDEX);
}

/* Each path gets a folder of the disk. The first path comes last: its mount hides the disk. */
static void bind_writable_paths(void) {
    for (u32 left = job.path_count; left-- > 0;) {
        struct line name;
        name.length = 0;
        put_number(&name, left);
        name.text[name.length] = 0;
        check_mount(sys3(NR_mkdirat, AT_FDCWD, name.text, 0700), left);
        /* The mode before the owner: the reverse needs CAP_FOWNER. */
        check_mount(sys3(NR_fchmodat, AT_FDCWD, name.text, job.path_modes[left]), left);
        check_mount(sys(NR_fchownat, AT_FDCWD, name.text, job.uid, job.gid, 0), left);
        check_mount(sys(NR_mount, name.text, job.paths[left], 0, MS_BIND, 0), left);
    }
}

static void mount_writable_paths(void) {
    if (!job.disk_bytes || !job.path_count) return;
    mount_disk();
    if (job.flags & FLAG_WRITABLE_ROOT) enter_writable_root();
    bind_writable_paths();
    check_mount(sys1(NR_chdir, "/"), 0);
}

/* gVisor lets anyone make a user namespace, and asks for CAP_SYS_ADMIN in the caller's *own* one
 * when it counts RLIMIT_NPROC and mounts tmpfs: `unshare -Ur` would lift pids_limit and disk_bytes.
 * As on Linux it refuses new user namespaces to a chrooted task. So the job runs in a chroot: its
 * writable root, or one that shows the same tree. A test compiles init without this, to show that
 * the attack is real. */
static void forbid_user_namespaces(void) {
#ifndef ALLOW_USER_NAMESPACES
    if (job.flags & FLAG_WRITABLE_ROOT) return;
    if (sys(NR_mount, "/", "/proc", 0, MS_BIND | MS_REC, 0) < 0) report_fault(FAULT_ROOT);
    if (sys1(NR_chroot, "/proc") < 0 || sys1(NR_chdir, "/") < 0) report_fault(FAULT_ROOT);
#endif
}

/* Keeps only our capabilities in `wanted` or `later`; those in `later` are not in force yet. */
static long keep_capabilities(u32 wanted, u32 later) {
    struct { u32 version, pid; } header = {0x20080522, 0};
    struct { u32 effective, permitted, inheritable; } data[2];
    long error = sys2(NR_capget, &header, data);
    if (error < 0) return error;
    data[0].permitted &= wanted | later;
    data[0].effective = data[0].permitted & wanted;
    data[1].effective = data[1].permitted = data[0].inheritable = data[1].inheritable = 0;
    return sys2(NR_capset, &header, data);
}

/* What init needs to mount and to limit for a job that comes after its preparation. */
enum {
    HAND_OVER_CAPABILITIES = 1 << CAP_CHOWN | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_KILL | 1 << CAP_SETGID |
                             1 << CAP_SETUID | 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_RESOURCE,
};

/* What init needs later: to read the files of a job that has artifacts, or to take a job. */
static u32 later_capabilities(void) {
    if (job.flags & FLAG_PREPARE) return HAND_OVER_CAPABILITIES;
    return job.flags & FLAG_ARTIFACTS ? 1u << CAP_DAC_READ_SEARCH : 0;
}

/* gVisor's /dev is a tmpfs of root's without a size: a job of uid 0 could write there past its disk
 * limit. So are the folders in it: net on every release, char since 20260817. /dev/shm has its own
 * limit by now. */
static void keep_from_dev(u32 uid) {
    static u8 entries[4096] __attribute__((aligned(8)));
    long folder = sys4(NR_openat, AT_FDCWD, "/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (folder == -ENOENT) return;
    if (folder < 0 || sys3(NR_fchown, folder, uid, uid) < 0) report_fault(FAULT_PRIVILEGES);
    for (;;) {
        long size = sys3(NR_getdents64, folder, entries, sizeof entries);
        if (size < 0) report_fault(FAULT_PRIVILEGES);
        if (!size) break;
        for (long at = 0; at < size; at += ((struct entry *)(entries + at))->length) {
            struct entry *entry = (struct entry *)(entries + at);
            if (entry->kind != DT_DIR || entry->name[0] == '.' || is_same(entry->name, "shm") || is_same(entry->name, "pts")) continue;
            if (sys(NR_fchownat, folder, entry->name, uid, uid, AT_SYMLINK_NOFOLLOW) < 0) report_fault(FAULT_PRIVILEGES);
        }
    }
    sys1(NR_close, folder);
}

/* Done before the job exists, so that there is no moment in which it could signal us. The pipes
 * change their owner as well: gVisor lets anyone who may open a pipe open it through /proc/1/fd,
 * and a job of uid 0 without capabilities did forge "E 0 0" (seen). */
static void become_init_user(void) {
    u32 uid = job.uid == INIT_UID ? INIT_UID - 1 : INIT_UID;
    for (int fd = CONTROL; fd <= STATUS; fd++)
        if (sys2(NR_fchmod, fd, 0) < 0 || sys3(NR_fchown, fd, uid, uid) < 0) report_fault(FAULT_PRIVILEGES);
    if (disk >= 0 && sys3(NR_fchown, disk, uid, uid) < 0) report_fault(FAULT_PRIVILEGES);
    if (job.uid == 0) keep_from_dev(uid);
    /* As runc does. Else a job that is not root cannot open /dev/stdout and /dev/stderr, which link
     * to these. */
    for (int fd = 0; fd <= 2; fd++) sys3(NR_fchown, fd, job.uid, job.gid);
    if (sys2(NR_prctl, PR_SET_KEEPCAPS, 1) < 0) report_fault(FAULT_PRIVILEGES);
    if (sys3(NR_setresgid, uid, uid, uid) < 0 || sys3(NR_setresuid, uid, uid, uid) < 0) report_fault(FAULT_PRIVILEGES);
    if (keep_capabilities(1u << CAP_KILL | 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_SETPCAP, later_capabilities()) < 0)
        report_fault(FAULT_PRIVILEGES);
}

/* ---- the child, until it is the program ---- */

static __attribute__((noreturn)) void fail_child(char letter, long error, int has_detail, u32 detail) {
    failure.error = (u32)-error;
    failure.detail = detail;
    failure.has_detail = has_detail;
    failure.letter = letter;
    for (;;) sys1(NR_exit, 0);
}

static void set_rlimits(void) {
    for (u32 i = 0; i < job.rlimit_count; i++) {
        long error = sys4(NR_prlimit64, 0, job.resources[i], &job.rlimits[i], 0);
        if (error < 0) fail_child('L', error, 1, job.resources[i]);
    }
}

/* The child of every job inherits this. It is done before *ready*, so that it costs the job of a
 * spare nothing: a system call of a process that is new to systrap takes some 30 microseconds
 * (measured), and these are forty. */
static void bound_privileges(void) {
    long error = 0;
    for (u32 capability = 0; capability < 64 && error >= 0; capability++) {
        long bound = sys2(NR_prctl, PR_CAPBSET_READ, capability);
        if (bound < 0) break; /* past the last one */
        if (bound > 0) error = sys2(NR_prctl, PR_CAPBSET_DROP, capability);
    }
    if (error >= 0) error = sys(NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (error < 0) report_fault(FAULT_PRIVILEGES);
}

static int shares_uid; /* an interpreter with the job's uid lives already */

static void drop_privileges(void) {
    /* A child with only the effective ids of the job can neither be signalled nor be traced by the
     * job's processes. It shares init's memory, so nobody may reach into it. */
    u32 own = shares_uid ? ~0u : job.uid, own_group = shares_uid ? ~0u : job.gid;
    /* setresuid reads these as "leave it unchanged": the job would run as init's own user. */
    long error = job.uid == ~0u || job.gid == ~0u ? -EINVAL : 0;
    if (error >= 0) error = sys2(NR_setgroups, job.group_count, job.groups);
    if (error >= 0) error = sys3(NR_setresgid, own_group, job.gid, own_group);
    if (error >= 0) error = sys3(NR_setresuid, own, job.uid, own);
    /* A change from a uid that is not 0 keeps the capabilities: drop them explicitly. */
    if (error >= 0) error = keep_capabilities(0, 0);
    if (error < 0) fail_child('U', error, 0, 0);
}

/* A descriptor can send a signal for its owner (fcntl(2), F_SETOWN and F_SETSIG). gVisor checks
 * only the uid then, and uid 0 may signal everyone without a capability (pkg/sentry/kernel/fasync):
 * SIGKILL to init would end the sandbox without a report. So a job of uid 0 may set no owner. */
static void forbid_descriptor_owners(void) {
    enum { SET_MODE_FILTER = 1, LOAD = 0x20, EQUAL = 0x15, RETURN = 0x06, ALLOW = 0x7fff0000, ERRNO = 0x00050000 };
    enum { NR = 0, ARCH = 4, ARGUMENT1 = 24, F_SETOWN = 8, F_SETOWN_EX = 15, FIOSETOWN = 0x8901, SIOCSPGRP = 0x8902 };
    struct { unsigned short code; u8 if_true, if_false; u32 value; } filter[] = {
        {LOAD, 0, 0, ARCH},
        {EQUAL, 0, 9, AUDIT_ARCH}, /* other calls than this machine's own do not exist in gVisor */
        {LOAD, 0, 0, NR},
        {EQUAL, 1, 0, NR_fcntl},
        {EQUAL, 3, 6, NR_ioctl},
        {LOAD, 0, 0, ARGUMENT1},
        {EQUAL, 5, 0, F_SETOWN},
        {EQUAL, 4, 3, F_SETOWN_EX},
        {LOAD, 0, 0, ARGUMENT1},
        {EQUAL, 2, 0, FIOSETOWN},
        {EQUAL, 1, 0, SIOCSPGRP},
        {RETURN, 0, 0, ALLOW},
        {RETURN, 0, 0, ERRNO | EPERM},
    };
    struct { unsigned short length; void *filter; } program = {sizeof filter / sizeof *filter, filter};
    long error = sys3(NR_seccomp, SET_MODE_FILTER, 0, &program);
    if (error < 0) fail_child('U', error, 0, 0);
}

/* As execvp(3): try the next candidate after "not here", and remember EACCES. Unlike execvp, tell a
 * missing file from one whose interpreter is missing (both are ENOENT), and from a PATH folder that
 * we may not search. */
static __attribute__((noreturn)) void exec_program(void) {
    long worst = -ENOENT;
    u32 exists = 0;
    for (char **path = job.candidates; *path; path++) {
        long error = sys3(NR_execve, *path, job.argv, job.envp);
        u32 here = sys3(NR_faccessat, AT_FDCWD, *path, F_OK) == 0;
        if (error != -ENOENT && error != -ENOTDIR && error != -EACCES && error != -ENODEV && error != -ESTALE && error != -ETIMEDOUT)
            fail_child('X', error, 1, here);
        if (here > exists || (here == exists && error == -EACCES)) {
            worst = error;
            exists = here;
        }
    }
    fail_child('X', worst, 1, exists);
}

static void give_descriptors(void);

__attribute__((noreturn)) static void run_program(void) {
    u64 none = 0;
    sys0(NR_setsid);
    /* Reset only the mask: the sandbox's kernel made this process with default actions, and nothing
     * changed them. */
    sys4(NR_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
    sys1(NR_umask, UMASK);
    set_rlimits();
    drop_privileges();
    if (job.uid == 0) forbid_descriptor_owners();
    long error = sys1(NR_chdir, job.cwd);
    if (error < 0) fail_child('C', error, 0, 0);
    if (job.flags & FLAG_PREPARE) give_descriptors();
    /* Our own are close-on-exec already. A later runsc might leave others open. */
    else sys3(NR_close_range, 3, ~0u, 0);
    exec_program();
}

/* ---- the child that writes the job's files ---- */

/* Opens the folder of an absolute path, makes those that are missing, and follows no link. Sets
 * `name` to the path's last part. Changes the path. */
static long open_folder_of(char *path, char **name, int makes_missing) {
    long folder = sys4(NR_openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    *name = path + 1;
    for (char *at = path + 1; folder >= 0 && *at; at++) {
        if (*at != '/') continue;
        *at = 0;
        u64 flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
        long next = sys4(NR_openat, folder, *name, flags, 0);
        if (next == -ENOENT && makes_missing) {
            next = sys3(NR_mkdirat, folder, *name, 0777);
            if (next >= 0) next = sys4(NR_openat, folder, *name, flags, 0);
        }
        sys1(NR_close, folder);
        folder = next;
        *name = at + 1;
    }
    return folder;
}

static __attribute__((noreturn)) void fail_files(enum fault fault) {
    fail_child('P', -(long)fault, 0, 0);
}

static void read_file_part(void *to, u64 size) {
    if (!read_exactly(to, size)) fail_child('Q', 0, 0, 0); /* the worker is gone, or will have no job run */
}

static long write_all(long file, const u8 *from, u64 size) {
    for (u64 done = 0; done < size;) {
        long written = sys3(NR_write, file, from + done, size - done);
        if (written == -EINTR) continue;
        if (written < 0) return written;
        done += (u64)written;
    }
    return 0;
}

static long write_file(char *path, u32 mode, u64 size) {
    char *name;
    long folder = open_folder_of(path, &name, 1);
    if (folder < 0) return folder;
    /* It would wait for the reader of a fifo that an image has here. */
    u64 flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    long file = sys4(NR_openat, folder, name, flags, 0600);
    sys1(NR_close, folder);
    if (file < 0) return file;
    long error = 0;
    while (size && error >= 0) {
        u64 part = size < CHUNK_BYTES ? size : CHUNK_BYTES;
        read_file_part(chunk, part);
        error = write_all(file, chunk, part);
        size -= part;
    }
    if (error >= 0) error = sys2(NR_fchmod, file, mode);
    sys1(NR_close, file);
    return error;
}

/* Writes the files as the job's user. No program can meet this process: there is none yet, or this
 * one has only the effective ids of the job. */
static __attribute__((noreturn)) void receive_files(void) {
    static char path[MAX_PATH_BYTES];
    sys1(NR_umask, UMASK);
    drop_privileges();
    for (u32 index = 0;; index++) {
        struct { u32 length, mode; u64 size; } head;
        read_file_part(&head, sizeof head);
        if (!head.length) break;
        if (head.length >= MAX_PATH_BYTES) fail_files(FAULT_LENGTH);
        read_file_part(path, head.length);
        path[head.length] = 0;
        if (path[0] != '/') fail_files(FAULT_LAYOUT);
        long error = write_file(path, head.mode & 07777, head.size);
        if (error < 0) fail_child('F', error, 1, index);
    }
    for (;;) sys1(NR_exit, 0);
}

static int has_files_to_receive;

__attribute__((used)) static void run_child(void) {
    if (has_files_to_receive) receive_files();
    run_program();
}

/* clone(flags, stack) whose child calls run_child on that stack. */
long spawn(u64 flags, void *stack);
#if defined(__x86_64__)
__asm__(".text\nspawn:\n"
        "xor %edx, %edx\nxor %r10d, %r10d\nxor %r8d, %r8d\nmov $56, %eax\nsyscall\n"
        "test %rax, %rax\njz 1f\nret\n"
        "1: xor %ebp, %ebp\ncall run_child\nhlt\n");
#else
__asm__(".text\nspawn:\n"
        "mov x2, #0\nmov x3, #0\nmov x4, #0\nmov x8, #220\nsvc #0\n"
        "cbz x0, 1f\nret\n"
        "1: mov x29, #0\nbl run_child\nbrk #0\n");
#endif

/* As vfork(2): saves an address space (a fork costs a systrap sandbox 15-20 ms of CPU), and returns
 * only when the child has ended or executes the program, or `failure` says why not. */
static long spawn_child(void) {
    long child = spawn(CLONE_VM | CLONE_VFORK | SIGCHLD, child_stack + sizeof child_stack);
    if (child < 0) report_fault(FAULT_SPAWN);
    if (failure.letter == 'Q') leave(0);
    if (failure.letter) {
        char letter[2] = {failure.letter, 0};
        report_last(letter, 1 + failure.has_detail, failure.error, failure.detail);
    }
    return child;
}

static void take_files(void) {
    int status;
    if (!(job.flags & FLAG_FILES)) return;
    has_files_to_receive = 1;
    long child = spawn_child();
    while (sys4(NR_wait4, child, &status, 0, 0) == -EINTR) {}
    has_files_to_receive = 0;
}

/* ---- after the job: its files go to the worker ---- */

static u32 chunk_used;

static void flush(void) {
    if (write_all(STATUS, chunk, chunk_used) < 0) leave(0);
    chunk_used = 0;
}

static void put_bytes(const void *from, u32 size) {
    if (size > CHUNK_BYTES - chunk_used) flush();
    memcpy(chunk + chunk_used, from, size);
    chunk_used += size;
}

static void read_request(void *to, u64 size) {
    if (!read_exactly(to, size)) leave(0);
}

/* Reads a path of a request, which is absolute. */
static char *read_path(void) {
    static char path[MAX_PATH_BYTES];
    u32 length;
    read_request(&length, sizeof length);
    if (!length || length >= MAX_PATH_BYTES) leave(0);
    read_request(path, length);
    path[length] = 0;
    if (path[0] != '/') leave(0);
    return path;
}

struct level { long folder, size, at; u32 path_length; };

static u8 level_entries[MAX_DEPTH][ENTRIES_BYTES] __attribute__((aligned(8)));
static struct level levels[MAX_DEPTH];
static char walked[MAX_PATH_BYTES]; /* the present path below the listed folder, without a zero byte */

static void put_entry(u8 kind, u32 number, u32 length) {
    put_bytes(&kind, 1);
    put_bytes(&number, 4);
    put_bytes(&length, 4);
    put_bytes(walked, length);
}

/* In two steps: with O_DIRECTORY, gVisor follows a link in spite of O_NOFOLLOW unless O_PATH is
 * there, too (tried). */
static long open_folder(long folder, const char *name) {
    long found = sys4(NR_openat, folder, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (found < 0) return found;
    long opened = sys4(NR_openat, found, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    sys1(NR_close, found);
    return opened;
}

/* Puts an entry's name behind its folder's path; returns the new length, 0 if it is too long. */
static u32 append_name(u32 length, const char *name) {
    if (length) walked[length++] = '/';
    for (; *name; name++) {
        if (length == MAX_PATH_BYTES - 1) return 0;
        walked[length++] = *name;
    }
    return length;
}

/* Lists what is below a folder: each entry that is no folder by its kind, and each folder that was
 * left out with an error number. Looks at `most` entries, and goes at most `depth` folders deep. */
static long list_folder(long root, u32 most, u32 depth) {
    struct level *level = levels;
    *level = (struct level){root, 0, 0, 0};
    for (;;) {
        u8 *entries = level_entries[level - levels];
        if (level->at >= level->size) {
            level->size = sys3(NR_getdents64, level->folder, entries, ENTRIES_BYTES);
            level->at = 0;
            if (level->size > 0) continue;
            if (level->size < 0) put_entry('!', (u32)-level->size, level->path_length);
            sys1(NR_close, level->folder);
            if (level == levels) return 0;
            level--;
            continue;
        }
        struct entry *entry = (struct entry *)(entries + level->at);
        level->at += entry->length;
        if (is_same(entry->name, ".") || is_same(entry->name, "..")) continue;
        if (!most--) return -E2BIG; /* the sandbox ends soon, and its descriptors with it */
        u32 length = append_name(level->path_length, entry->name);
        if (!length) {
            put_entry('!', ENAMETOOLONG, level->path_length);
        } else if (entry->kind != DT_DIR) {
            put_entry(entry->kind, 0, length);
        } else if ((u32)(level - levels) + 1 < depth) {
            long folder = open_folder(level->folder, entry->name);
            if (folder < 0)
                put_entry('!', (u32)-folder, length);
            else
                *++level = (struct level){folder, 0, 0, length};
        } else if (depth == MAX_DEPTH) {
            put_entry('!', E2BIG, length);
        }
    }
}

static void answer_list(void) {
    struct { u32 most, depth; } bounds;
    char *name;
    read_request(&bounds, sizeof bounds);
    long folder = open_folder_of(read_path(), &name, 0);
    if (folder >= 0) {
        long root = open_folder(folder, name);
        sys1(NR_close, folder);
        folder = root;
    }
    u32 depth = bounds.depth < MAX_DEPTH ? bounds.depth : MAX_DEPTH;
    put_entry('.', (u32)-(folder < 0 ? folder : list_folder(folder, bounds.most, depth)), 0);
    flush();
}

/* Only a plain file is opened: to open a device or a fifo could do something. */
static long open_file(char *path, struct statx *facts) {
    char *name;
    long folder = open_folder_of(path, &name, 0);
    if (folder < 0) return folder;
    long file = sys(NR_statx, folder, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, facts);
    if (file >= 0 && (facts->mode & S_IFMT) != S_IFREG) file = -EINVAL;
    if (file >= 0) file = sys4(NR_openat, folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
    sys1(NR_close, folder);
    if (file < 0) return file;
    long error = sys(NR_statx, file, "", AT_EMPTY_PATH, STATX_BASIC_STATS, facts);
    if (error >= 0 && (facts->mode & S_IFMT) != S_IFREG) error = -EINVAL;
    if (error >= 0) return file;
    sys1(NR_close, file);
    return error;
}

/* Sends a file's bytes in parts, each after its size, then an empty part and an error number. */
static void send_file(long file, u64 size) {
    u32 error = 0;
    while (size && !error) {
        u32 head = sizeof(u32), room = CHUNK_BYTES - head;
        long got = sys3(NR_read, file, chunk + head, size < room ? size : room);
        if (got == -EINTR) continue;
        if (got <= 0) {
            error = got < 0 ? (u32)-got : ENODATA;
            break;
        }
        *(u32 *)chunk = (u32)got;
        chunk_used = head + (u32)got;
        flush();
        size -= (u64)got;
    }
    u32 end[2] = {0, error};
    put_bytes(end, sizeof end);
}

static void answer_read(void) {
    struct statx facts = {0};
    struct { u32 error, mode; u64 size; } head = {0};
    u64 most;
    read_request(&most, sizeof most);
    long file = open_file(read_path(), &facts);
    if (file < 0) head.error = (u32)-file;
    else if (facts.size > most) head.error = EFBIG;
    head.mode = facts.mode & 07777;
    head.size = facts.size;
    put_bytes(&head, sizeof head);
    flush();
    if (file >= 0 && !head.error) send_file(file, facts.size);
    flush();
    if (file >= 0) sys1(NR_close, file);
}

/* A process may be born while the others are killed: its parent was in fork(2), which gVisor and
 * Linux finish first. Nobody else would end it, so kill again and again, and never block in
 * wait4(2) for it. */
static void end_processes(void) {
    for (;;) {
        int status;
        long ended;
        sys2(NR_kill, -1, SIGKILL);
        while ((ended = sys4(NR_wait4, -1, &status, WNOHANG, 0)) > 0) {}
        if (ended == -ECHILD) return;
        struct { long seconds, nanoseconds; } pause = {0, 1000000};
        sys(NR_ppoll, 0, 0, &pause, 0, 8);
    }
}

/* Nothing of the job is alive any more. */
static __attribute__((noreturn)) void serve_files(void) {
    if (keep_capabilities(later_capabilities(), 0) < 0) leave(0);
    for (;;) {
        u8 request;
        read_request(&request, 1);
        if (request == 'L') answer_list();
        else if (request == 'G') answer_read();
        else if (request != 'T' && request != 'K') leave(0); /* those were sent before the worker knew of the end */
    }
}

/* ---- while the job runs ---- */

static u32 is_disk_full(void) {
    u64 statfs[16]; /* f_type, f_bsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, ... : 15 words on both machines */
    if (disk < 0 || sys2(NR_fstatfs, disk, statfs) < 0) return 0;
    return statfs[3] == 0 || (has_inode_limit && statfs[6] == 0);
}

static u64 now_microseconds(void) {
    u64 time[2] = {0, 0};
    sys2(NR_clock_gettime, CLOCK_MONOTONIC, time);
    return time[0] * 1000000 + time[1] / 1000;
}

/* The report says how long the program ran: the worker may read it late. */
static __attribute__((noreturn)) void report_end_of(int status) {
    u64 ran = now_microseconds() - started;
    struct line line;
    line.length = 0;
    put_text(&line, status & 0x7f ? "G " : "E ");
    put_number(&line, (u64)(status & 0x7f ? status & 0x7f : status >> 8 & 0xff));
    put_text(&line, is_disk_full() ? " 1 " : " 0 ");
    put_number(&line, ran);
    write_line(&line);
    if (!(job.flags & FLAG_ARTIFACTS)) leave(0);
    end_processes();
    serve_files();
}

/* Ends the job before its time. Its end is not its own, so it is not told. */
static __attribute__((noreturn)) void end_job(void) {
    end_processes();
    report("K", 0, 0, 0);
    serve_files();
}

/* Waits for the main process by its id each time: endless dying orphans cannot hide its end. */
static void reap(long main_process) {
    int status;
    for (int i = 0; i < 4096; i++) {
        if (sys4(NR_wait4, main_process, &status, WNOHANG, 0) == main_process) report_end_of(status);
        long ended = sys4(NR_wait4, -1, &status, WNOHANG, 0);
        if (ended == main_process) report_end_of(status); /* it ended between the two calls */
        if (ended <= 0) return;
    }
}

static __attribute__((noreturn)) void supervise(long main_process, long signals) {
    struct { int fd; short events, revents; } polled[2] = {{CONTROL, POLLIN, 0}, {(int)signals, POLLIN, 0}};
    for (;;) {
        reap(main_process);
        polled[0].revents = polled[1].revents = 0;
        sys(NR_ppoll, polled, 2, 0, 0, 8);
        if (polled[1].revents) {
            u8 information[128];
            sys3(NR_read, signals, information, sizeof information);
        }
        if (polled[0].revents) {
            char command = 0;
            long got = sys3(NR_read, CONTROL, &command, 1);
            if (got <= 0 && got != -EINTR) {
                reap(main_process);
                leave(0);
            }
            if (got == 1 && command == 'T') {
                sys2(NR_kill, -1, SIGTERM);
                sys2(NR_kill, -1, SIGCONT); /* a stopped process could not act on it */
            }
            if (got == 1 && command == 'K' && job.flags & FLAG_ARTIFACTS) {
                reap(main_process);
                end_job();
            }
        }
    }
}

#include "prepare.h"

__attribute__((used)) static void start(void) {
    u64 all = ~0ul, child_ended = 1ul << (SIGCHLD - 1);
    sys4(NR_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
    sys3(NR_fcntl, CONTROL, F_SETFD, FD_CLOEXEC);
    sys3(NR_fcntl, STATUS, F_SETFD, FD_CLOEXEC);
    bound_privileges();
    long signals = sys4(NR_signalfd4, -1, &child_ended, 8, O_CLOEXEC);
    if (signals < 0) report_fault(FAULT_SIGNALS);
    report("R", 0, 0, 0);
    read_job();

    mount_writable_paths();
    forbid_user_namespaces();
    become_init_user();

    long main_process;
    if (job.flags & FLAG_PREPARE) {
        main_process = hand_over(signals);
    } else {
        take_files();
        main_process = spawn_child();
    }
    started = now_microseconds();
    if (keep_capabilities(1u << CAP_KILL, later_capabilities()) < 0) report_fault(FAULT_PRIVILEGES);
    /* The /proc files of a process that is not dumpable are root's, which a job of uid 0 is. */
    sys2(NR_prctl, PR_SET_DUMPABLE, 1);
    report("S", 0, 0, 0);
    if (interpreter.has_ended) report_end_of(interpreter.status);
    supervise(main_process, signals);
}

ENTRY(start);
