/* What test_init.py and test_init_attacks.py run inside a sandbox where busybox has no
 * applet for it. Built with `cc -static`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
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

/* Every process forks for ever; the first one never ends. */
static int bomb(void) {
    printf("bomb\n");
    fflush(stdout);
    while (fork() != -2) {}
    return 0;
}

int main(int argc, char **argv) {
    const struct {
        const char *name;
        int (*run)(void);
    } attacks[] = {
        {"count-forks", count_forks},         {"trace-init", trace_init},
        {"make-namespaces", make_namespaces}, {"show-start", show_start},
        {"leave-daemons", leave_daemons},     {"leave-stopped-children", leave_stopped_children},
        {"bomb", bomb},                       {"signal-init", signal_init_by_descriptor},
    };
    for (unsigned i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
        if (!strcmp(argv[1], attacks[i].name)) return attacks[i].run();
    return 99;
}
