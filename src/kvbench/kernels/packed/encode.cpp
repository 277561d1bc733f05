// Rows of numbers as codes on a CPU, compiled for one form of rows that have scales of their own.

#include <cmath>
#include <cstring>

#include "form.h"

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

inline void encode_group(const float* numbers, int count, float clip, Half* scale_out, Half* low_out, uint8_t* codes) {
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
    Half kept = (Half)reach;
    if (kept == 0) kept = 1;
    *scale_out = kept;
    const float scale = (float)kept;
    float low = 0;
    if constexpr (!SYMMETRIC) {
        *low_out = (Half)least;
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

}  // namespace

// Codes [rows, WIDTH], scales and least numbers [rows, SCALES] of numbers [rows, DIM].
extern "C" void encode(const float* numbers, long rows, float clip, uint8_t* codes, void* scales, void* lows) {
    for (long row = 0; row < rows; row++) {
        const float* mine = numbers + row * DIM;
        uint8_t* out = codes + row * WIDTH;
        uint8_t each[DIM];
        for (int group = 0; group < SCALES; group++) {
            const int first = group * CHANNELS, count = first + CHANNELS > DIM ? DIM - first : CHANNELS;
            const long at = row * SCALES + group;
            encode_group(mine + first, count, clip, (Half*)scales + at, (Half*)lows + at, each + first);
        }
        pack<FIRST>(each, 0, out);
        if constexpr (BITS == 3) pack<1>(each, 2, out + width(2));
    }
}
