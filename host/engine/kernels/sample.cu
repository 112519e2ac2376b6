// Draws the next token of a row from its logits, by one block; `src/sample.rs` is the same on the processor.
//
// Nothing is sorted. A token's *distance* is how far it is below the likeliest, times 1 / temperature, so that its
// weight is exp(-distance); its *key* is the distance as an integer. Cuts keep the tokens up to a key, which is found
// digit by digit with histograms in shared memory. Tokens far below the likeliest are looked at only when the near ones
// do not suffice.
// **Invariant:** weights are summed as integers, so that a draw does not depend on the order in which threads run.

#include "row.cuh"

// ---------------------------------------------------------------------------------------------------------------
// Weights
// ---------------------------------------------------------------------------------------------------------------

// Of which row, in units of what.
struct Scale {
    float max;
    float inverse_temperature;
};

// Not negative; a broken logit is as likely as the likeliest, as on the processor.
__device__ __forceinline__ float distance_of(float logit, Scale scale) {
    return fmaxf((scale.max - logit) * scale.inverse_temperature, 0.0f);
}

// exp(-distance) as `src/exp.rs` computes it, for distances up to 87.
__device__ __forceinline__ float weight_of(float distance) {
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits of the sum.
    const float round = 12582912.0f, log2_e = 1.44269504f;
    // ln 2 in two parts: the first has trailing zero bits, so that n * ln2_high is exact.
    const float ln2_high = 0.6933594f, ln2_low = -2.1219444e-4f;
    float rounded = -distance * log2_e + round;
    float n = rounded - round;
    float r = -distance - n * ln2_high - n * ln2_low;
    float series = 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return series * __uint_as_float((__float_as_uint(rounded) - __float_as_uint(round) + 127) << 23);
}

// A weight as an integer, in units of 2^-40: 2^18 of them fit in 64 bits, and what rounds to nothing is drawn once in
// 10^12 times.
constexpr float MASS_ONE = 1099511627776.0f;
// Weights from this distance on are below half a unit.
constexpr float MASSLESS_DISTANCE = 28.5f;

__device__ __forceinline__ u64 mass_of(float weight) { return (u64)(weight * MASS_ONE + 0.5f); }

__device__ __forceinline__ u64 mass_at(float distance) {
    return distance < MASSLESS_DISTANCE ? mass_of(weight_of(distance)) : 0;
}

// Grows with the distance. Up to 16 in units of 2^-27, which is finer than what f32 weights tell apart, so that the
// first digit is a uniform 1/64; from there on as the bits of the f32 are.
constexpr float KEY_LINEAR_MAX = 16.0f;
constexpr u32 KEY_FAR = 1u << 31;

__device__ __forceinline__ u32 key_of(float distance) {
    return distance < KEY_LINEAR_MAX ? (u32)(distance * (float)(1 << 27))
                                     : KEY_FAR + (__float_as_uint(distance) - __float_as_uint(KEY_LINEAR_MAX));
}

// What is kept: smaller keys, and of the same key the tokens up to one.
struct Cut {
    u32 key;
    u32 last_token;

    __device__ __forceinline__ bool keeps(u32 key_there, u32 token) const {
        return key_there < key || (key_there == key && token <= last_token);
    }
};

constexpr u32 NO_LIMIT = 0xffffffff;

// ---------------------------------------------------------------------------------------------------------------
// The tokens of a row
// ---------------------------------------------------------------------------------------------------------------

struct Tokens {
    const float* logits;
    u32 vocab;
    const u32* mask;
    u32 mask_words;  // 0: all are allowed

    __device__ __forceinline__ bool allows(u32 token) const {
        return !mask_words || (token / 32 < mask_words && mask[token / 32] >> token % 32 & 1);
    }

    // Bit i: whether there is token 4 quad + i, and it may be drawn.
    __device__ __forceinline__ u32 allowed(u32 quad) const {
        u32 first = 4 * quad;
        u32 bits = 15;
        if (mask_words) {
            bits = first / 32 < mask_words ? mask[first / 32] >> first % 32 & 15 : 0;
        }
        return first + 4 <= vocab ? bits : bits & ((1u << (vocab - first)) - 1);
    }

    // Quads that a warp goes through: each has its own part of the row.
    __device__ __forceinline__ u32 quads_of_warp() const { return ceil_div(ceil_div(vocab, 4), blockDim.x / 32); }

