// Attention on packed rows on a CPU: a row is unpacked into registers, used by every query of its KV head, forgotten.
//
// Compiled for one form of rows, for PER_CHANNEL where rows share the scales of their channels, CODEBOOK, OUTLIERS (bytes
// of a channel, or 0), ROTARY pairs of channels, SHORT_SCALES in e4m3, PAGE rows of a head that lie together, or 0 for
// all, SPANS where heads have different numbers of rows, and SHARE queries per KV head.

#include "angles.h"
#include "kept.h"
#include "standard.h"

namespace {

constexpr int N = (DIM + LANES - 1) / LANES;  // vectors of a row
constexpr long BLOCK = 128;                   // rows whose angles or outliers are made ready at once

constexpr bool fits(int plane) { return width(plane) % LANES == 0; }

constexpr bool WHOLE_SCALES = SCALES == 1 || CHANNELS % LANES == 0;  // none of a row's ends inside a vector
constexpr bool IN_REGISTERS =
    DIM % LANES == 0 && fits(FIRST) && (BITS != 3 || fits(1)) && (PER_CHANNEL || WHOLE_SCALES);

// Whether codes are few enough for a register to hold what each of them stands for; bits above them do not matter then.
constexpr bool PICKS = PICKS_QUICKLY && (BITS == 2 || BITS == 4) && !CODEBOOK && IN_REGISTERS;

// Whether products are made of what codes stand for, and scaled afterwards. Sums of rows are not: their scales differ.
constexpr bool SCALES_PRODUCTS = !IS_NUMBERS && !OUTLIERS && !ROTARY && !PER_CHANNEL && WHOLE_SCALES;
constexpr int GROUPS = SCALES_PRODUCTS ? SCALES : 1;         // of a row, that are scaled apart
constexpr int VECTORS = GROUPS == 1 ? N : CHANNELS / LANES;  // of a group; the last one may have fewer
constexpr int begin_of(int group) { return group * VECTORS; }
constexpr int end_of(int group) { return group == GROUPS - 1 ? N : (group + 1) * VECTORS; }

typedef Table<CODEBOOK ? 1 << BITS : 0> Levels;
typedef std::conditional<OUTLIERS == 2, int16_t, int32_t>::type Channel;

// As kvbench.kernels.packed.native has it.
struct Rows : Kept {
    const float* levels;
    const Half* values;
    const Channel* channels;
    const int32_t* positions;
    const float* frequencies;
    const int32_t* table;  // of each batch row, the pages that its rows lie in; negative where there is none
    const int64_t *starts, *stops;  // of each head's rows, where these lie one behind the other
    long outliers_step, positions_step[2], table_step;
    long tokens, outliers, entries, parts, threads;

    long length(long index) const { return SPANS ? stops[index] - starts[index] : entries; }
    long start(long part, long index) const { return part * length(index) / parts; }
};

template <int PLANE>
inline void unpack(const uint8_t* from, int shift, Ints* codes) {
    constexpr int parts = 8 / PLANE, each = width(PLANE) / LANES;
#pragma GCC unroll 64
    for (int at = 0; at < each; at++) {
        Ints byte = bytes(from + at * LANES);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            const Ints code = byte >> (PLANE * part);
            codes[part * each + at] |= (PICKS || part == parts - 1 ? code : code & ((1 << PLANE) - 1)) << shift;
        }
    }
}

inline int code_at(const uint8_t* from, int channel, int plane) {
    const int each = width(plane);
    return (from[channel % each] >> (plane * (channel / each))) & ((1 << plane) - 1);
}

constexpr bool HAS_NO_LEAST = E4M3 || (CODEBOOK && SYMMETRIC);

inline float least(float scale, const Scale* lows, int at) {
    return HAS_NO_LEAST ? 0 : SYMMETRIC ? -MIDDLE * scale : (float)lows[at];
}

inline void padded(const float* from, Floats to[N]) {
    to[N - 1] = Floats{};
    std::memcpy(to, from, DIM * sizeof(float));
}

// Of every channel, where rows share them.
struct Scales {
    Floats scale[N], low[N];

    void read(const Scale* scales, const Scale* lows) {
        if constexpr (SHORT_SCALES || DIM % LANES) {
            alignas(64) float scale[N * LANES] = {}, low[N * LANES] = {};
            for (int channel = 0; channel < DIM; channel++) {
                scale[channel] = (float)scales[channel];
                low[channel] = least(scale[channel], lows, channel);
            }
            std::memcpy(this->scale, scale, sizeof(scale));
            std::memcpy(this->low, low, sizeof(low));
        } else
            for (int at = 0; at < N; at++) {
                scale[at] = halves(scales + at * LANES);
                low[at] = HAS_NO_LEAST ? Floats{} : SYMMETRIC ? -MIDDLE * scale[at] : halves(lows + at * LANES);
            }
    }
};

