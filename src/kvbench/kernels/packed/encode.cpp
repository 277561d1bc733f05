// Rows of numbers as codes on a CPU, compiled for one form of rows that have scales of their own.

#include "kept.h"
#include "standard.h"

namespace {

constexpr int LEVELS = (1 << BITS) - 1;  // steps between the least code and the largest
constexpr float LARGEST_E4M3 = 448;

// The e4m3 next to a number, ties to even: three bits behind the first, from 2^-6 on; below it, multiples of 2^-9.
inline uint8_t to_e4m3(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    const uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
    const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3);
    const uint32_t small = (uint32_t)std::nearbyint(std::fabs(number) * 512);
    return (uint8_t)(sign | (size < 0x3c800000 ? small : normal));
}

inline float clamped(float number, float least, float most) {
    return number < least ? least : number > most ? most : number;
}

// What is kept of a scale or of a least number: e4m3 has no infinity.
template <typename To>
inline To in_few_bits(float number) {
    if constexpr (sizeof(To) == 1)
        return {to_e4m3(clamped(number, -LARGEST_E4M3, LARGEST_E4M3))};
    else
        return (To)number;
}

inline void encode_group(const float* numbers, int count, float clip, Scale* scale_out, Scale* low_out, uint8_t* codes) {
    float least = numbers[0], most = numbers[0];
    for (int at = 1; at < count; at++) {
        least = numbers[at] < least ? numbers[at] : least;
        most = numbers[at] > most ? numbers[at] : most;
    }
    if constexpr (!SYMMETRIC) {
        least *= clip;
        most *= clip;
    }
    const float largest = -least > most ? -least : most;
    const float reach = E4M3 ? largest / LARGEST_E4M3 : SYMMETRIC ? largest / MIDDLE : (most - least) / LEVELS;
    Scale kept = in_few_bits<Scale>(reach);
    if ((float)kept == 0) kept = in_few_bits<Scale>(1);
    *scale_out = kept;
    const float scale = (float)kept;
    float low = 0;
    if constexpr (!SYMMETRIC) {
        *low_out = in_few_bits<Scale>(least);
        low = (float)*low_out;
    }
    for (int at = 0; at < count; at++) {
        if constexpr (E4M3)
            codes[at] = to_e4m3(clamped(numbers[at] / scale, -LARGEST_E4M3, LARGEST_E4M3));
        else if constexpr (SYMMETRIC)
            codes[at] = (uint8_t)(clamped(std::nearbyint(numbers[at] / scale), -MIDDLE, MIDDLE) + MIDDLE);
        else
            codes[at] = (uint8_t)clamped(std::nearbyint((numbers[at] - low) / scale), 0, LEVELS);
    }
}

template <int PLANE>
inline void pack(const uint8_t* codes, int shift, uint8_t* out) {
    constexpr int parts = 8 / PLANE, each = width(PLANE);
    for (int at = 0; at < each; at++) {
        int byte = 0;
        for (int part = 0; part < parts; part++) {
            const int channel = part * each + at;
            if (channel < DIM) byte |= ((codes[channel] >> shift) & ((1 << PLANE) - 1)) << (part * PLANE);
        }
        out[at] = (uint8_t)byte;
    }
}

inline void encode_row(const float* numbers, float clip, uint8_t* codes, Scale* scales, Scale* lows) {
    uint8_t each[DIM];
    for (int group = 0; group < SCALES; group++) {
        const int first = group * CHANNELS, count = first + CHANNELS > DIM ? DIM - first : CHANNELS;
        encode_group(numbers + first, count, clip, scales + group, lows + group, each + first);
    }
    pack<FIRST>(each, 0, codes);
    if constexpr (BITS == 3) pack<1>(each, 2, codes + width(2));
}

}  // namespace

// Numbers [batch, heads, tokens, DIM] that become rows first, first + 1 ... of each head, or the rows that `at` says
// [batch, heads, tokens]. Steps of the numbers are from one batch row, head and token to the next.
struct Numbers {
    const float* numbers;
    const int64_t* at;
    const Kept* to;
    long batch_step, head_step, token_step, tokens, first;
    float clip;
};

extern "C" void encode(const Numbers* given) {
    const auto [numbers, at, to, batch_step, head_step, token_step, tokens, first, clip] = *given;
    for (long batch = 0; batch < to->batch; batch++)
        for (long head = 0; head < to->heads; head++) {
            uint8_t* codes = to->codes + batch * to->codes_step[0] + head * to->codes_step[1];
            Scale* scales = to->scales + batch * to->scales_step[0] + head * to->scales_step[1];
            Scale* lows = to->lows + batch * to->lows_step[0] + head * to->lows_step[1];
            for (long token = 0; token < tokens; token++) {
                const long row = at ? at[(batch * to->heads + head) * tokens + token] : first + token;
                const float* mine = numbers + batch * batch_step + head * head_step + token * token_step;
                encode_row(mine, clip, codes + row * WIDTH, scales + row * SCALES, lows + row * SCALES);
            }
        }
}
