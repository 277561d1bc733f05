// A few rows against a matrix on a CPU, where reading the matrix is all that takes time: each of its numbers is read once
// for every four rows, and asked for before it is needed.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int LANES = 16;
constexpr int BLOCK = 4 * LANES;
constexpr long LINE = 64, AHEAD = 4096;  // bytes
constexpr long CHUNK = 64;               // rows of the matrix that a thread takes at a time
constexpr int TOGETHER = 4;              // rows that share what is read

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

template <typename V>
inline V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}

inline Lanes lanes(const float* from) { return load<Lanes>(from); }

inline Lanes lanes(const uint16_t* from) {  // bfloat16 is the upper half of a float
    const Bits bits = __builtin_convertvector(load<Halves>(from), Bits) << 16;
    return load<Lanes>(&bits);
}

inline float total(const Lanes& sum) {
    typedef float Eight __attribute__((vector_size(2 * LANES)));
    typedef float Four __attribute__((vector_size(LANES)));
    Eight eight[2];
    std::memcpy(eight, &sum, sizeof(sum));
    eight[0] += eight[1];
    Four four[2];
    std::memcpy(four, eight, sizeof(eight[0]));
    four[0] += four[1];
    return (four[0][0] + four[0][1]) + (four[0][2] + four[0][3]);
}

inline void ask(const void* from, long bytes) {
    for (long at = 0; at < bytes; at += LINE) __builtin_prefetch((const char*)from + AHEAD + at);
}

}  // namespace

extern "C" {

struct Given {
    const void* matrix;  // [sets, entries, width]: `step` numbers from one set to the next, `width` from row to row
    const float* rows;   // [sets, count, width], or weights [sets, count, entries]
    const float* bias;   // [entries], or null
    float* out;          // [sets, count, entries], or [parts, sets, count, width]
    long sets, step, entries, count, width, parts, threads, halves;
};

struct Norms {
    const float *rows, *weight;  // [count, width] and [width]
    float* out;                  // [count, width]
    long count, width;
    float least;
};

}  // extern "C"

namespace {

template <int R>
using Rows = std::integral_constant<int, R>;

// Takes rows four at a time, and those that are left at once: `take` is told how many, and the first of them.
template <typename F>
inline void by_rows(long count, F take) {
    long r = 0;
    for (; r + TOGETHER <= count; r += TOGETHER) take(Rows<TOGETHER>(), r);
    if (count - r == 3) take(Rows<3>(), r);
    if (count - r == 2) take(Rows<2>(), r);
    if (count - r == 1) take(Rows<1>(), r);
}

// Products of R rows with each row of the matrix; no sum waits for the one before it.
template <typename T, int R>
[[gnu::noinline]] void product(const Given& g, const T* a, const float* x, const float* bias, float* out, long entries) {
    constexpr int APART = R == 1 ? 4 : R == 2 ? 2 : 1;
    const long width = g.width, step = g.entries, even = width / BLOCK * BLOCK;
    for (long n = 0; n < entries; n++, a += width) {
        Lanes sum[R][APART] = {};
        for (long k = 0; k < even; k += BLOCK) {
            ask(a + k, BLOCK * sizeof(T));
            for (int j = 0; j < BLOCK / LANES; j++) {
                const Lanes value = lanes(a + k + j * LANES);
                for (int r = 0; r < R; r++) sum[r][j % APART] += value * lanes(x + r * width + k + j * LANES);
            }
        }
        for (long k = even; k < width; k += LANES) {
            const Lanes value = lanes(a + k);
            for (int r = 0; r < R; r++) sum[r][0] += value * lanes(x + r * width + k);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            for (int j = 1; j < APART; j++) sum[r][0] += sum[r][j];
            out[r * step + n] = total(sum[r][0]) + (bias == nullptr ? 0.0f : bias[n]);
        }
    }
}

template <typename T>
void products_of(const Given& g) {
    const long chunks = (g.entries + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(g.threads) schedule(static)
    for (long each = 0; each < g.sets * chunks; each++) {
        const long set = each / chunks, first = each % chunks * CHUNK;
        const long entries = first + CHUNK < g.entries ? CHUNK : g.entries - first;
        const T* a = (const T*)g.matrix + set * g.step + first * g.width;
        const float *x = g.rows + set * g.count * g.width, *bias = g.bias == nullptr ? nullptr : g.bias + first;
        float* out = g.out + set * g.count * g.entries + first;
        by_rows(g.count, [&](auto rows, long r) {
            product<T, decltype(rows)::value>(g, a, x + r * g.width, bias, out + r * g.entries, entries);
        });
    }
}

// The matrix's rows first .. last by R rows of weights, of C * LANES of its columns.
template <typename T, int R, int C>
[[gnu::noinline]] void sum(const Given& g, const T* a, const float* weights, float* out, long first, long last) {
    Lanes sum[R][C] = {};
    a += first * g.width;
    for (long n = first; n < last; n++, a += g.width) {
        ask(a, C * LANES * sizeof(T));
        for (int c = 0; c < C; c++) {
            const Lanes value = lanes(a + c * LANES);
            for (int r = 0; r < R; r++) sum[r][c] += value * weights[r * g.entries + n];
        }
    }
    for (int r = 0; r < R; r++) std::memcpy(out + r * g.width, sum[r], sizeof(sum[r]));
}

template <typename T, int R>
void columns(const Given& g, const T* a, const float* weights, float* out, long first, long last) {
    long k = 0;
    for (; k + BLOCK <= g.width; k += BLOCK) sum<T, R, BLOCK / LANES>(g, a + k, weights, out + k, first, last);
    for (; k < g.width; k += LANES) sum<T, R, 1>(g, a + k, weights, out + k, first, last);
}

template <typename T>
void sums_of(const Given& g) {
#pragma omp parallel for num_threads(g.threads) schedule(static)
    for (long each = 0; each < g.sets * g.parts; each++) {
        const long set = each / g.parts, part = each % g.parts;
        const long first = g.entries * part / g.parts, last = g.entries * (part + 1) / g.parts;
        const T* a = (const T*)g.matrix + set * g.step;
        const float* weights = g.rows + set * g.count * g.entries;
        float* out = g.out + (part * g.sets + set) * g.count * g.width;
        by_rows(g.count, [&](auto rows, long r) {
            columns<T, decltype(rows)::value>(g, a, weights + r * g.entries, out + r * g.width, first, last);
        });
    }
}

}  // namespace

extern "C" void products(const Given* given) {
    given->halves ? products_of<uint16_t>(*given) : products_of<float>(*given);
}

extern "C" void sums(const Given* given) { given->halves ? sums_of<uint16_t>(*given) : sums_of<float>(*given); }

// Rows, each divided by the root of its mean square and `least`, times a weight per column.
extern "C" void norms(const Norms* given) {
    const long width = given->width;
    for (long r = 0; r < given->count; r++) {
        const float *rows = given->rows + r * width, *weight = given->weight;
        float* out = given->out + r * width;
        Lanes squares = {};
        for (long at = 0; at < width; at += LANES) squares += lanes(rows + at) * lanes(rows + at);
        const float by = 1 / std::sqrt(total(squares) / width + given->least);
        for (long at = 0; at < width; at += LANES) {
            const Lanes value = lanes(weight + at) * (lanes(rows + at) * by);
            std::memcpy(out + at, &value, sizeof(value));
        }
    }
}
