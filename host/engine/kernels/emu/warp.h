// What the lanes of a warp exchange: the functions of CUDA that end in _sync. They take all lanes; a mask of fewer is
// refused, for the kernels never mean one.
#pragma once

#include "block.h"

namespace emu {

inline void check_mask(unsigned mask, const char* name) {
    if (mask != ALL_LANES) {
        emu::fault("%s with mask %08x", name, mask);
    }
}

struct Exchange {
    u64 value;
    u32 source;
    u64 received;
};

inline void perform_exchange(Lane* lanes) {
    for (u32 l = 0; l < LANES; l++) {
        Exchange& mine = *(Exchange*)lanes[l].request;
        mine.received = ((Exchange*)lanes[mine.source].request)->value;
    }
}

template <class T>
T exchange(const char* name, unsigned mask, T value, u32 source) {
    static_assert(sizeof(T) <= sizeof(u64), "a value that shuffles can carry");
    check_mask(mask, name);
    Exchange request = {0, source, 0};
    memcpy(&request.value, &value, sizeof value);
    together(name, &request, perform_exchange);
    memcpy(&value, &request.received, sizeof value);
    return value;
}

// The lane, and where its segment of `width` lanes begins.
inline u32 own_lane() { return current->index % LANES; }
inline u32 segment(int width) { return own_lane() & ~(u32)(width - 1); }

inline void perform_nothing(Lane*) {}

struct Vote {
    u32 predicate;
    u32 ballot;
};

inline void perform_ballot(Lane* lanes) {
    u32 ballot = 0;
    for (u32 l = 0; l < LANES; l++) {
        ballot |= (u32)(((Vote*)lanes[l].request)->predicate != 0) << l;
    }
    for (u32 l = 0; l < LANES; l++) {
        ((Vote*)lanes[l].request)->ballot = ballot;
    }
}

inline u32 ballot(const char* name, unsigned mask, bool predicate) {
    check_mask(mask, name);
    Vote request = {predicate, 0};
    together(name, &request, perform_ballot);
    return request.ballot;
}

template <class T>
struct Reduction {
    T value;
    T result;
};

template <class T, class Combine>
void perform_reduction(Lane* lanes) {
    T result = ((Reduction<T>*)lanes[0].request)->value;
    for (u32 l = 1; l < LANES; l++) {
        result = Combine()(result, ((Reduction<T>*)lanes[l].request)->value);
    }
    for (u32 l = 0; l < LANES; l++) {
        ((Reduction<T>*)lanes[l].request)->result = result;
    }
}

template <class T, class Combine>
T reduce(const char* name, unsigned mask, T value, Combine) {
    check_mask(mask, name);
    Reduction<T> request = {value, value};
    together(name, &request, perform_reduction<T, Combine>);
    return request.result;
}

// Lanes of the same value.
inline void perform_match(Lane* lanes) {
    for (u32 l = 0; l < LANES; l++) {
        Exchange& mine = *(Exchange*)lanes[l].request;
        for (u32 other = 0; other < LANES; other++) {
            mine.received |= (u64)(((Exchange*)lanes[other].request)->value == mine.value) << other;
        }
    }
}

}  // namespace emu

inline void __syncwarp(unsigned mask = emu::ALL_LANES) {
    emu::check_mask(mask, "__syncwarp");
    emu::together("__syncwarp", nullptr, emu::perform_nothing);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emu::exchange("__shfl_sync", mask, value, emu::segment(width) | ((u32)source & (u32)(width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    u32 source = emu::own_lane() ^ (u32)lanes;
    bool outside = source >= emu::segment(width) + (u32)width;
    return emu::exchange("__shfl_xor_sync", mask, value, outside ? emu::own_lane() : source);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    bool outside = emu::own_lane() < emu::segment(width) + lanes;
    return emu::exchange("__shfl_up_sync", mask, value, outside ? emu::own_lane() : emu::own_lane() - lanes);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
    u32 source = emu::own_lane() + lanes;
    bool outside = source >= emu::segment(width) + (u32)width;
    return emu::exchange("__shfl_down_sync", mask, value, outside ? emu::own_lane() : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu::ballot("__ballot_sync", mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emu::ballot("__any_sync", mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
    return emu::ballot("__all_sync", mask, predicate) == emu::ALL_LANES;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
    emu::check_mask(mask, "__match_any_sync");
    emu::Exchange request = {0, 0, 0};
    memcpy(&request.value, &value, sizeof value);
    emu::together("__match_any_sync", &request, emu::perform_match);
    return (unsigned)request.received;
}

#define EMU_REDUCE(name, type, expression)                                                         \
    inline type name(unsigned mask, type value) {                                                  \
        struct Combine {                                                                           \
            type operator()(type a, type b) const { return expression; }                           \
        };                                                                                         \
        return emu::reduce(#name, mask, value, Combine());                                         \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_and_sync, unsigned, a& b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
EMU_REDUCE(__reduce_add_sync, int, a + b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef EMU_REDUCE

inline void __syncthreads() { emu::arrive(0, 0, "__syncthreads"); }

// A barrier that counts the threads with a predicate.
inline int __syncthreads_count(int predicate) {
    emu::block.votes += predicate != 0;
    emu::arrive(0, 0, "__syncthreads_count");
    return (int)emu::block.votes_closed;
}

inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
