// Memory of devices and page-locked memory of the host.
//
// Every allocation has a page that may not be touched before and after it, and ends where its last 256 bytes do: a
// kernel that reads or writes beyond it fails. New memory is all ones, which is NaN.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include "driver_state.h"

namespace standin {

constexpr size_t ALIGNMENT = 256;
// From this size on, memory that was not written shares the pages of a file of ones, so that large pools cost nothing.
constexpr size_t SHARED_ONES_BYTES = 2 << 20;

inline int ones_file() {
    static int file = [] {
        int made = memfd_create("ones", MFD_CLOEXEC);
        std::vector<u8> ones(SHARED_ONES_BYTES, 0xff);
        if (made < 0 || write(made, ones.data(), ones.size()) != (ssize_t)ones.size()) {
            perror("stand-in: no file of ones");
            abort();
        }
        return made;
    }();
    return file;
}

inline bool map_ones(u8* at, size_t bytes) {
    if (bytes < SHARED_ONES_BYTES) {
        if (mprotect(at, bytes, PROT_READ | PROT_WRITE)) {
            return false;
        }
        memset(at, 0xff, bytes);
        return true;
    }
    for (size_t done = 0; done < bytes; done += SHARED_ONES_BYTES) {
        size_t part = bytes - done < SHARED_ONES_BYTES ? bytes - done : SHARED_ONES_BYTES;
        if (mmap(at + done, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, ones_file(), 0) == MAP_FAILED) {
            return false;
        }
    }
    return true;
}

inline size_t free_bytes(const Context& context) {
    return settings.memory_bytes > context.used_bytes ? settings.memory_bytes - context.used_bytes : 0;
}

inline Result allocate(Context& context, u64* device_memory, size_t bytes) {
    if (!bytes || !device_memory) {
        return INVALID_VALUE;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (rounded > free_bytes(context)) {
        return OUT_OF_MEMORY;
    }
    size_t pages = (rounded + page - 1) / page * page;
    size_t mapped = pages + 2 * page;
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED || !map_ones((u8*)mapping + page, pages)) {
        return OUT_OF_MEMORY;
    }
    *device_memory = (u64)mapping + page + pages - rounded;
    context.memory[*device_memory] = {bytes, mapped, (u8*)mapping};
    context.used_bytes += rounded;
    return SUCCESS;
}

inline bool all_ones(const u8* from, const u8* end) {
    while (from < end && *from == 0xff) {
        from++;
    }
    return from >= end;
}

inline void free_allocation(Context& context, std::map<u64, Allocation>::iterator found) {
    const Allocation& allocation = found->second;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    u8* start = (u8*)found->first;
    u8* end = allocation.mapping + allocation.mapped_bytes - page;
    if (!all_ones(allocation.mapping + page, start) || !all_ones(start + allocation.bytes, end)) {
        break_context(context, ILLEGAL_ADDRESS,
                      "a kernel wrote beside an allocation of " + std::to_string(allocation.bytes) + " bytes");
    }
    context.used_bytes -= (allocation.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    munmap(allocation.mapping, allocation.mapped_bytes);
    context.memory.erase(found);
}

inline Result free_memory(Context& context, u64 device_memory) {
    auto found = context.memory.find(device_memory);
    if (found == context.memory.end()) {
        return INVALID_VALUE;
    }
    free_allocation(context, found);
    return SUCCESS;
}

// The entry of a map by start that may hold an address.
template <class Map>
auto at_or_before(Map& map, u64 at) {
    auto found = map.upper_bound(at);
    return found == map.begin() ? map.end() : std::prev(found);
}

inline bool is_pinned(const Context& context, const void* host, size_t bytes) {
    auto found = at_or_before(context.pinned, (u64)host);
    return found != context.pinned.end() && holds(found->first, found->second, (u64)host, bytes);
}

// Whether part of a range of the host is page-locked.
inline bool overlaps_pinned(const Context& context, const void* host, size_t bytes) {
    auto next = context.pinned.lower_bound((u64)host + bytes);
    if (next == context.pinned.begin()) {
        return false;
    }
    auto last = std::prev(next);
    return last->first + last->second > (u64)host;
}

inline bool is_device_memory(const Context& context, u64 at, size_t bytes) {
    auto found = at_or_before(context.memory, at);
    return found != context.memory.end() && holds(found->first, found->second.bytes, at, bytes);
}

// What copies may touch: devices can use page-locked memory of the host by its address.
inline bool is_reachable(u64 at, size_t bytes) {
    for (const Context& context : contexts) {
        if (is_device_memory(context, at, bytes) || is_pinned(context, (const void*)at, bytes)) {
            return true;
        }
    }
    return false;
}

inline Result allocate_host(Context& context, void** host, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!bytes || !host) {
        return INVALID_VALUE;
    }
    void* memory = aligned_alloc(page, (bytes + page - 1) / page * page);
    if (!memory) {
        return OUT_OF_MEMORY;
    }
    *host = memory;
    context.pinned[(u64)memory] = bytes;
    context.pinned_here.insert((u64)memory);
    return SUCCESS;
}

inline Result free_host(Context& context, void* host) {
    if (!context.pinned_here.erase((u64)host)) {
        return INVALID_VALUE;
    }
    context.pinned.erase((u64)host);
    free(host);
    return SUCCESS;
}

inline Result register_host(Context& context, void* host, size_t bytes) {
    if (!host || !bytes) {
        return INVALID_VALUE;
    }
    if (overlaps_pinned(context, host, bytes)) {
        return HOST_MEMORY_ALREADY_REGISTERED;
    }
    context.pinned[(u64)host] = bytes;
    return SUCCESS;
}

inline Result unregister_host(Context& context, void* host) {
    if (context.pinned_here.count((u64)host) || !context.pinned.erase((u64)host)) {
        return HOST_MEMORY_NOT_REGISTERED;
    }
    return SUCCESS;
}

inline void free_everything(Context& context) {
    while (!context.memory.empty()) {
        free_allocation(context, context.memory.begin());
    }
    for (u64 host : context.pinned_here) {
        free((void*)host);
    }
    context.pinned.clear();
    context.pinned_here.clear();
}

}  // namespace standin
