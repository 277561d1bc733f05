// Vectors of as many numbers as the processor computes at once, and what codes stand for.
#pragma once

#include "standard.h"
#if HAS_AVX2 && !defined(__AVX512F__)
#define SHUFFLES_BYTES 1  // the quickest table of 16 numbers where registers hold 8
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr bool PICKS_QUICKLY = true;
#else
constexpr int LANES = 8;
constexpr bool PICKS_QUICKLY = false;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* from) {
    Floats out;
    std::memcpy(&out, from, sizeof(out));
    return out;
}

inline Ints bytes(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif HAS_AVX2
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    Ints out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = from[lane];
    return out;
#endif
}

// The numbers of a table that the lowest four bits of codes say.
inline Floats picked(Floats table, Ints codes) {
#if defined(__AVX512F__)
    return (Floats)_mm512_permutexvar_ps((__m512i)codes, (__m512)table);
#else
    Floats out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = table[codes[lane] & 15];
    return out;
#endif
}

inline Floats halves(const void* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif HAS_AVX2
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    Half numbers[LANES];
    std::memcpy(numbers, from, sizeof(numbers));
    Floats out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = (float)numbers[lane];
    return out;
#endif
}

inline Floats bfloats(const void* from) {
    uint16_t numbers[LANES];
    std::memcpy(numbers, from, sizeof(numbers));
    Ints bits;
#pragma GCC unroll 64
    for (int lane = 0; lane < LANES; lane++) bits[lane] = (int32_t)((uint32_t)numbers[lane] << 16);
    Floats out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
}

inline float total(Floats of) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)of);
#elif HAS_AVX2
    __m256 whole = (__m256)of;
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float out = 0;
    for (int lane = 0; lane < LANES; lane++) out += of[lane];
    return out;
#endif
}

// Sums of vectors' lanes, found for four vectors at once where the processor can.
class Totals {
    Floats waiting[4];
    float by[4], plus[4];
    float* to[4];
    int count = 0;

   public:
    // Have to = total(of) * by + plus written, at the latest by flush().
    void add(Floats of, float* to, float by, float plus) {
        waiting[count] = of;
        this->to[count] = to;
        this->by[count] = by;
        this->plus[count] = plus;
        if (++count < 4) return;
        count = 0;
        float four[4];
        totals(four);
        for (int at = 0; at < 4; at++) *this->to[at] = four[at] * this->by[at] + this->plus[at];
    }

    void flush() {
        for (int at = 0; at < count; at++) *to[at] = total(waiting[at]) * by[at] + plus[at];
        count = 0;
    }

   private:
    void totals(float* four) const {
#if defined(__AVX512F__)
        const __m512 a = (__m512)waiting[0], b = (__m512)waiting[1], c = (__m512)waiting[2], d = (__m512)waiting[3];
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        _mm_storeu_ps(four, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif HAS_AVX2
        const __m256 ab = _mm256_hadd_ps((__m256)waiting[0], (__m256)waiting[1]);
        const __m256 cd = _mm256_hadd_ps((__m256)waiting[2], (__m256)waiting[3]);
        const __m256 all = _mm256_hadd_ps(ab, cd);
        _mm_storeu_ps(four, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
        for (int at = 0; at < 4; at++) four[at] = total(waiting[at]);
#endif
    }
};

// The number that the bits of an e4m3 stand for: the exponent's bias is 7 there and 127 here.
inline Floats from_e4m3(Ints code) {
    Ints bits = ((code & 0x80) << 24) | ((code & 0x7f) << 20);
    Floats out;
    std::memcpy(&out, &bits, sizeof(out));
    return out * 0x1p120f;
}

inline float float_of_e4m3(uint8_t code) {
    const uint32_t bits = (uint32_t)(code & 0x80) << 24 | (uint32_t)(code & 0x7f) << 20;
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out * 0x1p120f;
}

// What the codes of a codebook stand for; up to 16 numbers are kept in registers.
template <int LEVELS>
class Table {
    static constexpr int SIZE = LEVELS < 16 ? 16 : LEVELS;
    alignas(64) float numbers[SIZE] = {};
#if SHUFFLES_BYTES
    __m256i bytes_of[4];  // of each of 16 numbers, twice

    void shuffle(__m256i codes, Floats* to) const {
        const __m256i a = _mm256_shuffle_epi8(bytes_of[0], codes), b = _mm256_shuffle_epi8(bytes_of[1], codes);
        const __m256i c = _mm256_shuffle_epi8(bytes_of[2], codes), d = _mm256_shuffle_epi8(bytes_of[3], codes);
        const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpacklo_epi8(c, d);
        const __m256i next_low = _mm256_unpackhi_epi8(a, b), next_high = _mm256_unpackhi_epi8(c, d);
        to[0] = (Floats)_mm256_unpacklo_epi16(low, high);
        to[1] = (Floats)_mm256_unpackhi_epi16(low, high);
        to[2] = (Floats)_mm256_unpacklo_epi16(next_low, next_high);
        to[3] = (Floats)_mm256_unpackhi_epi16(next_low, next_high);
    }
#endif

   public:
    explicit Table(const float* levels) {
        std::memcpy(numbers, levels, LEVELS * sizeof(float));
#if SHUFFLES_BYTES
        if constexpr (LEVELS != 16) return;
        uint8_t bytes[4][32];
        for (int byte = 0; byte < 4; byte++)
            for (int at = 0; at < 32; at++) bytes[byte][at] = ((const uint8_t*)&numbers[at % 16])[byte];
        std::memcpy(bytes_of, bytes, sizeof(bytes));
#endif
    }

#if SHUFFLES_BYTES
    // What 32 bytes of two codes of 4 bits stand for: 32 numbers each for their low and their high halves.
    void halves_of(const uint8_t* from, Floats* low, Floats* high) const {
        const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7), mask = _mm256_set1_epi8(15);
        const __m256i both = _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)from), order);
        shuffle(_mm256_and_si256(both, mask), low);
        shuffle(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), high);
    }
#endif

    Floats operator[](Ints code) const {
#if defined(__AVX512F__)
        if constexpr (LEVELS > 16) return (Floats)_mm512_i32gather_ps((__m512i)code, numbers, 4);
        return (Floats)_mm512_permutexvar_ps((__m512i)code, _mm512_load_ps(numbers));
#elif HAS_AVX2
        if constexpr (LEVELS > 16) return (Floats)_mm256_i32gather_ps(numbers, (__m256i)code, 4);
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(numbers), (__m256i)code);
        if constexpr (LEVELS <= 8) return (Floats)low;
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(numbers + 8), (__m256i)code);
        return (Floats)_mm256_blendv_ps(low, high, (__m256)(code << 28));
#else
        Floats out;
        for (int lane = 0; lane < LANES; lane++) out[lane] = numbers[code[lane]];
        return out;
#endif
    }
};

}  // namespace
