/* What test_init.py and test_init_attacks.py run inside a sandbox where busybox has no
 * applet for it. Built with `cc -static`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Forks children that sleep until fork fails; prints how many there are. */
static int count_forks(void) {
    int count = 0;
    while (count < 5000) {
        pid_t child = fork();
        if (child < 0) break;
        if (child == 0) {
            pause();
            _exit(0);
        }
        count++;
    }
    printf("forks %d errno %d\n", count, errno);
    return 0;
}

static int trace_init(void) {
    printf("seize %d", ptrace(PTRACE_SEIZE, 1, 0, 0) ? errno : 0);
    printf(" attach %d", ptrace(PTRACE_ATTACH, 1, 0, 0) ? errno : 0);
    int memory = open("/proc/1/mem", O_RDWR);
    printf(" mem %d", memory < 0 ? errno : 0);
    int status = open("/proc/1/fd/4", O_WRONLY);
    printf(" fd %d", status < 0 ? errno : 0);
    int fd = syscall(SYS_pidfd_open, 1, 0);
    printf(" pidfd %d", fd < 0 ? errno : syscall(438 /* pidfd_getfd */, fd, 4, 0) < 0 ? errno : 0);
    printf(" kill %d\n", kill(1, SIGKILL) ? errno : 0);
    return 0;
}

/* A descriptor signals its owner when it can be read: with F_SETSIG 9 a SIGKILL to init, with 19 a
 * SIGSTOP. */
static int signal_init_by_descriptor(void) {
    struct { int type, pid; } owner = {1 /* F_OWNER_PID */, 1};
    int ends[2], one = 1, init = 1;
    if (pipe(ends)) return 1;
    printf("own %d", fcntl(ends[0], F_SETOWN, 1) ? errno : 0);
    printf(" group %d", fcntl(ends[0], F_SETOWN, -1) ? errno : 0);
    printf(" ex %d", fcntl(ends[0], 15 /* F_SETOWN_EX */, &owner) ? errno : 0);
    printf(" fio %d", ioctl(ends[0], 0x8901 /* FIOSETOWN */, &init) ? errno : 0);
    printf(" sio %d\n", ioctl(ends[0], 0x8902 /* SIOCSPGRP */, &init) ? errno : 0);
    fflush(stdout);
    fcntl(ends[0], F_SETSIG, SIGKILL);
    fcntl(ends[0], F_SETFL, O_ASYNC);
    ioctl(ends[0], FIOASYNC, &one);
    if (write(ends[1], "x", 1) != 1) return 1;
    usleep(200000);
    return 9;
}

/* The way around RLIMIT_NPROC and a tmpfs's size: all capabilities, in one's own user namespace. */
static int make_namespaces(void) {
    pid_t child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    printf("clone %d", child < 0 ? errno : 0);
    printf(" unshare %d", unshare(CLONE_NEWUSER | CLONE_NEWNS) ? errno : 0);
    printf(" mount %d ", mount("t", "/tmp", "tmpfs", 0, 0) ? errno : 0);
    fflush(stdout);
    return count_forks();
}

static int show_start(void) {
    sigset_t mask;
    int ignored = 0, blocked = 0;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    for (int number = 1; number < 65; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL) ignored++;
        if (sigismember(&mask, number) == 1) blocked++;
    }
    int descriptors = 0;
    for (int fd = 0; fd < 1024; fd++) descriptors += fcntl(fd, F_GETFD) >= 0;
    printf("ignored %d blocked %d descriptors %d leader %d nnp %d\n", ignored, blocked, descriptors,
           getsid(0) == getpid(), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    return 0;
}

static int kill_init(void) {
    printf("kill %d", kill(1, SIGKILL) ? errno : 0);
    printf(" term %d", kill(1, SIGTERM) ? errno : 0);
    printf(" stop %d\n", kill(1, SIGSTOP) ? errno : 0);
    return 9;
}

