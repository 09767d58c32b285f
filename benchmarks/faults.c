/* Stands between a process and libc's calls that change files, and lets one of them fail. See faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, SHORT, ERROR }; /* ERROR and above: an errno + ERROR */

static char folder[PATH_MAX];
static long fault_at;
static int fault_kind, record = -1;
static atomic_long calls;

/* From now on, count calls below `path` and list them in `list`; the call `number` fails as `kind` says. */
void faults_begin(const char *path, long number, int kind, const char *list) {
    record = open(list, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    fault_at = number;
    fault_kind = kind;
    strncpy(folder, path, sizeof folder - 1);
}

/* The fault that strikes this call, if it is one below the folder. */
static int strikes(const char *what, const char *path) {
    char line[PATH_MAX + 64];
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return NONE;
    long number = ++calls;
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, what, path + strlen(folder));
    syscall(SYS_write, record, line, length);
    return number == fault_at ? fault_kind : NONE;
}

static int strikes_at(const char *what, int directory, const char *name) {
    char place[64], path[2 * PATH_MAX];
    ssize_t length = 0;
    if (!folder[0]) return NONE;
    if (name[0] != '/') {
        snprintf(place, sizeof place, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        length = readlink(place, path, PATH_MAX);
        if (length < 0) return NONE;
        path[length++] = '/';
    }
    strncpy(path + length, name, PATH_MAX);
    return strikes(what, path);
}

static int strikes_open(const char *what, int descriptor) {
    char place[64], path[PATH_MAX];
    if (!folder[0]) return NONE;
    snprintf(place, sizeof place, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(place, path, sizeof path - 1);
    if (length < 0) return NONE;
    path[length] = 0;
    return strikes(what, path);
}

static int fails(int fault) {
    if (fault == KILL) kill(getpid(), SIGKILL);
    if (fault > ERROR) errno = fault - ERROR;
    return fault > ERROR;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_PATH(type, name, declared, given, directory, path) \
    type name declared { return fails(strikes_at(#name, directory, path)) ? -1 : REAL(name) given; }
#define BY_DESCRIPTOR(name, declared, given) \
    int name declared { return fails(strikes_open(#name, descriptor)) ? -1 : REAL(name) given; }

BY_PATH(int, rename, (const char *from, const char *to), (from, to), AT_FDCWD, from)
BY_PATH(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), a, from)
BY_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
BY_PATH(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path)
BY_PATH(int, unlink, (const char *path), (path), AT_FDCWD, path)
BY_PATH(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path)
BY_PATH(int, rmdir, (const char *path), (path), AT_FDCWD, path)
BY_PATH(int, chmod, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
BY_PATH(int, fchmodat, (int at, const char *path, mode_t mode, int flags), (at, path, mode, flags), at, path)
BY_DESCRIPTOR(fchmod, (int descriptor, mode_t mode), (descriptor, mode))
BY_DESCRIPTOR(fsync, (int descriptor), (descriptor))
BY_DESCRIPTOR(fdatasync, (int descriptor), (descriptor))
BY_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size))
BY_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size))

#define OPEN(name, declared, directory, given) \
    int name declared { \
        va_list rest; \
        va_start(rest, flags); \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        int changes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); \
        return changes && fails(strikes_at(#name, directory, path)) ? -1 : REAL(name) given; \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        int changes = strpbrk(mode, "wa+") != NULL; \
        return changes && fails(strikes_at(#name, AT_FDCWD, path)) ? NULL : REAL(name)(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* A write that is cut, by the file system or by the end of the process, has brought half of its bytes. */
ssize_t write(int descriptor, const void *bytes, size_t size) {
    int fault = strikes_open("write", descriptor);
    if ((fault == SHORT || fault == KILL) && size > 1) {
        ssize_t written = REAL(write)(descriptor, bytes, size / 2);
        if (fault == SHORT) return written;
    }
    return fails(fault) ? -1 : REAL(write)(descriptor, bytes, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    int fault = strikes_open("writev", descriptor);
    if ((fault == SHORT || fault == KILL) && parts[0].iov_len > 1) {
        ssize_t written = REAL(write)(descriptor, parts[0].iov_base, parts[0].iov_len / 2);
        if (fault == SHORT) return written;
    }
    return fails(fault) ? -1 : REAL(writev)(descriptor, parts, count);
}
