/* A wall clock that can be stepped while a program runs; the monotonic ones stay. LD_PRELOAD it,
 * with STEPPED_CLOCK_FILE naming a file whose first 8 bytes are the step in seconds. Not
 * libfaketime: under 0.9.10 each time.sleep() of Python raises EINVAL, for it has
 * clock_nanosleep(2) wait until an absolute time. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none, *step = &none;

__attribute__((constructor)) static void open_step(void) {
    const char *path = getenv("STEPPED_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        step = map;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += *step;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = (int)syscall(SYS_gettimeofday, now, zone);
    if (result == 0 && now)
        now->tv_sec += *step;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