static int forge_status(void) {
    const char *paths[] = {"/proc/1/fd/3", "/proc/1/fd/4"};
    for (int i = 0; i < 2; i++) {
        chmod(paths[i], 0666);
        int fd = open(paths[i], O_RDWR);
        printf("open %d ", fd < 0 ? errno : write(fd, "E 0 0 1\n", 8) == 8 ? 0 : errno);
    }
    printf("\n");
    return 9;
}

/* A daemon that forked twice, in its own session, with the job's pipes. */
static int leave_daemons(void) {
    for (int i = 0; i < 20; i++) {
        if (fork() == 0) {
            setsid();
            if (fork() == 0) {
                signal(SIGTERM, SIG_IGN);
                for (;;) pause();
            }
            _exit(0);
        }
    }
    while (wait(NULL) > 0) {}
    return 5;
}

static int leave_stopped_children(void) {
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            for (;;) pause();
        }
        kill(child, SIGSTOP);
    }
    return 6;
}

/* All that it has of the job's streams, and of its own. */
static int close_streams(void) {
    for (int fd = 0; fd <= 2; fd++) close(fd);
    for (int fd = 7; fd <= 9; fd++) close(fd);
    usleep(200000);
    return 4;
}

/* Every process forks for ever; the first one never ends. */
static int bomb(void) {
    printf("bomb\n");
    fflush(stdout);
    while (fork() != -2) {}
    return 0;
}

/* ---- an interpreter that prepares, see native/prepare.h: image code that runs ahead of a job ---- */

enum { REQUEST = 5, REPORT = 6, JOB_STDIN = 7, JOB_STDOUT = 8, JOB_STDERR = 9 };

static void say(int fd, const char *text) {
    if (write(fd, text, strlen(text)) < 0) _exit(98);
}

static void read_all(void *to, size_t size) {
    for (size_t have = 0; have < size;) {
        ssize_t got = read(REQUEST, (char *)to + have, size - have);
        if (got <= 0) _exit(0);
        have += got;
    }
}

static void become_job(void) {
    static char body[1 << 20];
    unsigned length;
    read_all(&length, sizeof length);
    read_all(body, length);
    say(REPORT, "t\n");
    dup2(JOB_STDIN, 0);
    dup2(JOB_STDOUT, 1);
    dup2(JOB_STDERR, 2);
    for (int fd = REQUEST; fd <= JOB_STDERR; fd++) close(fd);
}

static int prepare_well(void) {
    say(REPORT, "p\n");
    become_job();
    return 0;
}

static int forge_reports(void) {
    say(REPORT, "p\nE 0 0 1\nS\n");
    become_job();
    return 0;
}