// Without scales where IS_RAW.
template <bool IS_RAW>
inline void unpack_row(const uint8_t* from, const Scale* scales, const Scale* lows, const Scales& shared,
                       const Levels& levels, Floats* row) {
    if constexpr (IS_NUMBERS) {
        constexpr int size = BITS / 8;
        alignas(64) uint8_t whole[size * N * LANES] = {};
        if constexpr (DIM % LANES) std::memcpy(whole, from, WIDTH);
#pragma GCC unroll 64
        for (int at = 0; at < N; at++) {
            const uint8_t* lanes = (DIM % LANES ? whole : from) + size * at * LANES;
            row[at] = size == 4 ? load((const float*)lanes) : BFLOAT ? bfloats(lanes) : halves(lanes);
        }
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
    if constexpr (PICKS) {
        Floats table;
        for (int code = 0; code < LANES; code++) table[code] = code % (1 << BITS);
#pragma GCC unroll 64
        for (int at = 0; at < N; at++)
            if constexpr (IS_RAW)
                row[at] = picked(table, codes[at]);
            else if constexpr (PER_CHANNEL)
                row[at] = picked(table, codes[at]) * shared.scale[at] + shared.low[at];
            else {
                const int group = SCALES == 1 ? 0 : at * LANES / CHANNELS;
                const float scale = (float)scales[group];
                row[at] = picked(table * scale + least(scale, lows, group), codes[at]);
            }
        return;
    }
#pragma GCC unroll 64
    for (int at = 0; at < N; at++)
        row[at] = CODEBOOK ? levels[codes[at]]
                  : E4M3   ? from_e4m3(codes[at])
                           : __builtin_convertvector(codes[at], Floats);
#if SHUFFLES_BYTES
    if constexpr (CODEBOOK && BITS == 4 && DIM % 64 == 0)
#pragma GCC unroll 64
        for (int at = 0; at < N / 2; at += 4) levels.halves_of(from + at * LANES, row + at, row + N / 2 + at);
#endif
    if constexpr (IS_RAW) return;
    if constexpr (PER_CHANNEL) {
#pragma GCC unroll 64
        for (int at = 0; at < N; at++)
            row[at] = row[at] * shared.scale[at] + shared.low[at];
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

typedef Angle<ROTARY ? ROTARY : 1> RowAngle;

inline void rotate(const RowAngle& angle, Floats* row) {
    if constexpr (ROTARY % LANES == 0) {
        constexpr int half = ROTARY / LANES;
#pragma GCC unroll 64
        for (int at = 0; at < half; at++) {
            const Floats cos = load(angle.cos + at * LANES), sin = load(angle.sin + at * LANES);
            const Floats first = row[at], second = row[at + half];
            row[at] = first * cos - second * sin;
            row[at + half] = second * cos + first * sin;
        }
    } else {
        float* numbers = (float*)row;
        for (int pair = 0; pair < ROTARY; pair++) {
            const float first = numbers[pair], second = numbers[pair + ROTARY];
            numbers[pair] = first * angle.cos[pair] - second * angle.sin[pair];
            numbers[pair + ROTARY] = second * angle.cos[pair] + first * angle.sin[pair];
        }
    }
}

// The outliers of a block of rows, those of a head together.
class Outliers {
    struct Outlier {
        long at;  // in the block's rows of a head
        float value;
    };
    std::vector<Outlier> found;
    std::vector<long> ends;  // of each head's

   public:
    void read(const Rows& rows, long batch, long first, long last) {
        const long from = batch * rows.outliers_step + first * rows.outliers, count = (last - first) * rows.outliers;
        const Channel* channels = rows.channels + from;
        ends.assign(rows.heads + 1, 0);
        for (long at = 0; at < count; at++) ends[channels[at] / DIM + 1]++;
        for (long head = 0; head < rows.heads; head++) ends[head + 1] += ends[head];
        found.resize(count);
        for (long row = 0, at = 0; row < last - first; row++)
            for (long which = 0; which < rows.outliers; which++, at++)
                found[ends[channels[at] / DIM]++] = {row * N * LANES + channels[at] % DIM,
                                                     (float)rows.values[from + at]};
    }

    void write(long head, float* block) const {
        for (long at = head == 0 ? 0 : ends[head - 1]; at < ends[head]; at++) block[found[at].at] = found[at].value;
    }
};

// Rows first .. last of one head.
struct Block {
    const Rows& rows;
    long batch, head, part, first, last;
    const Levels& levels;
    const RowAngle* angles;
    const Outliers& outliers;
    long index() const { return batch * rows.heads + head; }

    // Calls use(entry, row, its scales, its least numbers).
    template <bool IS_RAW, typename Use>
    void each_row(Use use) const {
        if constexpr (PAGE == 0)
            each_row<IS_RAW>(SPANS ? rows.starts[index()] : 0, use);
        else {
            const long page = rows.table[batch * rows.table_step + first / PAGE];
            if (page >= 0) each_row<IS_RAW>(page * rows.heads * PAGE - first / PAGE * PAGE, use);
        }
    }

    // They lie so much further.
    template <bool IS_RAW, typename Use>
    void each_row(long further, Use use) const {
        static_assert((!PAGE && !SPANS) || (!PER_CHANNEL && !OUTLIERS && !ROTARY), "these lie as they are given");
        const uint8_t* codes = rows.codes + batch * rows.codes_step[0] + head * rows.codes_step[1];
        const Scale* scales = rows.scales + batch * rows.scales_step[0] + head * rows.scales_step[1];
        const Scale* lows = rows.lows + batch * rows.lows_step[0] + head * rows.lows_step[1];
        Floats unpacked[OUTLIERS ? BLOCK : 1][N];
        const auto finish = [&](long entry, long at, Floats* row) {
            if constexpr (ROTARY) rotate(angles[entry - first], row);
            use(entry, row, scales + at, lows + at);
        };
        for (long entry = first, stop; entry < last; entry = stop) {  // rows that share the scales of their channels
            const long group = PER_CHANNEL ? entry / rows.tokens : 0;
            stop = PER_CHANNEL && (group + 1) * rows.tokens < last ? (group + 1) * rows.tokens : last;
            Scales shared;
            if constexpr (PER_CHANNEL) shared.read(scales + group * SCALES, lows + group * SCALES);
            for (; entry < stop; entry++) {
                const long at = (PER_CHANNEL ? 0 : entry + further) * SCALES;
                Floats* row = unpacked[OUTLIERS ? entry - first : 0];
                unpack_row<IS_RAW>(codes + (entry + further) * WIDTH, scales + at, lows + at, shared, levels, row);
                if constexpr (!OUTLIERS) finish(entry, at, row);
            }
        }
        if constexpr (OUTLIERS) {
            outliers.write(head, (float*)unpacked);
            for (long entry = first; entry < last; entry++) finish(entry, 0, unpacked[entry - first]);
        }
    }
};

Angles<ROTARY ? ROTARY : 1> angles_of(const Rows& rows) {
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (long batch = 0; batch < rows.batch; batch++)
        for (long head = 0; head < (rows.positions_step[1] ? rows.heads : 1); head++) {
            const int32_t* from = rows.positions + batch * rows.positions_step[0] + head * rows.positions_step[1];
            for (long entry = 0; entry < rows.entries; entry++) {
                least = from[entry] < least ? from[entry] : least;
                most = from[entry] > most ? from[entry] : most;
            }
        }
    return {rows.frequencies, least, most};
}

// Calls use(block) for all rows of all heads, each thread with its part of the rows. A page holds its rows of all heads,
// and a block ends with it: all heads read one before any reads the next, and memory is read as it lies.
template <typename Use>
void each_block(const Rows& rows, Use use) {
    const long step = PAGE ? PAGE : ROTARY || OUTLIERS ? BLOCK : rows.entries;
    const Levels levels(rows.levels);
    Angles<ROTARY ? ROTARY : 1> angles;
    if constexpr (ROTARY) angles = angles_of(rows);
#pragma omp parallel for collapse(2) num_threads(rows.threads)
    for (long batch = 0; batch < rows.batch; batch++)
        for (long part = 0; part < rows.parts; part++) {
            RowAngle angle[ROTARY ? BLOCK : 1];
            Outliers outliers;
            if constexpr (SPANS) {
                for (long head = 0, at = batch * rows.heads; head < rows.heads; head++, at++)
                    use(Block{rows, batch, head, part, rows.start(part, at), rows.start(part + 1, at), levels, angle,
                              outliers});
                continue;
            }
            for (long first = rows.start(part, 0), stop = rows.start(part + 1, 0), last; first < stop; first = last) {
                last = (first / step + 1) * step;
                if (last > stop) last = stop;
                if constexpr (OUTLIERS) outliers.read(rows, batch, first, last);
                for (long head = 0; head < rows.heads; head++) {
                    const long from = batch * rows.positions_step[0] + head * rows.positions_step[1];
                    if (ROTARY && (head == 0 || rows.positions_step[1] != 0))
                        for (long entry = first; entry < last; entry++)
                            angles.of(rows.positions[from + entry], angle[entry - first]);
                    use(Block{rows, batch, head, part, first, last, levels, angle, outliers});
                }
            }
        }
}

inline Floats dot(const Floats* query, const Floats* row, int group) {
    Floats sum = query[begin_of(group)] * row[begin_of(group)];
#pragma GCC unroll 64
    for (int at = begin_of(group) + 1; at < end_of(group); at++) sum += query[at] * row[at];
    return sum;
}

// The queries of a head.
struct Queries {
    Floats query[SHARE][N];
    float sums[SHARE][GROUPS];  // of each group's numbers

    explicit Queries(const float* from) {
        for (int q = 0; q < SHARE; q++) {
            padded(from + q * DIM, query[q]);
            for (int group = 0; group < GROUPS; group++) {
                Floats sum = {};
                for (int at = begin_of(group); at < end_of(group); at++) sum += query[q][at];
                sums[q][group] = total(sum);
            }
        }
    }
};

}  // namespace

// What is asked of rows: the products of queries with the first `entries` of them, or their sums by weights.
struct Asked {
    const float* given;
    float* out;
    long row_step, entries, parts, threads;  // a row of logits or weights has so many numbers
    const Rows* of;

    Rows rows() const {
        Rows mine = *of;
        mine.entries = entries;
        mine.parts = parts;
        mine.threads = threads;
        return mine;
    }
};

extern "C" void logits(const Asked* asked) {
    const Rows rows = asked->rows();
    const long row_step = asked->row_step;
    each_block(rows, [&](const Block& block) {
        const Queries given(asked->given + block.index() * SHARE * DIM);
        float* mine = asked->out + block.index() * SHARE * row_step;
        Totals totals;
        block.each_row<SCALES_PRODUCTS>([&](long entry, const Floats* row, const Scale* scales, const Scale* lows) {
            for (int q = 0; q < SHARE; q++) {
                float* to = mine + q * row_step + entry;
                if constexpr (!SCALES_PRODUCTS)
                    totals.add(dot(given.query[q], row, 0), to, 1, 0);
                else if constexpr (GROUPS == 1) {
                    const float scale = (float)scales[0];
                    totals.add(dot(given.query[q], row, 0), to, scale, least(scale, lows, 0) * given.sums[q][0]);
                } else {
                    Floats sum = {};
                    float low = 0;
#pragma GCC unroll 64
                    for (int group = 0; group < GROUPS; group++) {
                        const float scale = (float)scales[group];
                        sum += scale * dot(given.query[q], row, group);
                        low += least(scale, lows, group) * given.sums[q][group];
                    }
                    totals.add(sum, to, 1, low);
                }
            }
        });
        totals.flush();
        if (SPANS && block.part == rows.parts - 1)
            for (int q = 0; q < SHARE; q++)
                std::fill(mine + q * row_step + block.last, mine + q * row_step + rows.entries, -INFINITY);
    });
}

// Writes the sums of each part [parts, batch, heads, SHARE, DIM].
extern "C" void weighted(const Asked* asked) {
    const Rows rows = asked->rows();
    const long row_step = asked->row_step;
    each_block(rows, [&](const Block& block) {
        const float* mine = asked->given + block.index() * SHARE * row_step;
        float* sums = asked->out + (block.part * rows.batch * rows.heads + block.index()) * SHARE * DIM;
        Floats sum[SHARE][N] = {};
        if (block.first > rows.start(block.part, block.index()))
            for (int q = 0; q < SHARE; q++) padded(sums + q * DIM, sum[q]);
        block.each_row<false>([&](long entry, const Floats* row, const Scale*, const Scale*) {
            for (int q = 0; q < SHARE; q++) {
                const float weight = mine[q * row_step + entry];
#pragma GCC unroll 64
                for (int at = 0; at < N; at++) sum[q][at] += weight * row[at];
            }
        });
        for (int q = 0; q < SHARE; q++) std::memcpy(sums + q * DIM, sum[q], DIM * sizeof(float));
    });
}
