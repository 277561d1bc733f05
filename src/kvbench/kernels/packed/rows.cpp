// Attention on packed rows on a CPU: a row is unpacked into registers, used by every query of its KV head, forgotten.
//
// Compiled for one form of rows and SHARE queries per KV head.

#include <cstring>

#include "form.h"
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int N = (DIM + LANES - 1) / LANES;  // vectors of a row

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

constexpr bool fits(int plane) { return width(plane) % LANES == 0; }

constexpr bool IN_REGISTERS = DIM % LANES == 0 && fits(FIRST) && (BITS != 3 || fits(1)) &&
                              (PER_CHANNEL || SCALES == 1 || CHANNELS % LANES == 0);

inline Floats load(const float* from) {
    Floats out;
    std::memcpy(&out, from, sizeof(out));
    return out;
}

inline Ints bytes(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    Ints out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = from[lane];
    return out;
#endif
}

inline Floats halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    Half numbers[LANES];
    std::memcpy(numbers, from, sizeof(numbers));
    Floats out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = (float)numbers[lane];
    return out;
#endif
}

inline float total(Floats of) {
#if defined(__AVX2__) && defined(__F16C__) && !defined(__AVX512F__)
    __m256 whole = (__m256)of;
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#elif defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)of);
#else
    float out = 0;
    for (int lane = 0; lane < LANES; lane++) out += of[lane];
    return out;
#endif
}

// The number that the bits of an e4m3 stand for: the exponent's bias is 7 there and 127 here.
inline Floats from_e4m3(Ints code) {
    Ints bits = ((code & 0x80) << 24) | ((code & 0x7f) << 20);
    Floats out;
    std::memcpy(&out, &bits, sizeof(out));
    return out * 0x1p120f;
}

template <int PLANE>
inline void unpack(const uint8_t* from, int shift, Ints* codes) {
    constexpr int parts = 8 / PLANE, each = width(PLANE) / LANES;
#pragma GCC unroll 64
    for (int at = 0; at < each; at++) {
        Ints byte = bytes(from + at * LANES);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++)
            codes[part * each + at] |= ((byte >> (PLANE * part)) & ((1 << PLANE) - 1)) << shift;
    }
}

inline int code_at(const uint8_t* from, int channel, int plane) {
    const int each = width(plane);
    return (from[channel % each] >> (plane * (channel / each))) & ((1 << plane) - 1);
}

inline float least(float scale, const Half* lows, int at) {
    return IS_FLOAT ? 0 : SYMMETRIC ? -MIDDLE * scale : (float)lows[at];
}

struct Scales {
    Floats scale[N], low[N];  // of every channel, where rows share them

    void read(const Half* scales, const Half* lows) {
        alignas(64) float s[N * LANES] = {}, l[N * LANES] = {};
        for (int channel = 0; channel < DIM; channel++) {
            s[channel] = (float)scales[channel];
            l[channel] = least(s[channel], lows, channel);
        }
        std::memcpy(scale, s, sizeof(scale));
        std::memcpy(low, l, sizeof(low));
    }
};

