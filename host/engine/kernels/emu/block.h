// One block of threads: its lanes, warps, barriers and shared memory, and who runs next.
//
// A lane runs until it waits. Lanes of its warp go on first; then the scheduler draws another warp, so that what is
// correct only in one order of warps shows with some seed. Launches and blocks run one after the other, one launch at a
// time in a process.
//
// **Invariant**: `current` is the lane that runs; it is null while the scheduler does.
#pragma once

#include <cstdarg>
#include <cstring>
#include <vector>

#include "fiber.h"

// CUDA's type of three sizes.
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

constexpr u32 LANES = 32;
constexpr u32 WARPS_MAX = 32;
constexpr u32 THREADS_MAX = WARPS_MAX * LANES;
constexpr u32 ALL_LANES = 0xffffffff;
constexpr u32 BARRIERS = 16;
// What a block of any architecture can have, and the guard after it that shows writes beyond a launch's own.
constexpr size_t SHARED_BYTES_MAX = 227 * 1024;
constexpr size_t SHARED_GUARD_BYTES = 1024;
// Set in addresses of static shared memory; those of dynamic shared memory begin at zero.
constexpr u32 STATIC_SHARED = 0x80000000;

struct Warp;

// A copy of 16 bytes that a thread has started.
struct Copy {
    u8* to;
    const void* from;
    bool live;
};

// One CUDA thread.
struct Lane {
    Fiber fiber;
    bool prepared = false;
    dim3 thread;
    u32 index;
    Warp* warp;
    const char* at;  // where it waits, for reports

    // What it hands to an operation that the whole warp executes; lies on its stack.
    void* request;

    // Copies that have not landed, and how many of them there were when each group ended.
    std::vector<Copy> copies;
    std::vector<size_t> copy_groups;

    // The barrier in shared memory that it waits for.
    u64* waits_for;
    u32 parity;
    bool unfenced_init;

    // Products of its warpgroup that it has issued, and how many there were when each group ended.
    u32 products;
    std::vector<u32> product_groups;
    u32 products_wanted;
    bool product_fence;

    u32 bit() const { return 1u << index % LANES; }
    void begin();
};

// 32 lanes. Masks have a bit for each lane.
struct Warp {
    Lane* lanes;
    u32 live;     // have not returned
    u32 ready;    // can go on
    u32 arrived;  // wait for the others at `operation`
    u32 at_mbar;  // wait for a barrier in shared memory
    void (*operation)(Lane* lanes);
    const char* operation_name;
};

// One of the 16 barriers of a block.
struct Barrier {
    u32 arrived;
    u32 expected;  // 0: all that have not returned
    u32 lanes[WARPS_MAX];
};

// Something that happens later, at any time.
struct Deferred {
    virtual ~Deferred() = default;
    virtual void run() = 0;
};

constexpr u32 WARPGROUP_LANES = 4 * LANES;

// d += a * transpose(b), issued by all lanes of a warpgroup; each has its part of d.
struct Product {
    u64 a, b;
    u32 columns;
    u32 lanes;
    float* d[WARPGROUP_LANES];
};

// Products that have not been computed, the first of which is number `done`, and lanes that wait for some.
struct Warpgroup {
    std::vector<Product> products;
    u32 done;
    u32 waiting;
};

inline u32 random_state = 1;

inline void seed(u32 value) { random_state = value * 2654435761u | 1; }

inline u32 draw() {
    u32& x = random_state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return x;
}

inline u32 draw_below(u32 n) { return (u32)(((u64)draw() * n) >> 32); }

struct Block {
    // The launch.
    void (*call)(const void* arguments);
    const void* arguments;
    dim3 grid, threads, index;
    u32 size;  // threads of a block
    u32 warp_count;
    size_t shared_bytes;
    bool failed;
    bool bad_address;  // the fault is memory that is not there
    char fault[1024];

    // The block.
    u32 live;
    bool descending;  // the order of lanes
    Warp warps[WARPS_MAX];
    Warpgroup warpgroups[WARPS_MAX / 4];
    Barrier barriers[BARRIERS];
    u32 votes, votes_closed;
    std::vector<Deferred*> deferred;

    // What stays from launch to launch.
    Fiber scheduler;
    std::vector<Lane> lanes;
    u8* shared = nullptr;
    u8* static_shared = nullptr;
    size_t static_shared_bytes = 0;
};

inline Block block;
inline Lane* current = nullptr;

// Notes the first thing that went wrong; the launch ends as soon as the scheduler sees it. Lanes are left where they
// are: their stacks begin anew in the next launch.
inline void note(const char* format, va_list values) {
    if (block.failed) {
        return;
    }
    block.failed = true;
    char what[900];
    vsnprintf(what, sizeof what, format, values);
    const dim3& b = block.index;
    char thread[64] = "";
    if (current) {
        const dim3& t = current->thread;
        snprintf(thread, sizeof thread, ", thread %u,%u,%u", t.x, t.y, t.z);
    }
    snprintf(block.fault, sizeof block.fault, "%s (block %u,%u,%u%s)", what, b.x, b.y, b.z, thread);
    for (Lane& lane : block.lanes) {
        lane.prepared = false;
    }
}

// What the scheduler finds wrong.
__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    note(format, values);
    va_end(values);
}

