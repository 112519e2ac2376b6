// The gate of feed-forward layers: a part of products that are gated, and a kernel behind those that only store.
#pragma once

namespace product {

// gate(x) * up = x / (1 + exp(-x (slope + cubic x^2))) * (up + shift), with x and up cut off at `limit`: silu, gelu by
// its tanh formula, and the clamped gate of gpt-oss differ in these numbers alone.
struct Gate {
    float slope, cubic;  // times log2(e), for exp2
    float limit, shift;

    __device__ __forceinline__ explicit Gate(u32 kind) {
        const float log2_e = 1.44269504f;
        const float twice_root = 1.59576912f;  // 2 sqrt(2 / pi)
        bool gelu = kind == GATE_GELU, clamped = kind == GATE_CLAMPED;
        slope = log2_e * (gelu ? twice_root : clamped ? 1.702f : 1.0f);
        cubic = gelu ? log2_e * twice_root * 0.044715f : 0.0f;
        limit = clamped ? 7.0f : 3.4e38f;
        shift = clamped ? 1.0f : 0.0f;
    }

    __device__ __forceinline__ float of(float x, float up) const {
        // Not fminf(), which turns a NaN into the limit: what went wrong has to show.
        x = x > limit ? limit : x;
        up = up > limit ? limit : up < -limit ? -limit : up;
        float power = x * fmaf(cubic * x, x, slope);
        return __fdividef(x, 1.0f + exp2_fast(-power)) * (up + shift);
    }
};

}  // namespace product
