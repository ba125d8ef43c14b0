/* An allocator that refuses: loaded before the C library's own, into every process that the launcher starts. It refuses
 * what torch asks for its tensors (its allocator alone calls it from libc10), in workers, from so many bytes on, at
 * random, while a file exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int in_worker(void) {
    static atomic_int known; /* 0: not yet; 1: no; 2: yes */
    if (known == 0) {
        char text[4096];
        int file = open("/proc/self/cmdline", O_RDONLY), found = 1;
        ssize_t length = file < 0 ? 0 : read(file, text, sizeof text);
        if (length > 0 && memmem(text, (size_t)length, "millrace_worker", 15)) found = 2;
        if (file >= 0) close(file);
        known = found;
    }
    return known == 2;
}

static int is_refused(size_t size, const void *caller) {
    static atomic_ulong drawn;
    const char *from = getenv("REFUSE_FROM"), *one_in = getenv("REFUSE_ONE_IN"), *file = getenv("REFUSE_WHILE");
    Dl_info info;
    if (!from || !one_in || !file || size < strtoul(from, NULL, 10) || !in_worker() || access(file, F_OK)) return 0;
    if (!dladdr(caller, &info) || !info.dli_fname || !strstr(info.dli_fname, "libc10")) return 0;
    unsigned long x = (atomic_fetch_add(&drawn, 1) + (unsigned long)getpid()) * 0x9E3779B97F4A7C15UL;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9UL;
    return (x >> 32) % strtoul(one_in, NULL, 10) == 0;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "posix_memalign");
    if (is_refused(size, __builtin_return_address(0))) return ENOMEM;
    return real(out, alignment, size);
}
