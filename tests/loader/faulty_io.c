/* Makes system calls fail, for tests: preload it and say in FAULTY_IO what is to fail, as
 *
 *     call:path:what:skip:times
 *
 * `call` is pread64, write or madvise; `path` is a part of the file's path ("" for any file); `what` is an errno,
 * "short" (at most 1000 bytes at a time) or "eintr" (every second call is interrupted); the first `skip` calls that
 * match are left alone and then `times` fail (0: all). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum { SHORT = -1, EINTR_NOW_AND_THEN = -2 };

static char call_name[32], path_part[256];
static int what, skip, times;
static atomic_int matches;

__attribute__((constructor)) static void configure(void) {
    const char *text = getenv("FAULTY_IO");
    char what_text[32];
    if (!text || sscanf(text, "%31[^:]:%255[^:]:%31[^:]:%d:%d", call_name, path_part, what_text, &skip, &times) != 5)
        call_name[0] = '\0';
    else if (!strcmp(what_text, "short"))
        what = SHORT;
    else if (!strcmp(what_text, "eintr"))
        what = EINTR_NOW_AND_THEN;
    else
        what = atoi(what_text);
}

/* 0, or what is to go wrong now. */
static int fault(const char *call, int fd) {
    char link[64], path[4096];
    if (strcmp(call, call_name))
        return 0;
    if (fd >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 0)
            return 0;
        path[length] = '\0';
        if (!strstr(path, path_part))
            return 0;
    }
    int match = atomic_fetch_add(&matches, 1);
    if (match < skip || (times && match >= skip + times))
        return 0;
    return what == EINTR_NOW_AND_THEN ? (match % 2 ? 0 : EINTR) : what;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

ssize_t pread64(int fd, void *buffer, size_t bytes, off64_t offset) {
    int found = fault("pread64", fd);
    if (found > 0) {
        errno = found;
        return -1;
    }
    if (found == SHORT && bytes > 1000)
        bytes = 1000;
    return ((ssize_t(*)(int, void *, size_t, off64_t))next("pread64"))(fd, buffer, bytes, offset);
}

ssize_t write(int fd, const void *buffer, size_t bytes) {
    int found = fault("write", fd);
    if (found > 0) {
        errno = found;
        return -1;
    }
    return ((ssize_t(*)(int, const void *, size_t))next("write"))(fd, buffer, bytes);
}

int madvise(void *address, size_t bytes, int advice) {
    /* Populating and collapsing; the allocators of the C library and of Python do neither. */
    if (advice == 23 || advice == 25) {
        int found = fault("madvise", -1);
        if (found > 0) {
            errno = found;
            return -1;
        }
    }
    return ((int (*)(void *, size_t, int))next("madvise"))(address, bytes, advice);
}