    // Calls visit(token, logit) for every allowed token once, each thread for its own in ascending order. HOT: compiled
    // four times, once for each logit of a quad.
    template <bool HOT, class Visit>
    __device__ __forceinline__ void each(const Visit& visit) const {
        u32 first = warp_id() * quads_of_warp();
        u32 end = min(first + quads_of_warp(), ceil_div(vocab, 4));
        auto load = [&](u32 quad) { return load_quad(logits, quad, 4 * end); };
        u32 quad = first + lane_id();
        // Two loads are always under way: one alone would be waited for each time.
        float4 next = load(quad), after_next = load(quad + 32);
#pragma unroll 1
        for (; quad < end; quad += 32) {
            float4 here = next;
            next = after_next;
            after_next = load(quad + 64);
            u32 bits = allowed(quad);
#pragma unroll(HOT ? 4 : 1)
            for (u32 i = 0; i < 4; i++) {
                if (bits >> i & 1) {
                    visit(4 * quad + i, here.x);
                }
                here = make_float4(here.y, here.z, here.w, 0.0f);
            }
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------
// Shared memory
// ---------------------------------------------------------------------------------------------------------------

constexpr u32 SAMPLE_THREADS = 1024;
constexpr u32 DIGIT_BITS = 11;
constexpr u32 BINS = 1 << DIGIT_BITS;
// More tokens in one bin are rare; then the whole row is gone through again.
constexpr u32 MEMBERS_MAX = 2048;

struct SampleState {
    // Sums of 64 bits in two halves, because shared memory adds 32 bits at once.
    u32 low[BINS], high[BINS];
    // Tokens of one bin, in any order.
    u32 members;
    u32 member_tokens[MEMBERS_MAX];
    u64 parts[32];
    float best_logits[32];
    u32 best_tokens[32];
    // What one thread found for all.
    u32 found_bin;
    u64 found_before;
    u32 found_token;
};

__device__ __forceinline__ void clear_histogram(SampleState& state) {
    for (u32 bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        state.low[bin] = state.high[bin] = 0;
    }
    __syncthreads();
}

__device__ __forceinline__ void add_to_bin(SampleState& state, u32 bin, u64 amount) {
    u32 low = (u32)amount, high = (u32)(amount >> 32);
    u32 before = atomicAdd(&state.low[bin], low);
    // The addition that overflows carries.
    high += before + low < before;
    if (high) {
        atomicAdd(&state.high[bin], high);
    }
}

// Finds the first bin with which the sum reaches `target`: its number, the sum before it, and its own. False if none.
__device__ __forceinline__ bool find_bin(SampleState& state, u64 target) {
    __syncthreads();
    u32 first = threadIdx.x * (BINS / SAMPLE_THREADS);
    u64 own = 0;
#pragma unroll
    for (u32 i = 0; i < BINS / SAMPLE_THREADS; i++) {
        own += (u64)state.high[first + i] << 32 | state.low[first + i];
    }
    u64 through = block_prefix(own, state.parts);
    bool here = through >= target && through - own < target;
    if (here) {
        u64 before = through - own;
        for (u32 bin = first;; bin++) {
            u64 amount = (u64)state.high[bin] << 32 | state.low[bin];
            if (before + amount >= target) {
                state.found_bin = bin;
                state.found_before = before;
                break;
            }
            before += amount;
        }
    }
    return __syncthreads_or(here);
}

// ---------------------------------------------------------------------------------------------------------------
// Searches by the whole block
// ---------------------------------------------------------------------------------------------------------------

struct Best {
    float logit;
    u32 token;
};

// The largest logit; of equal ones, the lowest token. A NaN is never it; without any, minus infinity of token 0.
__device__ __forceinline__ Best find_best(const Tokens& tokens, SampleState& state) {
    Best best = {-f32_infinity(), 0};
    tokens.each<true>([&](u32 token, float logit) {
        if (logit > best.logit) {
            best = {logit, token};
        }
    });
    auto over_warp = [&] {
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            float logit = __shfl_xor_sync(ALL_LANES, best.logit, lanes);
            u32 token = __shfl_xor_sync(ALL_LANES, best.token, lanes);
            if (logit > best.logit || (logit == best.logit && token < best.token)) {
                best = {logit, token};
            }
        }
    };
    over_warp();
    __syncthreads();
    if (lane_id() == 0) {
        state.best_logits[warp_id()] = best.logit;
        state.best_tokens[warp_id()] = best.token;
    }
    __syncthreads();
    best = {state.best_logits[lane_id()], state.best_tokens[lane_id()]};
    over_warp();
    return best;
}

// The token at which the sum of amount(token, logit), in the order of tokens, exceeds place(total). Token 0 if it never
// does.
template <bool HOT, class Amount, class Place>
__device__ __forceinline__ u32 find_in_order(const Tokens& tokens, SampleState& state, const Amount& amount,
                                             const Place& place) {
    u64 own = 0;
    tokens.each<HOT>([&](u32 token, float logit) { own += amount(token, logit); });
    own = warp_sum(own);
    __syncthreads();
    if (lane_id() == 0) {
        state.parts[warp_id()] = own;
    }
    if (threadIdx.x == 0) {
        state.found_token = 0;
    }
    __syncthreads();
    u64 total = warp_sum(state.parts[lane_id()]);
    u64 wanted = place(total);
    // The warp whose part has the place, then the thread, then the token.
    u64 before = 0;
    u32 warp = 0;
    while (warp < 31 && before + state.parts[warp] <= wanted) {
        before += state.parts[warp++];
    }
    u32 part = tokens.quads_of_warp();
    u32 each = ceil_div(4 * part, blockDim.x);
    u32 part_end = min(4 * (warp + 1) * part, tokens.vocab);
    u32 first = min(4 * warp * part + threadIdx.x * each, part_end), end = min(first + each, part_end);
    own = 0;
    auto amount_at = [&](u32 token) {
        return tokens.allows(token) ? amount(token, tokens.logits[token]) : 0;
    };
#pragma unroll 1
    for (u32 token = first; token < end; token++) {
        own += amount_at(token);
    }
    before += block_prefix(own, state.parts) - own;
    if (before <= wanted && wanted < before + own) {
        u32 token = first;
#pragma unroll 1
        while ((before += amount_at(token)) <= wanted) {
            token++;
        }
        state.found_token = token;
    }
    __syncthreads();
    return state.found_token;
}

// Collects the tokens that are wanted, in any order; gives how many there are, of which MEMBERS_MAX at most are kept.
template <class Wanted>
__device__ __forceinline__ u32 gather(const Tokens& tokens, SampleState& state, const Wanted& wanted) {
    // What was collected before may still be read.
    __syncthreads();
    if (threadIdx.x == 0) {
        state.members = 0;
    }
    __syncthreads();
    tokens.each<false>([&](u32 token, float logit) {
        if (wanted(token, logit)) {
            u32 place = atomicAdd(&state.members, 1);
            if (place < MEMBERS_MAX) {
                state.member_tokens[place] = token;
            }
        }
    });
    __syncthreads();
    return state.members;
}

// Keeps the fewest likeliest of the tokens in `within` that are `target` many, or whose mass is as large; all of them
// if it is not.
__device__ __forceinline__ Cut find_cut(const Tokens& tokens, SampleState& state, Scale scale, Cut within, bool by_mass,
                                        u64 target) {
    auto amount = [&](float distance) { return by_mass ? mass_at(distance) : 1; };
    // First digit. Chosen: distance 8 is a weight of 1/3000, beyond which cuts that people ask for rarely reach.
    const u32 nearest = 8u << 27;
    bool found = false;
#pragma unroll 1
    for (u64 limit = nearest; !found && limit <= 1ull << 32; limit *= 2) {
        clear_histogram(state);
        tokens.each<false>([&](u32 token, float logit) {
            float distance = distance_of(logit, scale);
            u32 key = key_of(distance);
            if (key < limit && within.keeps(key, token)) {
                add_to_bin(state, key >> 21, amount(distance));
            }
        });
        found = find_bin(state, target);
    }
    if (!found) {
        return within;
    }
    u32 digits = state.found_bin;
    u64 before = state.found_before;
    // What follows looks at the tokens with that digit alone, if they are few.
    u32 members = gather(tokens, state, [&](u32 token, float logit) {
        u32 key = key_of(distance_of(logit, scale));
        return key >> 21 == digits && within.keeps(key, token);
    });
    auto each_member = [&](auto visit) {
        if (members <= MEMBERS_MAX) {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < members; i += blockDim.x) {
                visit(state.member_tokens[i], tokens.logits[state.member_tokens[i]]);
            }
        } else {
            tokens.each<false>(visit);
        }
    };
    // The two other digits, of 11 and of 10 bits.
    u32 shift = 21;
#pragma unroll 1
    for (u32 bits = DIGIT_BITS; shift > 0; bits--) {
        clear_histogram(state);
        each_member([&](u32 token, float logit) {
            float distance = distance_of(logit, scale);
            u32 key = key_of(distance);
            if (key >> shift == digits && within.keeps(key, token)) {
                add_to_bin(state, key >> (shift - bits) & ((1u << bits) - 1), amount(distance));
            }
        });
        find_bin(state, target - before);
        digits = digits << bits | state.found_bin;
        before += state.found_before;
        shift -= bits;
    }
    // Of several tokens with that key, the lowest.
    u32 equals = 0;
    each_member([&](u32 token, float logit) {
        u32 key = key_of(distance_of(logit, scale));
        equals += key == digits && within.keeps(key, token);
    });
    if (block_sum(equals, reinterpret_cast<u32*>(state.parts)) == 1) {
        return {digits, digits == within.key ? within.last_token : NO_LIMIT};
    }
    u64 left = target - before;
    auto amount_of_equal = [&](u32 token, float logit) -> u64 {
        float distance = distance_of(logit, scale);
        u32 key = key_of(distance);
        return key == digits && within.keeps(key, token) ? amount(distance) : 0;
    };
    return {digits, find_in_order<false>(tokens, state, amount_of_equal, [&](u64) { return left - 1; })};
}

// The mass of all tokens that a cut keeps.
__device__ __forceinline__ u64 total_mass(const Tokens& tokens, SampleState& state, Scale scale, Cut cut) {
    u64 own = 0;
    tokens.each<true>([&](u32 token, float logit) {
        float distance = distance_of(logit, scale);
        own += cut.keeps(key_of(distance), token) ? mass_at(distance) : 0;
    });
    return block_sum(own, state.parts);
}

// ---------------------------------------------------------------------------------------------------------------
// Report and draw
// ---------------------------------------------------------------------------------------------------------------

// Writes the tokens that a cut keeps, at most TOP_MAX, the likeliest first. Log-probabilities are logits minus
// `log_sum`.
__device__ __forceinline__ void report_top(const Tokens& tokens, SampleState& state, Scale scale, Cut cut,
                                           double log_sum, Drawn& out) {
    u32 members = gather(tokens, state, [&](u32 token, float logit) {
        return cut.keeps(key_of(distance_of(logit, scale)), token);
    });
    if (warp_id() == 0) {
        // A lane for each: its rank is how many are before it.
        bool is_one = lane_id() < min(members, (u32)TOP_MAX);
        u32 token = is_one ? state.member_tokens[lane_id()] : NO_LIMIT;
        u32 key = is_one ? key_of(distance_of(tokens.logits[token], scale)) : NO_LIMIT;
        u32 rank = 0;
        for (int other = 0; other < TOP_MAX; other++) {
            u32 other_key = __shfl_sync(ALL_LANES, key, other), other_token = __shfl_sync(ALL_LANES, token, other);
            rank += other_key < key || (other_key == key && other_token < token);
        }
        if (is_one) {
            out.top_tokens[rank] = token;
            out.top_logprobs[rank] = (float)((double)tokens.logits[token] - log_sum);
        }
    }
    __syncthreads();
}

// Applies the changes, and leaves the logit as it was in the place of the bias.
__device__ __forceinline__ void edit_logits(const SampleSpec& spec, LogitEdit* edits, float* logits) {
    for (u32 i = threadIdx.x; i < spec.edits; i += blockDim.x) {
        LogitEdit edit = edits[i];
        float raw = logits[edit.token];
        float logit = raw + edit.bias;
        if (edit.repeated) {
            logit = logit > 0.0f ? logit / spec.repetition : logit * spec.repetition;
        }
        logits[edit.token] = logit - edit.penalty;
        edits[i].bias = raw;
    }
    __syncthreads();
}

// A draw from what the cuts leave.
__device__ __forceinline__ u32 draw(const Tokens& tokens, SampleState& state, const SampleSpec& spec, Scale scale,
                                    Cut cut) {
    float least = fminf(spec.min_p, 1.0f);
    auto mass = [&](u32 token, float logit) -> u64 {
        float distance = distance_of(logit, scale);
        if (distance >= MASSLESS_DISTANCE || !cut.keeps(key_of(distance), token)) {
            return 0;
        }
        // The likeliest weighs 1, so that its share of min_p is the threshold.
        float weight = weight_of(distance);
        return weight >= least ? mass_of(weight) : 0;
    };
    return find_in_order<true>(tokens, state, mass, [&](u64 total) { return __umul64hi(total, spec.uniform); });
}

// The first token that the mask allows: for a model whose allowed logits are all broken.
__device__ __forceinline__ u32 first_allowed(const Tokens& tokens) {
    u32 word = 0;
    while (word + 1 < tokens.mask_words && !tokens.mask[word]) {
        word++;
    }
    return 32 * word + __ffs(tokens.mask[word]) - 1;
}

// A share below 1 of a mass, at least the least mass there is: of nothing, the likeliest token is kept.
__device__ __forceinline__ u64 share_of(u64 total, float share) {
    // Its 24 bits stay exact from 2^-40 on.
    u64 fraction = (u64)(share * 18446744073709551616.0f);
    return max(__umul64hi(total, fraction), (u64)1);
}

// Searches for cuts: of the raw logits for the report; then of edited logits, by count, and of those left by mass.
enum Turn { TURN_REPORT, TURN_TOP_K, TURN_TOP_P };

extern "C" __global__ void __launch_bounds__(1024) sample(const __grid_constant__ SampleArgs args) {
    __shared__ SampleState state;
    const Step* step = args.step;
    u32 index = blockIdx.x;
    if (index >= step->samples) {
        return;
    }
    const SampleSpec& spec = step_array<SampleSpec>(step, step->samples_at)[index];
    LogitEdit* edits = const_cast<LogitEdit*>(step_array<LogitEdit>(step, step->edits_at)) + spec.first_edit;
    float* logits = args.logits + (u64)index * args.stride;
    Drawn& out = args.out[index];
    bool draws = spec.temperature > 0.0f;
    Tokens tokens = {logits, args.vocab, nullptr, 0};
    Best best;
    Scale scale;
    Cut cut;
    double log_sum = 0.0;
    // What follows is the same for all three; a loop keeps the kernel small.
#pragma unroll 1
    for (u32 turn = spec.report ? TURN_REPORT : TURN_TOP_K; turn <= TURN_TOP_P; turn++) {
        if (turn == TURN_TOP_K) {
            edit_logits(spec, edits, logits);
            tokens.mask = step_array<u32>(step, step->masks_at) + spec.mask;
            tokens.mask_words = spec.mask_words;
        }
        if (turn != TURN_TOP_P) {
            best = find_best(tokens, state);
            scale = {best.logit, turn == TURN_REPORT ? 1.0f : 1.0f / spec.temperature};
            cut = {NO_LIMIT, NO_LIMIT};
        }
        u64 target = 0;
        if (turn == TURN_TOP_K) {
            target = draws && spec.top_k < tokens.vocab ? spec.top_k : 0;
        } else if (turn == TURN_REPORT || (draws && spec.top_p < 1.0f)) {
            u64 total = total_mass(tokens, state, scale, cut);
            log_sum = turn == TURN_REPORT ? (double)scale.max + log((double)total / MASS_ONE) : log_sum;
            target = turn == TURN_REPORT ? spec.report - 1 : share_of(total, spec.top_p);
        }
        if (target) {
            cut = find_cut(tokens, state, scale, cut, turn == TURN_TOP_P, target);
        }
        if (target && turn == TURN_REPORT) {
            report_top(tokens, state, scale, cut, log_sum, out);
        }
    }
    u32 token = draws ? draw(tokens, state, spec, scale, cut) : best.token;
    if (!tokens.allows(token)) {
        token = first_allowed(tokens);
    }
    if (threadIdx.x == 0) {
        out.token = token;
        args.drawn[index] = token;
    }
    if (spec.report) {
        if (threadIdx.x == 0) {
            out.logprob = (float)((double)logits[token] - log_sum);
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < spec.edits; i += blockDim.x) {
            if (edits[i].token == token) {
                out.logprob = (float)((double)edits[i].bias - log_sum);
            }
        }
    }
}
