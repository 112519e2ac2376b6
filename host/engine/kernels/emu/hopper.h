// The names of `intrin.cuh` for compute capability 9.0.
//
// Copies of the copy engine land at any time; products are computed when the whole warpgroup waits for them.
#pragma once

struct TensorMap;

namespace emu {

// ---------------------------------------------------------------------------------------------------------------
// Barriers in shared memory
// ---------------------------------------------------------------------------------------------------------------

// A barrier's 64 bits: a mark, so that one that was overwritten or never initialised shows; expected bytes that are not
// there (they may be ahead of the expectation); the parity of the current phase; arrivals left of it; arrivals in all.
struct Mbar {
    static constexpr u64 MARK = 0x2a5;
    static constexpr i64 BYTES_BIAS = 1 << 21;
    static constexpr u32 ARRIVALS_MAX = (1 << 15) - 1;

    u32 arrivals, left, parity;
    i64 bytes;

    u64 pack() const {
        return MARK << 53 | (u64)(bytes + BYTES_BIAS) << 31 | (u64)parity << 30 | (u64)left << 15 | arrivals;
    }

    static bool valid(u64 packed) { return packed >> 53 == MARK; }

    static Mbar unpack(u64 packed) {
        Mbar out;
        out.arrivals = packed & ARRIVALS_MAX;
        out.left = packed >> 15 & ARRIVALS_MAX;
        out.parity = packed >> 30 & 1;
        out.bytes = (i64)(packed >> 31 & 0x3fffff) - BYTES_BIAS;
        return out;
    }
};

inline Mbar mbar_of(const u64* barrier, const char* name) {
    u32 address = shared_address(barrier);
    check_aligned(barrier, 8, name);
    if (!Mbar::valid(*barrier)) {
        fault("%s of the barrier at %u, which was not initialised or was overwritten", name, address);
    }
    return Mbar::unpack(*barrier);
}

// Ends the phase if nothing is missing, and lets those go on that waited for it.
inline void mbar_store(u64* barrier, Mbar state) {
    bool ended = state.left == 0 && state.bytes == 0;
    if (ended) {
        state.parity ^= 1;
        state.left = state.arrivals;
    }
    *barrier = state.pack();
    for (u32 w = 0; ended && w < block.warp_count; w++) {
        Warp& warp = block.warps[w];
        for (u32 waiting = warp.at_mbar; waiting; waiting &= waiting - 1) {
            Lane& lane = warp.lanes[__builtin_ctz(waiting)];
            if (lane.waits_for == barrier && lane.parity != state.parity) {
                warp.at_mbar &= ~lane.bit();
                warp.ready |= lane.bit();
            }
        }
    }
}

inline void mbar_arrival(u64* barrier, u32 bytes, const char* name) {
    Mbar state = mbar_of(barrier, name);
    if (state.left == 0) {
        fault("%s: more arrivals than the %u of the barrier", name, state.arrivals);
    }
    state.left--;
    state.bytes += bytes;
    mbar_store(barrier, state);
    // Those that waited may go first.
    if (draw() & 1) {
        step_aside();
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Copy engine
// ---------------------------------------------------------------------------------------------------------------

// The view of a matrix that a TensorMap holds here: bf16, boxes of 128 bytes in a row, in the 128-byte swizzle.
struct MatrixMap {
    static constexpr u64 MARK = 0x706d2d726f736e74;
    static constexpr u32 BOX_COLUMNS = 64;

    u64 mark;
    const u8* base;
    u64 columns, rows;
    u64 row_bytes;
    u32 box_rows;
};

// Where the 128-byte swizzle puts a byte: the 16-byte part of a row is exchanged by the row's number.
inline u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

struct BoxLoad : Deferred {
    u8* to;
    u32 to_address;
    MatrixMap map;
    u64* barrier;
    int column, row;

    void run() override {
        for (u32 r = 0; r < map.box_rows; r++) {
            for (u32 c = 0; c < MatrixMap::BOX_COLUMNS; c++) {
                i64 from_row = (i64)row + r, from_column = (i64)column + c;
                u16 value = 0;
                if (from_row >= 0 && (u64)from_row < map.rows && from_column >= 0 && (u64)from_column < map.columns) {
                    memcpy(&value, map.base + from_row * map.row_bytes + from_column * 2, 2);
                }
                memcpy(to + (swizzled(to_address + r * 128 + c * 2) - to_address), &value, 2);
            }
        }
        if (!Mbar::valid(*barrier)) {
            fail("a copy ended at a barrier that was overwritten");
            return;
        }
        Mbar state = Mbar::unpack(*barrier);
        state.bytes -= (i64)map.box_rows * 128;
        mbar_store(barrier, state);
    }
};

// ---------------------------------------------------------------------------------------------------------------
// Products of a warpgroup
// ---------------------------------------------------------------------------------------------------------------

inline Warpgroup& own_warpgroup() { return block.warpgroups[current->index / WARPGROUP_LANES]; }

// Rows of 16 values, from where a descriptor points.
inline void load_operand(u64 descriptor, u32 rows, float (*out)[16]) {
    u32 address = (u32)(descriptor & 0x3fff) << 4;
    for (u32 r = 0; r < rows; r++) {
        for (u32 half = 0; half < 2; half++) {
            u16 values[8];
            memcpy(values, block.shared + swizzled(address + r * 128 + half * 16), 16);
            for (u32 k = 0; k < 8; k++) {
                out[r][half * 8 + k] = __uint_as_float((u32)values[k] << 16);
            }
        }
    }
}

inline void compute(const Product& product) {
    static float a[64][16], b[256][16];
    load_operand(product.a, 64, a);
    load_operand(product.b, product.columns, b);
    for (u32 column = 0; column < product.columns; column += 8) {
        Row8 b_rows[16];
        for (u32 k = 0; k < 16; k++) {
            for (u32 c = 0; c < 8; c++) {
                b_rows[k][c] = b[column + c][k];
            }
        }
        for (u32 row = 0; row < 64; row++) {
            Row8 sum = {};
            for (u32 k = 0; k < 16; k++) {
                sum += a[row][k] * b_rows[k];
            }
            for (u32 t = 0; t < 4; t++) {
                u32 lane = row / 16 * LANES + row % 8 * 4 + t;
                float* d = product.d[lane] + column / 8 * 4 + row % 16 / 8 * 2;
                d[0] += sum[2 * t];
                d[1] += sum[2 * t + 1];
            }
        }
    }
}

inline void check_operand(u64 descriptor, u32 rows) {
    size_t end = ((size_t)(descriptor & 0x3fff) << 4) + (rows - 1) * 128 + 32;
    if (descriptor >> 62 != 1 || (descriptor >> 32 & 0x3fff) != 1024 >> 4 || end > block.shared_bytes) {
        fault("wgmma with the descriptor %016llx of %u rows", descriptor, rows);
    }
}

inline void issue(float* d, u64 a, u64 b, u32 columns) {
    Warpgroup& group = own_warpgroup();
    check_operand(a, 64);
    check_operand(b, columns);
    if (!current->product_fence) {
        fault("wgmma without wgmma_fence() since its accumulators were waited for");
    }
    size_t place = current->products++ - group.done;
    if (place >= group.products.size()) {
        group.products.push_back({a, b, columns, 0, {}});
    }
    Product& product = group.products[place];
    if (product.a != a || product.b != b || product.columns != columns) {
        fault("wgmma with other operands than other threads of the warpgroup have");
    }
    product.d[current->index % WARPGROUP_LANES] = d;
    product.lanes++;
}

// Waits for the first `wanted` products; the last lane that waits computes them.
inline void await_products(u32 wanted) {
    Warpgroup& group = own_warpgroup();
    u32 first = current->index / WARPGROUP_LANES * WARPGROUP_LANES;
    if (first + WARPGROUP_LANES > block.size) {
        fault("wgmma_wait in a warpgroup of fewer than 128 threads");
    }
    current->products_wanted = wanted;
    if (++group.waiting < WARPGROUP_LANES) {
        wait("wgmma_wait");
        return;
    }
    group.waiting = 0;
    for (u32 i = first; i < first + WARPGROUP_LANES; i++) {
        if (block.lanes[i].products_wanted != wanted) {
            fault("threads of a warpgroup wait for %u and for %u products", wanted, block.lanes[i].products_wanted);
        }
    }
    u32 count = wanted > group.done ? wanted - group.done : 0;
    for (u32 i = 0; i < count; i++) {
        if (group.products[i].lanes != WARPGROUP_LANES) {
            fault("only %u threads of a warpgroup issued a product", group.products[i].lanes);
        }
        compute(group.products[i]);
    }
    group.products.erase(group.products.begin(), group.products.begin() + count);
    group.done += count;
    for (u32 w = first / LANES; w < first / LANES + 4; w++) {
        block.warps[w].ready = ALL_LANES;
    }
}

}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------

inline void mbar_init(u64* barrier, u32 arrivals) {
    emu::shared_address(barrier);
    emu::check_aligned(barrier, 8, "mbar_init");
    if (!arrivals || arrivals > emu::Mbar::ARRIVALS_MAX) {
        emu::fault("mbar_init of %u arrivals", arrivals);
    }
    *barrier = emu::Mbar{arrivals, arrivals, 0, 0}.pack();
    emu::current->unfenced_init = true;
}

inline void mbar_init_fence() { emu::current->unfenced_init = false; }

inline void mbar_expect(u64* barrier, u32 bytes) { emu::mbar_arrival(barrier, bytes, "mbar_expect"); }

inline void mbar_arrive(u64* barrier) { emu::mbar_arrival(barrier, 0, "mbar_arrive"); }

inline void mbar_wait(u64* barrier, u32 parity) {
    if (parity > 1) {
        emu::fault("mbar_wait for parity %u", parity);
    }
    while (emu::mbar_of(barrier, "mbar_wait").parity == parity) {
        emu::current->waits_for = barrier;
        emu::current->parity = parity;
        emu::current->warp->at_mbar |= emu::current->bit();
        emu::wait("mbar_wait");
    }
}

inline void tma_load_2d(void* smem, const TensorMap* map, u64* barrier, int c0, int c1) {
    emu::BoxLoad load;
    memcpy(&load.map, map, sizeof load.map);
    if (load.map.mark != emu::MatrixMap::MARK) {
        emu::fault("tma_load_2d with what is no map");
    }
    emu::mbar_of(barrier, "tma_load_2d");
    load.to_address = emu::shared_address(smem);
    load.to = emu::shared_at(load.to_address, load.map.box_rows * 128, "tma_load_2d");
    emu::check_aligned(smem, 1024, "tma_load_2d");
    load.barrier = barrier;
    load.column = c0;
    load.row = c1;
    emu::block.deferred.push_back(new emu::BoxLoad(load));
}

inline void tma_prefetch(const TensorMap*) {}

inline void async_fence() {}

inline u64 wgmma_descriptor(const void* smem) {
    u32 address = emu::shared_address(smem);
    if (address & emu::STATIC_SHARED || address % 16) {
        emu::fault("wgmma_descriptor of the address %08x", address);
    }
    return 1ull << 62 | (u64)(1024 >> 4) << 32 | 1ull << 16 | address >> 4;
}

inline void wgmma_fence() { emu::current->product_fence = true; }

inline void wgmma_commit() { emu::current->product_groups.push_back(emu::current->products); }

template <int N>
void wgmma_wait() {
    auto& groups = emu::current->product_groups;
    emu::await_products(groups.size() > (size_t)N ? groups[groups.size() - 1 - N] : 0);
    emu::current->product_fence = false;
}

template <int N>
void wgmma_hold(float (&)[N]) {}

inline void wgmma_m64n128k16(float (&d)[64], u64 a, u64 b) { emu::issue(d, a, b, 128); }
inline void wgmma_m64n256k16(float (&d)[128], u64 a, u64 b) { emu::issue(d, a, b, 256); }

template <int N>
void reg_dec() {}
template <int N>
void reg_inc() {}
