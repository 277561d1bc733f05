// A selective state space model's recurrence on a CPU, forwards and for its gradients, with STATES numbers a channel.
//
// h_t = exp(step_t rate) h_(t-1) + step_t fed_t by_t and out_t = <h_t, of_t>, rate = -exp(log_rate): a channel's state
// never leaves the core, and the backward pass makes the states again. Channels are taken WIDE at a time, so that a loop
// over them is a few registers.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int WIDE = 16;
using Lanes = float[WIDE];
using State = float[STATES][WIDE];

// e^x for x <= 87: 2^n e^f with |f| <= ln(2)/2, seven terms of the series; below 2^-126 it is 2^-126.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    const int n = (int)(x * 1.442695041f + (x < 0 ? -0.5f : 0.5f));
    const float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    const float series =
        1 + f * (1 + f * (1.f / 2 + f * (1.f / 6 + f * (1.f / 24 + f * (1.f / 120 + f * (1.f / 720 + f / 5040))))));
    const int32_t bits = (n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return series * power;
}

// At what rates the channels from `at` on fall, which the model learnt the logarithms of [D, STATES].
inline void rates(const float* logarithms, long at, State& out) {
    for (int n = 0; n < STATES; n++) {
        Lanes one;
        for (int i = 0; i < WIDE; i++) one[i] = logarithms[(at + i) * STATES + n];
        for (int i = 0; i < WIDE; i++) out[n][i] = -exponential(one[i] < 87.0f ? one[i] : 87.0f);
    }
}

}  // namespace

extern "C" {

struct Scan {
    const float *step, *fed;  // [B, T, D]
    const float *by, *of;     // [B, T, STATES]
    const float *log_rate;    // [D, STATES]
    const float *start;       // [B, STATES, D]
    float *out;               // [B, T, D]
    float *last;              // [B, STATES, D]
    long batch, tokens, channels, threads;
};

struct Gradients {
    const float *out, *last;  // [B, T, D], [B, STATES, D]: given
    float *step, *fed;        // as theirs
    float *by, *of;           // as theirs, of zeros
    float *log_rate;          // [B, STATES, D], of zeros: of each row alone
    float *start;             // [B, STATES, D]
};

void forward(const Scan* given) {
    const Scan& s = *given;
    const long blocks = s.channels / WIDE;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long each = 0; each < s.batch * blocks; each++) {
        const long row = each / blocks, at = each % blocks * WIDE;
        State h, rate;
        rates(s.log_rate, at, rate);
        for (int n = 0; n < STATES; n++) std::memcpy(h[n], s.start + (row * STATES + n) * s.channels + at, sizeof(Lanes));
        for (long t = 0; t < s.tokens; t++) {
            const long here = (row * s.tokens + t) * s.channels + at, small = (row * s.tokens + t) * STATES;
            const float *step = s.step + here, *fed = s.fed + here;
            Lanes out = {};
            for (int n = 0; n < STATES; n++) {
                const float by = s.by[small + n], of = s.of[small + n];
                for (int i = 0; i < WIDE; i++) {
                    h[n][i] = h[n][i] * exponential(step[i] * rate[n][i]) + step[i] * fed[i] * by;
                    out[i] += h[n][i] * of;
                }
            }
            std::memcpy(s.out + here, out, sizeof(Lanes));
        }
        for (int n = 0; n < STATES; n++) std::memcpy(s.last + (row * STATES + n) * s.channels + at, h[n], sizeof(Lanes));
    }
}

void backward(const Scan* given, const Gradients* wanted) {
    const Scan& s = *given;
    const Gradients& g = *wanted;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long row = 0; row < s.batch; row++) {  // whose gradients of by and of are sums over its channels
        std::vector<float> kept((s.tokens + 1) * sizeof(State) / sizeof(float)), decays(kept.size());
        State* states = (State*)kept.data();
        State* decay = (State*)decays.data();
        for (long at = 0; at < s.channels; at += WIDE) {
            State rate;
            rates(s.log_rate, at, rate);
            for (int n = 0; n < STATES; n++)
                std::memcpy(states[0][n], s.start + (row * STATES + n) * s.channels + at, sizeof(Lanes));
            for (long t = 0; t < s.tokens; t++) {
                const long here = (row * s.tokens + t) * s.channels + at, small = (row * s.tokens + t) * STATES;
                const float *step = s.step + here, *fed = s.fed + here;
                for (int n = 0; n < STATES; n++) {
                    const float by = s.by[small + n];
                    for (int i = 0; i < WIDE; i++) {
                        decay[t][n][i] = exponential(step[i] * rate[n][i]);
                        states[t + 1][n][i] = states[t][n][i] * decay[t][n][i] + step[i] * fed[i] * by;
                    }
                }
            }
            State back;  // gradient of the state after a token
            for (int n = 0; n < STATES; n++)
                std::memcpy(back[n], g.last + (row * STATES + n) * s.channels + at, sizeof(Lanes));
            for (long t = s.tokens - 1; t >= 0; t--) {
                const long here = (row * s.tokens + t) * s.channels + at, small = (row * s.tokens + t) * STATES;
                const float *step = s.step + here, *fed = s.fed + here, *out = g.out + here;
                Lanes of_step = {}, of_fed = {};
                for (int n = 0; n < STATES; n++) {
                    const float by = s.by[small + n], of = s.of[small + n];
                    float* of_log_rate = g.log_rate + (row * STATES + n) * s.channels + at;
                    float of_by = 0, of_of = 0;
                    for (int i = 0; i < WIDE; i++) {
                        const float whole = back[n][i] + out[i] * of;
                        const float kept_back = whole * decay[t][n][i];
                        const float of_power = kept_back * states[t][n][i];
                        of_of += out[i] * states[t + 1][n][i];
                        of_by += whole * step[i] * fed[i];
                        of_step[i] += of_power * rate[n][i] + whole * fed[i] * by;
                        of_fed[i] += whole * step[i] * by;
                        of_log_rate[i] += of_power * step[i] * rate[n][i];
                        back[n][i] = kept_back;
                    }
                    g.by[small + n] += of_by;
                    g.of[small + n] += of_of;
                }
                std::memcpy(g.step + here, of_step, sizeof(Lanes));
                std::memcpy(g.fed + here, of_fed, sizeof(Lanes));
            }
            for (int n = 0; n < STATES; n++)
                std::memcpy(g.start + (row * STATES + n) * s.channels + at, back[n], sizeof(Lanes));
        }
    }
}
}
