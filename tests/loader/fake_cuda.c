/* A CUDA driver without a device, for tests.
 *
 * Device memory is host memory. Copies are lazy: they happen when an event after them on their stream is waited for
 * or asked about for the second time, so who reads early, or changes the source early, is found out. Counters tell
 * what was called; fake_fail(name, code, skip) makes the call of that name fail once `skip` went well. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713 };
enum { NOT_READY = 600, MAX = 100000 };

typedef struct {
    size_t from_x, from_y;
    unsigned from_kind;
    const void *from_host;
    uint64_t from_device;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_kind;
    void *to_host;
    uint64_t to_device;
    void *to_array;
    size_t to_pitch, width, height;
} Copy2d;

typedef struct {
    Copy2d copy;
    uintptr_t stream;
    int done;
} Pending;

typedef struct {
    uintptr_t stream;
    int until; /* copies before this one must be done */
    int recorded, asked;
} Event;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Pending pending[MAX];
static int pending_count, initialized, live_events, retained, live_pinned, calls_1d, calls_2d;
static struct { char *address; size_t bytes; unsigned flags; } registered[64];
static __thread int depth;
static char fail_name[64];
static int fail_code, fail_skip;

void fake_fail(const char *name, int code, int skip) {
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_code = code;
    fail_skip = skip;
}

long fake_count(const char *what) {
    int count = 0;
    if (!strcmp(what, "events")) return live_events;
    if (!strcmp(what, "contexts")) return retained;
    if (!strcmp(what, "pinned")) return live_pinned;
    if (!strcmp(what, "1d")) return calls_1d;
    if (!strcmp(what, "2d")) return calls_2d;
    for (int i = 0; i < 64; i++)
        if (registered[i].address) count += !strcmp(what, "read-only") ? (registered[i].flags & 8) != 0 : 1;
    return count;
}

static int fails(const char *name) {
    if (strcmp(name, fail_name) || fail_skip-- > 0) return 0;
    fail_name[0] = '\0';
    return fail_code;
}

#define ENTER(name)                                                          \
    int failure = fails(name);                                               \
    if (failure) return failure;                                             \
    if (!initialized) return NOT_INITIALIZED;                                \
    if (strncmp(name, "cuDevice", 8) && strncmp(name, "cuCtxPush", 9) && !depth) return INVALID_CONTEXT

int cuInit(unsigned flags) {
    int failure = fails("cuInit");
    if (failure) return failure;
    initialized = 1;
    return flags ? INVALID_VALUE : 0;
}

int cuDeviceGet(int *device, int ordinal) {
    ENTER("cuDeviceGet");
    *device = ordinal;
    return ordinal < 2 ? 0 : 101;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    *context = (void *)(uintptr_t)(device + 1);
    retained++;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    retained--;
    return device < 2 ? 0 : 101;
}

int cuCtxPushCurrent_v2(void *context) {
    ENTER("cuCtxPushCurrent");
    depth++;
    return context ? 0 : INVALID_CONTEXT;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    *context = NULL;
    return 0;
}

int cuMemHostRegister_v2(void *address, size_t bytes, unsigned flags) {
    ENTER("cuMemHostRegister");
    for (int i = 0; i < 64; i++)
        if (registered[i].address == address) return ALREADY_REGISTERED;
    for (int i = 0; i < 64; i++)
        if (!registered[i].address) {
            registered[i].address = address;
            registered[i].bytes = bytes;
            registered[i].flags = flags;
            return 0;
        }
    return 2;
}

int cuMemHostUnregister(void *address) {
    ENTER("cuMemHostUnregister");
    for (int i = 0; i < 64; i++)
        if (registered[i].address == address) {
            registered[i].address = NULL;
            return 0;
        }
    return NOT_REGISTERED;
}

int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    ENTER("cuMemHostAlloc");
    *address = malloc(bytes);
    live_pinned++;
    return *address ? 0 : 2;
}

int cuMemFreeHost(void *address) {
    ENTER("cuMemFreeHost");
    free(address);
    live_pinned--;
    return 0;
}

static int submit(Copy2d copy, void *stream) {
    pthread_mutex_lock(&lock);
    int full = pending_count == MAX;
    if (!full) pending[pending_count++] = (Pending){copy, (uintptr_t)stream, 0};
    pthread_mutex_unlock(&lock);
    return full ? 2 : 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    ENTER("cuMemcpyHtoDAsync");
    calls_1d++;
    Copy2d copy = {.from_host = from, .to_device = to, .width = bytes, .height = 1};
    return submit(copy, stream);
}

int cuMemcpy2DAsync_v2(const Copy2d *copy, void *stream) {
    ENTER("cuMemcpy2DAsync");
    calls_2d++;
    if (copy->from_kind != 1 || copy->to_kind != 2 || copy->from_pitch < copy->width || copy->to_pitch < copy->width)
        return INVALID_VALUE;
    return submit(*copy, stream);
}

int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    ENTER("cuEventCreate");
    *event = calloc(1, sizeof(Event));
    live_events++;
    return 0;
}

int cuEventRecord(void *event, void *stream) {
    ENTER("cuEventRecord");
    pthread_mutex_lock(&lock);
    *(Event *)event = (Event){(uintptr_t)stream, pending_count, 1, 0};
    pthread_mutex_unlock(&lock);
    return 0;
}

static void flush(const Event *event) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < event->until; i++) {
        Pending *one = &pending[i];
        if (one->done || one->stream != event->stream) continue;
        for (size_t row = 0; row < one->copy.height; row++)
            memcpy((char *)(uintptr_t)one->copy.to_device + row * one->copy.to_pitch,
                   (const char *)one->copy.from_host + row * one->copy.from_pitch, one->copy.width);
        one->done = 1;
    }
    pthread_mutex_unlock(&lock);
}

int cuEventQuery(void *event) {
    ENTER("cuEventQuery");
    Event *found = event;
    if (found->recorded && !found->asked++) return NOT_READY;
    flush(found);
    return 0;
}

int cuEventSynchronize(void *event) {
    ENTER("cuEventSynchronize");
    flush(event);
    return 0;
}

int cuStreamSynchronize(void *stream) {
    ENTER("cuStreamSynchronize");
    Event all = {(uintptr_t)stream, pending_count, 1, 1};
    flush(&all);
    return 0;
}

int cuEventDestroy_v2(void *event) {
    free(event);
    live_events--;
    return 0;
}

int cuGetErrorName(int code, const char **name) {
    static const struct { int code; const char *name; } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {101, "CUDA_ERROR_INVALID_DEVICE"},
        {201, "CUDA_ERROR_INVALID_CONTEXT"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code) {
            *name = names[i].name;
            return 0;
        }
    return INVALID_VALUE;
}