inline void unpack_row(const uint8_t* from, const Half* scales, const Half* lows, const Scales& shared, Floats* row) {
    if constexpr (IS_HALF) {
        alignas(64) uint8_t padded[2 * N * LANES] = {};
        if constexpr (DIM % LANES) std::memcpy(padded, from, 2 * DIM);
#pragma GCC unroll 64
        for (int at = 0; at < N; at++) row[at] = halves((DIM % LANES ? padded : from) + 2 * at * LANES);
        return;
    }
    Ints codes[N] = {};
    if constexpr (IN_REGISTERS) {
        unpack<FIRST>(from, 0, codes);
        if constexpr (BITS == 3) unpack<1>(from + width(2), 2, codes);
    } else {
        alignas(64) int32_t each[N * LANES] = {};
        for (int channel = 0; channel < DIM; channel++) {
            each[channel] = code_at(from, channel, FIRST);
            if constexpr (BITS == 3) each[channel] |= code_at(from + width(2), channel, 1) << 2;
        }
        std::memcpy(codes, each, sizeof(codes));
    }
#pragma GCC unroll 64
    for (int at = 0; at < N; at++) row[at] = IS_FLOAT ? from_e4m3(codes[at]) : __builtin_convertvector(codes[at], Floats);
    if constexpr (PER_CHANNEL) {
#pragma GCC unroll 64
        for (int at = 0; at < N; at++) row[at] = row[at] * shared.scale[at] + shared.low[at];
    } else if constexpr (SCALES == 1 || IN_REGISTERS) {
#pragma GCC unroll 64
        for (int at = 0; at < N; at++) {
            const int group = SCALES == 1 ? 0 : at * LANES / CHANNELS;
            const float scale = (float)scales[group];
            row[at] = row[at] * scale + least(scale, lows, group);
        }
    } else {
        for (int channel = 0; channel < DIM; channel++) {
            const float scale = (float)scales[channel / CHANNELS];
            float& number = ((float*)row)[channel];
            number = number * scale + least(scale, lows, channel / CHANNELS);
        }
    }
}

// Calls use(entry, row) for every entry of a head.
template <typename Use>
inline void each_row(long entries, const uint8_t* codes, const Half* scales, const Half* lows, long tokens, Use use) {
    Scales shared;
    for (long entry = 0; entry < entries; entry++) {
        const long at = entry / tokens * SCALES;
        if (PER_CHANNEL && entry % tokens == 0) shared.read(scales + at, lows + at);
        Floats row[N];
        unpack_row(codes + entry * WIDTH, scales + at, lows + at, shared, row);
        use(entry, row);
    }
}

inline void read_queries(const float* from, Floats queries[SHARE][N]) {
    alignas(64) float padded[N * LANES] = {};
    for (int query = 0; query < SHARE; query++) {
        std::memcpy(padded, from + query * DIM, DIM * sizeof(float));
        std::memcpy(queries[query], padded, sizeof(padded));
    }
}

}  // namespace

// Every head has its codes `codes_step` bytes and its scales `scale_step` numbers behind the one before; a row of
// logits or weights has `row_step` numbers.
extern "C" void logits(const float* queries, float* out, long row_step, const uint8_t* codes, long codes_step,
                       const void* scales, const void* lows, long scale_step, long heads, long entries, long tokens,
                       int threads) {
#pragma omp parallel for num_threads(threads)
    for (long head = 0; head < heads; head++) {
        Floats query[SHARE][N];
        read_queries(queries + head * SHARE * DIM, query);
        float* mine = out + head * SHARE * row_step;
        each_row(entries, codes + head * codes_step, (const Half*)scales + head * scale_step,
                 (const Half*)lows + head * scale_step, tokens, [&](long entry, const Floats* row) {
                     for (int q = 0; q < SHARE; q++) {
                         Floats sum = query[q][0] * row[0];
#pragma GCC unroll 64
                         for (int at = 1; at < N; at++) sum += query[q][at] * row[at];
                         mine[q * row_step + entry] = total(sum);
                     }
                 });
    }
}

extern "C" void weighted(const float* weights, long row_step, float* out, const uint8_t* codes, long codes_step,
                         const void* scales, const void* lows, long scale_step, long heads, long entries, long tokens,
                         int threads) {
#pragma omp parallel for num_threads(threads)
    for (long head = 0; head < heads; head++) {
        Floats sum[SHARE][N] = {};
        const float* mine = weights + head * SHARE * row_step;
        each_row(entries, codes + head * codes_step, (const Half*)scales + head * scale_step,
                 (const Half*)lows + head * scale_step, tokens, [&](long entry, const Floats* row) {
                     for (int q = 0; q < SHARE; q++) {
                         const float weight = mine[q * row_step + entry];
#pragma GCC unroll 64
                         for (int at = 0; at < N; at++) sum[q][at] += weight * row[at];
                     }
                 });
        for (int q = 0; q < SHARE; q++) std::memcpy(out + (head * SHARE + q) * DIM, sum[q], DIM * sizeof(float));
    }
}
