// A recorded step: calls of kernels, and the small operations between them, one after the other.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int DIMS = 4;

// As kvbench.kernels.playing has them.
enum Kind : long { CALL, COPY_1, COPY_4, COPY_8, NEGATE, SILU, ADD, MULTIPLY, SCALE, HIDE, DIFFERS, NOT, SOFTMAX, PUT };

struct Operation {
    long kind;
    void (*call)(void*);  // what is called, with the first place
    long shape[DIMS];
    void* places[3];       // what comes of it, and what it is given
    long steps[3][DIMS];   // in numbers
    double number;
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
        if (step == 1 && a_step == 1 && b_step == 1)
#pragma GCC ivdep
            for (long k = 0; k < n; k++) out[k] = make(a[k], b[k]);
        else
            for (long k = 0; k < n; k++) out[k * step] = make(a[k * a_step], b[k * b_step]);
    });
}

template <typename T>
void copy(const Operation& o) {
    each<T, T, T>(o, [](T a, T) { return a; });
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

// Puts rows, or numbers, to where the third place says along the third dimension.
void put(const Operation& o) {
    outer(o, [&](const long* index) {
        const uint32_t* from = at<uint32_t>(o, 1, index);
        const int64_t* where = at<int64_t>(o, 2, index);
        uint32_t* to = (uint32_t*)o.places[0] + index[0] * o.steps[0][0] + index[1] * o.steps[0][1];
        for (long k = 0; k < o.shape[3]; k++)
            to[where[k * o.steps[2][3]] * o.steps[0][2] + k * o.steps[0][3]] = from[k * o.steps[1][3]];
    });
}

void play_one(const Operation& o) {
    const float number = (float)o.number;
    switch (o.kind) {
        case CALL: return o.call(o.places[0]);
        case COPY_1: return copy<uint8_t>(o);
        case COPY_4: return copy<uint32_t>(o);
        case COPY_8: return copy<uint64_t>(o);
        case NEGATE: return each<float, float, float>(o, [](float a, float) { return -a; });
        case SILU: return each<float, float, float>(o, [](float a, float) {
            return a / (1 + exponential(a < -88 ? 88 : -a));
        });
        case ADD: return each<float, float, float>(o, [](float a, float b) { return a + b; });
        case MULTIPLY: return each<float, float, float>(o, [](float a, float b) { return a * b; });
        case SCALE: return each<float, float, float>(o, [=](float a, float) { return a * number; });
        case HIDE: return each<float, float, uint8_t>(o, [=](float a, uint8_t hidden) { return hidden ? number : a; });
        case DIFFERS: return each<uint8_t, int32_t, int32_t>(o, [&](int32_t a, int32_t) { return a != (int32_t)o.number; });
        case NOT: return each<uint8_t, uint8_t, uint8_t>(o, [](uint8_t a, uint8_t) { return !a; });
        case SOFTMAX: return softmax(o);
        case PUT: return put(o);
    }
}

}  // namespace

extern "C" void play(const Operation* operations, long count) {
    for (long at = 0; at < count; at++) play_one(operations[at]);
}
