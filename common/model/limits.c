/*
 * limits.c - the memory that a process may still take: see limits.h.
 */
#include "model/limits.h"

#include "util.h"

#include <sys/resource.h>

size_t kilobytes_in(const char *path, const char *form) {
    FILE *f = fopen(path, "r");
    unsigned long long kb = 0;
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, form, &kb) == 1) break;
    if (f) fclose(f);
    return (size_t)kb * 1024;
}

/* The number after `key` in a file of a control group, or the file's only number where key is "".
   False: there is no such file or number ("max": no limit). */
static bool read_count(const char *dir, const char *name, const char *key, size_t *count) {
    char *path = path_join(dir, name), line[256];
    FILE *f = fopen(path, "r");
    const size_t n = strlen(key);
    unsigned long long value;
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = !strncmp(line, key, n) && sscanf(line + n, "%llu", &value) == 1;
    if (f) fclose(f);
    free(path);
    if (found) *count = (size_t)value;
    return found;
}

/* The names of a version's files. */
typedef struct {
    const char *mount, *limit, *used, *droppable;
} Version;

static const Version versions[] = {
    {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "},
    {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file "},
};

/* What the limit of the group in dir leaves; SIZE_MAX: it has none. */
static size_t left_in_group(const Version *v, const char *dir) {
    size_t limit, used, droppable = 0;
    if (!read_count(dir, v->limit, "", &limit) || !read_count(dir, v->used, "", &used))
        return SIZE_MAX;
    read_count(dir, "memory.stat", v->droppable, &droppable);
    used -= droppable < used ? droppable : used;
    return used < limit ? limit - used : 0;
}

/* The least that the group `name` and those above it leave. In a container the name may be that of
   the machine outside, which does not exist here; the groups that exist count. */
static size_t left_in_groups(const Version *v, const char *root, const char *name) {
    size_t least = SIZE_MAX;
    Str dir = {0};
    str_printf(&dir, "%s%s%s", root, v->mount, name);
    const size_t top = strlen(root) + strlen(v->mount);
    for (;;) {
        const size_t left = left_in_group(v, dir.s);
        if (left < least) least = left;
        if (dir.n <= top) break;
        while (dir.n > top && dir.s[dir.n - 1] != '/') dir.n--;
        while (dir.n > top && dir.s[dir.n - 1] == '/') dir.n--;
        dir.s[dir.n] = 0;
    }
    free(dir.s);
    return least;
}

/* Each line of /proc/self/cgroup is NUMBER:CONTROLLERS:GROUP; of version 2, 0::GROUP. */
static size_t left_by_groups(const char *root) {
    char line[4096];
    size_t least = SIZE_MAX;
    Str path = {0};
    str_printf(&path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path.s, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        const bool second = !controllers[1];
        if (!second && !strstr(controllers, "memory")) continue;
        const size_t left = left_in_groups(&versions[second ? 0 : 1], root, group);
        if (left < least) least = left;
    }
    if (f) fclose(f);
    free(path.s);
    return least;
}

/* What RLIMIT_AS leaves of the address space. */
static size_t left_of_addresses(const char *status) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
    const size_t used = kilobytes_in(status, "VmSize: %llu kB");
    return used < limit.rlim_cur ? limit.rlim_cur - used : 0;
}

size_t memory_left(const char *root) {
    Str meminfo = {0}, status = {0};
    str_printf(&meminfo, "%s/proc/meminfo", root);
    str_printf(&status, "%s/proc/self/status", root);
    const size_t available = kilobytes_in(meminfo.s, "MemAvailable: %llu kB");
    size_t least = available ? available : SIZE_MAX;
    const size_t others[] = {left_by_groups(root), left_of_addresses(status.s)};
    for (int i = 0; i < 2; i++)
        if (others[i] < least) least = others[i];
    free(meminfo.s);
    free(status.s);
    return least;
}
