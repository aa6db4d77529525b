/* Raw Linux system calls for init.c and launch.c on x86-64 and arm64, without a libc.
 *
 * runsc starts init from a host file descriptor (--exec-fd). A static glibc program dies there in
 * _dl_get_origin, because /proc/self/exe does not name a file of the guest. Without a libc both
 * programs also take only a few KB, and each sandbox executes both.
 */
#ifndef SANDFLEET_SYS_H
#define SANDFLEET_SYS_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

#if defined(__x86_64__)

enum {
    NR_read = 0, NR_write = 1, NR_close = 3, NR_rt_sigaction = 13, NR_rt_sigprocmask = 14, NR_ioctl = 16,
    NR_execve = 59, NR_exit = 60, NR_wait4 = 61, NR_kill = 62, NR_fcntl = 72, NR_chdir = 80, NR_fchmod = 91,
    NR_fchown = 93, NR_umask = 95,
    NR_getppid = 110, NR_setsid = 112, NR_setgroups = 116, NR_setresuid = 117, NR_setresgid = 119,
    NR_capget = 125, NR_capset = 126, NR_fstatfs = 138, NR_prctl = 157, NR_chroot = 161, NR_mount = 165,
    NR_sched_setscheduler = 144, NR_getdents64 = 217, NR_clock_gettime = 228, NR_exit_group = 231, NR_openat = 257, NR_mkdirat = 258, NR_fchownat = 260, NR_fchmodat = 268,
    NR_faccessat = 269, NR_ppoll = 271, NR_signalfd4 = 289, NR_dup3 = 292, NR_pipe2 = 293, NR_prlimit64 = 302, NR_seccomp = 317, NR_membarrier = 324, NR_statx = 332,
    NR_close_range = 436,
};
#define O_DIRECTORY 0200000
#define O_NOFOLLOW 0400000
#define AUDIT_ARCH 0xc000003eu

static inline __attribute__((always_inline)) long sys5(long nr, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel enters with argc, argv, NULL, envp at the stack pointer. */
#define ENTRY(function)                                                                                        \
    __asm__(".text\n.globl _start\n_start:\n"                                                                  \
            "xor %ebp, %ebp\nmov %rsp, %rdi\nand $-16, %rsp\ncall " #function "\nhlt\n")

#elif defined(__aarch64__)

enum {
    NR_dup3 = 24, NR_fcntl = 25, NR_ioctl = 29, NR_mkdirat = 34, NR_mount = 40, NR_fstatfs = 44, NR_faccessat = 48, NR_chdir = 49,
    NR_chroot = 51, NR_fchmod = 52, NR_fchmodat = 53, NR_fchownat = 54, NR_fchown = 55, NR_openat = 56, NR_close = 57, NR_pipe2 = 59, NR_getdents64 = 61, NR_read = 63,
    NR_write = 64, NR_ppoll = 73, NR_signalfd4 = 74, NR_capget = 90, NR_capset = 91, NR_exit = 93, NR_exit_group = 94,
    NR_kill = 129, NR_rt_sigaction = 134, NR_rt_sigprocmask = 135, NR_setresuid = 147, NR_setresgid = 149,
    NR_setsid = 157, NR_setgroups = 159, NR_umask = 166, NR_prctl = 167,
    NR_getppid = 173, NR_clock_gettime = 113, NR_sched_setscheduler = 119, NR_execve = 221, NR_wait4 = 260, NR_prlimit64 = 261,
    NR_seccomp = 277, NR_membarrier = 283, NR_statx = 291, NR_close_range = 436,
};
#define O_DIRECTORY 040000
#define O_NOFOLLOW 0100000
#define AUDIT_ARCH 0xc00000b7u

static inline __attribute__((always_inline)) long sys5(long nr, long a, long b, long c, long d, long e) {
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}

#define ENTRY(function)                                                                                        \
    __asm__(".text\n.globl _start\n_start:\n"                                                                  \
            "mov x29, #0\nmov x30, #0\nmov x0, sp\nbl " #function "\nbrk #0\n")

#else
#error "sandfleet's init and launch know x86-64 and arm64 only"
#endif

#define sys(nr, a, b, c, d, e) sys5((nr), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define sys4(nr, a, b, c, d) sys(nr, a, b, c, d, 0)
#define sys3(nr, a, b, c) sys(nr, a, b, c, 0, 0)
#define sys2(nr, a, b) sys(nr, a, b, 0, 0, 0)
#define sys1(nr, a) sys(nr, a, 0, 0, 0, 0)
#define sys0(nr) sys(nr, 0, 0, 0, 0, 0)

enum {
    EPERM = 1, ENOENT = 2, EINTR = 4, E2BIG = 7, ECHILD = 10, EACCES = 13, ENODEV = 19, ENOTDIR = 20, EINVAL = 22, EFBIG = 27,
    ENAMETOOLONG = 36, ENOSYS = 38, ENODATA = 61, ETIMEDOUT = 110, ESTALE = 116,
};
enum {
    O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_TRUNC = 01000, O_NONBLOCK = 04000, O_CLOEXEC = 02000000, O_PATH = 010000000,
};
enum { STATX_BASIC_STATS = 0x7ff };
enum { AT_FDCWD = -100, AT_SYMLINK_NOFOLLOW = 0x100, AT_EMPTY_PATH = 0x1000 };
enum { S_IFMT = 0170000, S_IFREG = 0100000, DT_UNKNOWN = 0, DT_DIR = 4 };
enum { F_SETFD = 2, F_DUPFD_CLOEXEC = 1030, FD_CLOEXEC = 1, F_OK = 0 };
enum { SIG_SETMASK = 2, SIGKILL = 9, SIGTERM = 15, SIGCHLD = 17, SIGCONT = 18, LAST_SIGNAL = 64 };
enum { PR_SET_PDEATHSIG = 1, PR_SET_DUMPABLE = 4, PR_SET_KEEPCAPS = 8, PR_CAPBSET_READ = 23, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38 };

/* The part of the kernel's struct statx that we read. It is 256 bytes long on both machines. */
struct statx {
    u32 mask, block_size;
    u64 attributes;
    u32 links, uid, gid;
    unsigned short mode, unused;
    u64 inode, size;
    u8 rest[208];
};
_Static_assert(sizeof(struct statx) == 256, "struct statx");

/* The compiler may call these two for loops and copies, even in freestanding code. */
__attribute__((used, optimize("no-tree-loop-distribute-patterns"))) void *memset(void *to, int byte, u64 size) {
    for (u64 i = 0; i < size; i++) ((u8 *)to)[i] = (u8)byte;
    return to;
}

__attribute__((used, optimize("no-tree-loop-distribute-patterns"))) void *memcpy(void *to, const void *from, u64 size) {
    for (u64 i = 0; i < size; i++) ((u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}

static inline __attribute__((noreturn)) void leave(int code) {
    for (;;) sys1(NR_exit_group, code);
}

/* A line of text, built on the stack. One write(2) is atomic: it is shorter than PIPE_BUF. */
struct line {
    u32 length;
    char text[512];
};

static inline void put_text(struct line *line, const char *text) {
    while (*text && line->length < sizeof line->text) line->text[line->length++] = *text++;
}

static inline int is_same(const char *left, const char *right) {
    while (*left && *left == *right) left++, right++;
    return *left == *right;
}

static inline void put_number(struct line *line, u64 number) {
    char digits[21];
    int at = 20;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    put_text(line, digits + at);
}

#endif
