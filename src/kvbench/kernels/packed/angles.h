// Cosines and sines of positions times RoPE's frequencies.
#pragma once

#include "standard.h"

namespace {

template <int PAIRS>
struct Angle {  // of every pair of channels
    alignas(64) float cos[PAIRS], sin[PAIRS];
};

// A position is the first one, a multiple of STEP, and what is left: angles of the two latter are made once, and added.
template <int PAIRS>
class Angles {
    static constexpr long STEP = 64;
    const float* frequency = nullptr;
    long first = 0;
    std::vector<Angle<PAIRS>> coarse, fine;

    void multiples(std::vector<Angle<PAIRS>>& out, long count, double start, double step) {
        double cos[PAIRS], sin[PAIRS], next_cos[PAIRS], next_sin[PAIRS];
        for (int pair = 0; pair < PAIRS; pair++) {
            cos[pair] = std::cos(start * frequency[pair]);
            sin[pair] = std::sin(start * frequency[pair]);
            next_cos[pair] = std::cos(step * frequency[pair]);
            next_sin[pair] = std::sin(step * frequency[pair]);
        }
        out.resize(count);
        for (long at = 0; at < count; at++)
            for (int pair = 0; pair < PAIRS; pair++) {
                const double c = cos[pair], s = sin[pair];
                out[at].cos[pair] = (float)c;
                out[at].sin[pair] = (float)s;
                cos[pair] = c * next_cos[pair] - s * next_sin[pair];
                sin[pair] = s * next_cos[pair] + c * next_sin[pair];
            }
    }

   public:
    Angles() = default;
    Angles(const float* frequency, long least, long most) : frequency(frequency), first(least) {
        multiples(coarse, (most - least) / STEP + 1, (double)least, (double)STEP);
        multiples(fine, most - least < STEP ? most - least + 1 : STEP, 0.0, 1.0);
    }

    // Inline, loops over positions would be computed side by side, and pairs one by one.
    __attribute__((noinline)) void of(long position, Angle<PAIRS>& out) const {
        const Angle<PAIRS>&a = coarse[(position - first) / STEP], &b = fine[(position - first) % STEP];
        const float at = (float)position;
#pragma GCC ivdep
        for (int pair = 0; pair < PAIRS; pair++) {
            const float cos = a.cos[pair] * b.cos[pair] - a.sin[pair] * b.sin[pair];
            const float sin = a.sin[pair] * b.cos[pair] + a.cos[pair] * b.sin[pair];
            // The model rotated by the product rounded to float32: turn by what that is more.
            const float rounded = at * frequency[pair];
            const float more = __builtin_fmaf(-at, frequency[pair], rounded);
            out.cos[pair] = cos - more * (sin + more / 2 * cos);
            out.sin[pair] = sin + more * (cos - more / 2 * sin);
        }
    }
};

}  // namespace
