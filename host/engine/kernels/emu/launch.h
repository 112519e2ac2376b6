// Runs a grid: block after block, each until all of its lanes have returned.
#pragma once

#include <link.h>

#include <string>

#include "block.h"
#include "trap.h"

namespace emu {

// Static shared memory is thread-local memory: the compiler puts all variables of that kind into one place, which the
// launch finds through this one and poisons. Nothing else of a program with kernels is thread-local.
inline thread_local volatile u8 thread_local_anchor;

struct ThreadLocal {
    const void* object;    // something in the library whose variables are wanted
    const u8* anchor;
    size_t anchor_offset;  // from the start
    size_t bytes;
};

inline int find_thread_local(struct dl_phdr_info* info, size_t, void* out) {
    ThreadLocal& found = *(ThreadLocal*)out;
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part.p_vaddr;
        ours |= part.p_type == PT_LOAD && (uintptr_t)found.object - start < part.p_memsz;
        bytes = part.p_type == PT_TLS ? part.p_memsz : bytes;
    }
    if (!ours || !bytes || !info->dlpi_tls_data) {
        return ours;
    }
    found.anchor_offset = found.anchor - (const u8*)info->dlpi_tls_data;
    found.bytes = bytes;
    return 1;
}

inline void find_static_shared() {
    // The first touch allocates the variables of this operating system thread.
    thread_local_anchor = 0;
    const u8* anchor = (const u8*)&thread_local_anchor;
    static ThreadLocal found = [anchor] {
        ThreadLocal all = {&block, anchor, 0, 0};
        dl_iterate_phdr(find_thread_local, &all);
        return all;
    }();
    block.static_shared = const_cast<u8*>(anchor) - found.anchor_offset;
    block.static_shared_bytes = found.bytes;
}

[[noreturn]] inline void lane_main() {
    // A fiber outlives its block: it is left at the end and entered again for the next one.
    for (;;) {
        Lane& lane = *current;
        lane.begin();
        block.call(block.arguments);
        lane.warp->live &= ~lane.bit();
        lane.warp->ready &= ~lane.bit();
        block.live--;
        if (complete(block.barriers[0])) {
            release(block.barriers[0]);
        }
        leave();
    }
}

// Lanes that wait, by where: "31 of warp 0 at __syncthreads, ..".
inline void report_deadlock() {
    std::string text = "no thread can go on:";
    for (u32 w = 0; w < block.warp_count; w++) {
        Warp& warp = block.warps[w];
        for (u32 left = warp.live; left;) {
            Lane& first = warp.lanes[__builtin_ctz(left)];
            u32 count = 0;
            for (u32 l = 0; l < LANES; l++) {
                if (left >> l & 1 && !strcmp(warp.lanes[l].at, first.at)) {
                    left &= ~(1u << l);
                    count++;
                }
            }
            text += " " + std::to_string(count) + " of warp " + std::to_string(w) + " at " + first.at;
            if (warp.at_mbar & first.bit()) {
                text += " of barrier " + std::to_string((u8*)first.waits_for - block.shared) + " parity " +
                        std::to_string(first.parity);
            }
            text += ";";
        }
    }
    fail("%s", text.c_str());
}

inline void run_deferred() {
    size_t which = draw_below((u32)block.deferred.size());
    Deferred* deferred = block.deferred[which];
    block.deferred[which] = block.deferred.back();
    block.deferred.pop_back();
    deferred->run();
    delete deferred;
}

inline void enter(Warp& warp) {
    current = next_lane(warp, draw_below(LANES));
    fiber_switch(block.scheduler, current->fiber);
}

// Until all lanes have returned or the launch has failed.
inline void schedule() {
    while (block.live && !block.failed) {
        if (!block.deferred.empty() && draw_below(3) == 0) {
            run_deferred();
        }
        Warp* ready[WARPS_MAX];
        u32 count = 0;
        for (u32 w = 0; w < block.warp_count; w++) {
            if (block.warps[w].ready) {
                ready[count++] = &block.warps[w];
            }
        }
        if (count) {
            enter(*ready[draw_below(count)]);
        } else if (!block.deferred.empty()) {
            run_deferred();
        } else {
            report_deadlock();
        }
    }
}

