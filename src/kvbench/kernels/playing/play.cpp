// A recorded step: calls of kernels, and the small operations between them, one after the other.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifndef __clang__
#pragma GCC optimize("O2", "tree-vectorize")  // what -O3 adds takes three times as long to compile
#endif

namespace {

constexpr int DIMS = 4;

// As kvbench.kernels.playing has them.
enum Kind : long {
    CALL, COPY, CONVERT, NEGATE, SILU, COS, SIN, NOT, HIDE, SOFTMAX, LEAST, PUT, TAKE,
    ADD, SUBTRACT, MULTIPLY, REMAINDER, DIVIDE, LARGER, SMALLER,
    DIFFERS, EQUALS, ABOVE, BELOW, FROM, UP_TO
};
enum Type : long { MARK, FLOAT, INT, LONG };

struct Operation {
    long kind, type;       // of the numbers it is given
    void (*call)(void*);   // what is called, with the first place
    long shape[DIMS];
    void* places[3];       // what comes of it, and what it is given
    long steps[3][DIMS];   // in numbers
    double number;         // that hides, or the type of what comes of it
};

// e^x, but for the last bit or two, for x up to 88; 0 where it is subnormal.
inline float exponential(float x) {
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return x < -87 ? 0 : y * power;
}

template <typename T>
inline T* at(const Operation& o, int place, const long index[3]) {
    const long* step = o.steps[place];
    return (T*)o.places[place] + index[0] * step[0] + index[1] * step[1] + index[2] * step[2];
}

// Calls use(index) for all but the last dimension.
template <typename Use>
inline void outer(const Operation& o, Use use) {
    long index[3];
    for (index[0] = 0; index[0] < o.shape[0]; index[0]++)
        for (index[1] = 0; index[1] < o.shape[1]; index[1]++)
            for (index[2] = 0; index[2] < o.shape[2]; index[2]++) use(index);
}

template <typename Out, typename A, typename B, typename Make>
void each(const Operation& o, Make make) {
    const long n = o.shape[3], step = o.steps[0][3], a_step = o.steps[1][3], b_step = o.steps[2][3];
    outer(o, [&](const long* index) {
        Out* out = at<Out>(o, 0, index);
        const A* a = at<A>(o, 1, index);
        const B* b = at<B>(o, 2, index);
        if (std::is_same<A, float>::value && step == 1 && a_step == 1 && b_step == 1)
#pragma GCC ivdep
            for (long k = 0; k < n; k++) out[k] = make(a[k], b[k]);
        else
            for (long k = 0; k < n; k++) {
                asm("");  // few numbers, or far apart: vectors would take the compiler long, and gain nothing
                out[k * step] = make(a[k * a_step], b[k * b_step]);
            }
    });
}

void softmax(const Operation& o) {
    const long n = o.shape[3];
    outer(o, [&](const long* index) {
        float* out = at<float>(o, 0, index);
        const float* given = at<float>(o, 1, index);
        float most = -INFINITY, sum = 0;
        for (long k = 0; k < n; k++) most = given[k] > most ? given[k] : most;
        for (long k = 0; k < n; k++) sum += out[k] = exponential(given[k] - most);
        const float by = 1 / sum;
        for (long k = 0; k < n; k++) out[k] *= by;
    });
}

// The place of the least of each row; the first one of several.
void least(const Operation& o) {
    outer(o, [&](const long* index) {
        const float* given = at<float>(o, 1, index);
        long found = 0;
        for (long k = 1; k < o.shape[3]; k++)
            if (given[k * o.steps[1][3]] < given[found * o.steps[1][3]]) found = k;
        *at<int64_t>(o, 0, index) = found;
    });
}

// What lies, in the place `there`, where the third place says along the third dimension, and what lies here.
template <typename T, typename Move>
void move(const Operation& o, int there, int here, Move each) {
    outer(o, [&](const long* index) {
        const int64_t* where = at<int64_t>(o, 2, index);
        T* far = (T*)o.places[there] + index[0] * o.steps[there][0] + index[1] * o.steps[there][1];
        T* near = at<T>(o, here, index);
        for (long k = 0; k < o.shape[3]; k++)
            each(far[where[k * o.steps[2][3]] * o.steps[there][2] + k * o.steps[there][3]], near[k * o.steps[here][3]]);
    });
}

template <typename T>
void sized(const Operation& o) {
    if (o.kind == COPY) each<T, T, T>(o, [](T a, T) { return a; });
    if (o.kind == PUT) move<T>(o, 0, 1, [](T& far, T& near) { far = near; });
    if (o.kind == TAKE) move<T>(o, 1, 0, [](T& far, T& near) { near = far; });
}

template <typename T>
void numbers(const Operation& o) {
    switch (o.kind) {
        case CONVERT:
            if (o.number == FLOAT) return each<float, T, T>(o, [](T a, T) { return (float)a; });
            if (o.number == INT) return each<int32_t, T, T>(o, [](T a, T) { return (int32_t)a; });
            return each<int64_t, T, T>(o, [](T a, T) { return (int64_t)a; });
        case ADD: return each<T, T, T>(o, [](T a, T b) { return a + b; });
        case SUBTRACT: return each<T, T, T>(o, [](T a, T b) { return a - b; });
        case MULTIPLY: return each<T, T, T>(o, [](T a, T b) { return a * b; });
        case LARGER: return each<T, T, T>(o, [](T a, T b) { return a > b ? a : b; });
        case SMALLER: return each<T, T, T>(o, [](T a, T b) { return a < b ? a : b; });
        case DIFFERS: return each<uint8_t, T, T>(o, [](T a, T b) { return a != b; });
        case EQUALS: return each<uint8_t, T, T>(o, [](T a, T b) { return a == b; });
        case ABOVE: return each<uint8_t, T, T>(o, [](T a, T b) { return a > b; });
        case BELOW: return each<uint8_t, T, T>(o, [](T a, T b) { return a < b; });
        case FROM: return each<uint8_t, T, T>(o, [](T a, T b) { return a >= b; });
        case UP_TO: return each<uint8_t, T, T>(o, [](T a, T b) { return a <= b; });
    }
    if constexpr (std::is_integral<T>::value) {
        const auto down = [](T a, T b) { return a / b - ((a % b != 0) & ((a < 0) != (b < 0))); };
        if (o.kind == DIVIDE) each<T, T, T>(o, down);
        if (o.kind == REMAINDER) each<T, T, T>(o, [&](T a, T b) { return a - down(a, b) * b; });
    }
}

void play_one(const Operation& o) {
    switch (o.kind) {
        case CALL: return o.call(o.places[0]);
        case COPY: case PUT: case TAKE:
            return o.type == MARK ? sized<uint8_t>(o) : o.type == LONG ? sized<uint64_t>(o) : sized<uint32_t>(o);
        case NEGATE: return each<float, float, float>(o, [](float a, float) { return -a; });
        case SILU: return each<float, float, float>(o, [](float a, float) {
            return a / (1 + exponential(a < -88 ? 88 : -a));
        });
        case COS: return each<float, float, float>(o, [](float a, float) { return std::cos(a); });
        case SIN: return each<float, float, float>(o, [](float a, float) { return std::sin(a); });
        case NOT: return each<uint8_t, uint8_t, uint8_t>(o, [](uint8_t a, uint8_t) { return !a; });
        case HIDE: {
            const float number = (float)o.number;
            return each<float, float, uint8_t>(o, [=](float a, uint8_t hidden) { return hidden ? number : a; });
        }
        case SOFTMAX: return softmax(o);
        case LEAST: return least(o);
    }
    o.type == FLOAT ? numbers<float>(o) : o.type == INT ? numbers<int32_t>(o) : numbers<int64_t>(o);
}

}  // namespace

extern "C" void play(const Operation* operations, long count) {
    for (long at = 0; at < count; at++) play_one(operations[at]);
}