static int send_endless_report(void) {
    for (;;) say(REPORT, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    return 0;
}

static int give_control_characters(void) {
    say(REPORT, "x \033[31mno\001\xff good\n");
    return 1;
}

static int exit_without_report(void) {
    return 3;
}

static int close_report(void) {
    close(REPORT);
    for (;;) pause();
    return 0;
}

static int die_while_idle(void) {
    say(REPORT, "p\n");
    usleep(100000);
    kill(getpid(), SIGKILL);
    return 0;
}

static int report_later(void) {
    say(REPORT, "p\n");
    usleep(100000);
    say(REPORT, "x I changed my mind\n");
    for (;;) pause();
    return 0;
}

static int take_nothing(void) {
    say(REPORT, "p\n");
    for (;;) pause();
    return 0;
}

static int refuse_the_job(void) {
    unsigned length;
    say(REPORT, "p\n");
    read_all(&length, sizeof length);
    say(REPORT, "x not this one\n");
    return 1;
}

static int lower_limits(void) {
    struct rlimit none = {1, 1};
    setrlimit(RLIMIT_NOFILE, &none);
    return prepare_well();
}

/* A descriptor of /tmp from before the job's own is mounted there. */
static int keep_folder(void) {
    static char block[4096];
    int folder = open("/tmp", O_RDONLY | O_DIRECTORY);
    prepare_well();
    int file = openat(folder, "large", O_CREAT | O_WRONLY, 0600);
    long written = 0;
    for (ssize_t got; written < 64 << 20 && (got = write(file, block, sizeof block)) > 0;) written += got;
    printf("open %d written %ld\n", file >= 0, written);
    return 0;
}

static int leave_daemons_late(void) {
    say(REPORT, "p\n");
    usleep(100000);
    leave_daemons();
    become_job();
    return 0;
}

/* A child that comes when init has counted the processes, to keep the limits of the preparation. */
static int fork_late(void) {
    say(REPORT, "p\n");
    usleep(100000);
    if (fork() == 0)
        for (;;) pause();
    become_job();
    return 0;
}

static int has_request(void) {
    struct pollfd polled = {REQUEST, POLLIN, 0};
    return poll(&polled, 1, 0) > 0;
}

/* Attacks every process but itself until the job starts, above all the one that writes its files. */
static int hunt_others(void) {
    static char found[4096];
    say(REPORT, "p\n");
    pid_t own = getpid(), seen = 0;
    for (int round = 0; !has_request(); round++) {
        for (pid_t pid = 1; pid < 12; pid++) {
            if (pid == own || (kill(pid, 0) == -1 && errno == ESRCH)) continue;
            if (pid > seen) seen = pid;
            char path[64];
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            int memory = open(path, O_RDWR);
            snprintf(path, sizeof path, "/proc/%d/fd/4", pid);
            int status = open(path, O_WRONLY);
            if (memory >= 0 || status >= 0 || ptrace(PTRACE_ATTACH, pid, 0, 0) == 0 || kill(pid, SIGSTOP) == 0)
                snprintf(found, sizeof found, "reached %d ", pid);
        }
        usleep(1000);
        if (round % 100 == 0) {
            char text[8192];
            snprintf(text, sizeof text, "seen %d %s\n", seen, found);
            say(JOB_STDERR, text);
        }
    }
    become_job();
    return 0;
}

struct attack {
    const char *name;
    int (*run)(void);
};

static int find_and_run(const char *name);

/* One of the attacks on init, made while init waits for the preparation. */
static int attack_ahead(const char *name) {
    dup2(JOB_STDOUT, 1);
    find_and_run(name);
    fflush(stdout);
    say(REPORT, "p\n");
    become_job();
    return 9;
}

/* The same, made by the job that the interpreter has become. */
static int attack_as_job(const char *name) {
    prepare_well();
    return find_and_run(name);
}

static int find_and_run(const char *name) {
    const struct attack attacks[] = {
        {"count-forks", count_forks},         {"trace-init", trace_init},
        {"make-namespaces", make_namespaces}, {"show-start", show_start},
        {"leave-daemons", leave_daemons},     {"leave-stopped-children", leave_stopped_children},
        {"bomb", bomb},                       {"signal-init", signal_init_by_descriptor},
        {"prepare-well", prepare_well},       {"forge-reports", forge_reports},
        {"endless-report", send_endless_report}, {"control-characters", give_control_characters},
        {"exit-without-report", exit_without_report}, {"close-report", close_report},
        {"die-while-idle", die_while_idle},   {"report-later", report_later},
        {"take-nothing", take_nothing},       {"refuse-the-job", refuse_the_job},
        {"lower-limits", lower_limits},       {"keep-folder", keep_folder},
        {"leave-daemons-late", leave_daemons_late}, {"hunt-others", hunt_others},
        {"kill-init", kill_init},             {"forge-status", forge_status},
        {"close-streams", close_streams},     {"fork-late", fork_late},
    };
    for (unsigned i = 0; i < sizeof attacks / sizeof *attacks; i++)
        if (!strcmp(name, attacks[i].name)) return attacks[i].run();
    return 99;
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "ahead")) return attack_ahead(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "as-job")) return attack_as_job(argv[2]);
    return argc > 1 ? find_and_run(argv[1]) : 99;
}
