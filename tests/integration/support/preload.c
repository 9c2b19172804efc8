/* Preloaded into a process, and set by its environment.
 *
 * CLOCK_OFFSET_MS: the clock of the process is off by so much.
 * SYNCED_DIR: each file that the process flushes has a record of its name in this directory: the length of the file when the last flush
 * began, 8 bytes, little endian. That is what a loss of power leaves for certain. No flush ends while the directory has a file `stall`. */
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t offset_ms;
static const char *synced_dir;

__attribute__((constructor)) static void read_environment(void) {
    const char *offset = getenv("CLOCK_OFFSET_MS");
    offset_ms = offset ? atoll(offset) : 0;
    synced_dir = getenv("SYNCED_DIR");
    if (synced_dir) synced_dir = realpath(synced_dir, NULL);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_nsec + offset_ms % 1000 * 1000000;
        at->tv_sec += offset_ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
        at->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return result;
}

static void wait_for_disk(void) {
    char stall[4096];
    snprintf(stall, sizeof stall, "%s/stall", synced_dir);
    while (access(stall, F_OK) == 0) usleep(1000);
}

static void record(int fd, int64_t length) {
    char link[64], file[4096], name[8192];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t end = readlink(link, file, sizeof file - 1);
    if (end <= 0) return;
    file[end] = 0;
    snprintf(name, sizeof name, "%s/%s", synced_dir, basename(file));
    int out = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (out < 0) return;
    if (pwrite(out, &length, sizeof length, 0) != sizeof length) abort();
    close(out);
}

static int flush(long number, int fd) {
    struct stat before;
    int recorded = synced_dir && fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    if (recorded) wait_for_disk();
    int result = syscall(number, fd);
    if (recorded && result == 0) record(fd, before.st_size);
    return result;
}

int fdatasync(int fd) { return flush(SYS_fdatasync, fd); }
int fsync(int fd) { return flush(SYS_fsync, fd); }