inline void poison_shared() {
    // All ones are NaN as f32 and as bf16.
    memset(block.shared, 0xff, block.shared_bytes + SHARED_GUARD_BYTES);
    memset(block.static_shared, 0xff, block.static_shared_bytes);
}

inline void check_end_of_block() {
    if (block.failed) {
        return;
    }
    if (!block.deferred.empty()) {
        fail("a block ended with copies under way");
    }
    const u8* guard = block.shared + block.shared_bytes;
    for (size_t i = 0; i < SHARED_GUARD_BYTES; i++) {
        if (guard[i] != 0xff) {
            fail("a write beyond the %zu bytes of dynamic shared memory, at %zu", block.shared_bytes,
                 block.shared_bytes + i);
            return;
        }
    }
}

inline void run_block() {
    for (u32 w = 0; w < block.warp_count; w++) {
        u32 lanes = block.size - w * LANES;
        Warp& warp = block.warps[w];
        warp.lanes = &block.lanes[w * LANES];
        warp.live = warp.ready = lanes >= LANES ? ALL_LANES : (1u << lanes) - 1;
        warp.arrived = warp.at_mbar = 0;
    }
    memset(block.barriers, 0, sizeof block.barriers);
    block.live = block.size;
    block.votes = block.votes_closed = 0;
    block.descending = draw() & 1;
    for (Warpgroup& group : block.warpgroups) {
        group.products.clear();
        group.done = group.waiting = 0;
    }
    poison_shared();
    schedule();
    check_end_of_block();
    for (Deferred* deferred : block.deferred) {
        delete deferred;
    }
    block.deferred.clear();
}

inline void prepare_lanes(dim3 threads) {
    static Stacks stacks(THREADS_MAX + 2);
    install_trap(stacks.end(THREADS_MAX), stacks.start(THREADS_MAX + 1));
    if (block.lanes.empty()) {
        block.lanes.resize(THREADS_MAX);
        size_t bytes = SHARED_BYTES_MAX + SHARED_GUARD_BYTES;
        block.shared = (u8*)aligned_alloc(1024, (bytes + 1023) / 1024 * 1024);
    }
    for (u32 i = 0; i < block.size; i++) {
        Lane& lane = block.lanes[i];
        if (!lane.prepared) {
            stacks.prepare(lane.fiber, i, lane_main);
            lane.prepared = true;
        }
        lane.index = i;
        lane.warp = &block.warps[i / LANES];
        lane.thread = dim3(i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y));
    }
}

// Runs a kernel and says what went wrong, or null.
inline const char* run(dim3 grid, dim3 threads, size_t shared_bytes, void (*call)(const void*), const void* arguments) {
    size_t size = (size_t)threads.x * threads.y * threads.z;
    block.failed = block.bad_address = false;
    if (!size || size > THREADS_MAX || shared_bytes > SHARED_BYTES_MAX || !grid.x || !grid.y || !grid.z) {
        return "a launch beyond what any device can do";
    }
    block.call = call;
    block.arguments = arguments;
    block.grid = grid;
    block.threads = threads;
    block.size = (u32)size;
    block.warp_count = (block.size + LANES - 1) / LANES;
    block.shared_bytes = shared_bytes;
    prepare_lanes(threads);
    find_static_shared();
    for (u32 z = 0; z < grid.z; z++) {
        for (u32 y = 0; y < grid.y; y++) {
            for (u32 x = 0; x < grid.x && !block.failed; x++) {
                block.index = dim3(x, y, z);
                run_block();
            }
        }
    }
    return block.failed ? block.fault : nullptr;
}

// The same of anything that can be called without arguments; null or what went wrong.
template <class Kernel>
const char* try_launch(dim3 grid, dim3 threads, size_t shared_bytes, const Kernel& kernel) {
    return run(grid, threads, shared_bytes, [](const void* it) { (*(const Kernel*)it)(); }, &kernel);
}

// The same, where nothing may go wrong.
template <class Kernel>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, const Kernel& kernel) {
    if (const char* wrong = try_launch(grid, threads, shared_bytes, kernel)) {
        fprintf(stderr, "emu: %s\n", wrong);
        abort();
    }
}

}  // namespace emu