// What a lane does wrong; it does not go on.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fault(const char* format, ...) {
    va_list values;
    va_start(values, format);
    note(format, values);
    va_end(values);
    Lane* lane = current;
    current = nullptr;
    fiber_switch(lane->fiber, block.scheduler);
    abort();
}

// ---------------------------------------------------------------------------------------------------------------
// Who runs next
// ---------------------------------------------------------------------------------------------------------------

inline Lane* next_lane(const Warp& warp, u32 after) {
    u32 ready = warp.ready;
    if (!ready) {
        return nullptr;
    }
    if (block.descending) {
        u32 below = ready & ((1u << after) - 1);
        return warp.lanes + (31 - __builtin_clz(below ? below : ready));
    }
    u32 above = ready & ~((2u << after) - 1);
    return warp.lanes + __builtin_ctz(above ? above : ready);
}

// Leaves the running lane for the next of its warp that can run, or for the scheduler.
inline void leave() {
    Lane* lane = current;
    Lane* next = next_lane(*lane->warp, lane->index % LANES);
    if (next == lane) {
        return;
    }
    current = next;
    fiber_switch(lane->fiber, next ? next->fiber : block.scheduler);
}

// Waits until another makes this lane ready.
inline void wait(const char* where) {
    current->at = where;
    current->warp->ready &= ~current->bit();
    leave();
}

// Lets the scheduler choose, though this lane could go on.
inline void step_aside() {
    Lane* lane = current;
    current = nullptr;
    fiber_switch(lane->fiber, block.scheduler);
}

inline void Lane::begin() {
    copies.clear();
    copy_groups.clear();
    product_groups.clear();
    products = 0;
    product_fence = false;
    unfenced_init = false;
}

inline void release(Barrier& barrier) {
    block.votes_closed = block.votes;
    block.votes = 0;
    for (u32 w = 0; w < block.warp_count; w++) {
        Warp& warp = block.warps[w];
        if (barrier.lanes[w] && barrier.lanes[w] != warp.live) {
            fault("a barrier is complete with only some lanes of warp %u", w);
        }
        warp.ready |= barrier.lanes[w];
        barrier.lanes[w] = 0;
    }
    barrier.arrived = 0;
}

inline bool complete(const Barrier& barrier) {
    return barrier.arrived && barrier.arrived == (barrier.expected ? barrier.expected : block.live);
}

// Arrives at a barrier of `threads` threads, or of all that have not returned when that is 0, and waits for the others.
inline void arrive(u32 id, u32 threads, const char* name) {
    if (id >= BARRIERS || threads % LANES || threads > block.size) {
        fault("barrier %u of %u threads", id, threads);
    }
    if (current->unfenced_init) {
        fault("a barrier in shared memory was initialised without mbar_init_fence()");
    }
    Barrier& barrier = block.barriers[id];
    if (barrier.arrived && barrier.expected != threads) {
        fault("barrier %u is used with %u and with %u threads", id, barrier.expected, threads);
    }
    barrier.expected = threads;
    barrier.arrived++;
    barrier.lanes[current->index / LANES] |= current->bit();
    if (complete(barrier)) {
        release(barrier);
        if (draw() & 1) {
            step_aside();
        }
    } else {
        wait(name);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Operations that all lanes of a warp execute together
// ---------------------------------------------------------------------------------------------------------------

// The last lane that arrives performs the operation for all.
inline void together(const char* name, void* request, void (*perform)(Lane* lanes)) {
    Lane& lane = *current;
    Warp& warp = *lane.warp;
    if (warp.live != ALL_LANES) {
        fault("%s where some lanes of the warp have returned or never were", name);
    }
    if (warp.arrived && warp.operation != perform) {
        fault("lanes of a warp are at %s and at %s", warp.operation_name, name);
    }
    warp.operation = perform;
    warp.operation_name = name;
    lane.request = request;
    warp.arrived |= lane.bit();
    if (warp.arrived == ALL_LANES) {
        warp.arrived = 0;
        perform(warp.lanes);
        warp.ready = ALL_LANES;
        // Now and then another warp overtakes this one where nothing makes it wait.
        if (draw_below(16) == 0) {
            step_aside();
        }
    } else {
        wait(name);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Shared memory
// ---------------------------------------------------------------------------------------------------------------

inline u32 shared_address(const void* pointer) {
    const u8* at = (const u8*)pointer;
    if (at >= block.shared && at <= block.shared + block.shared_bytes) {
        return (u32)(at - block.shared);
    }
    if (at >= block.static_shared && at <= block.static_shared + block.static_shared_bytes) {
        return (u32)(at - block.static_shared) | STATIC_SHARED;
    }
    fault("%p is not in shared memory", pointer);
}

inline u8* shared_at(u32 address, size_t bytes, const char* name) {
    bool is_static = address & STATIC_SHARED;
    u32 offset = address & ~STATIC_SHARED;
    size_t limit = is_static ? block.static_shared_bytes : block.shared_bytes;
    if (offset + bytes > limit) {
        fault("%s touches shared memory at %u, of %zu bytes", name, offset, limit);
    }
    return (is_static ? block.static_shared : block.shared) + offset;
}

}  // namespace emu
