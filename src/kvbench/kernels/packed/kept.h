// Where the rows of one side of a layer are kept, and what their scales are kept in: SHORT_SCALES in e4m3, or halves.
#pragma once

#include "form.h"
#include "lanes.h"
#include "standard.h"

namespace {

struct Short {
    uint8_t bits;
    operator float() const { return float_of_e4m3(bits); }
};
typedef std::conditional<SHORT_SCALES, Short, Half>::type Scale;

// As kvbench.kernels.packed.native has it. Steps are from one batch row, and from one head, to the next.
struct Kept {
    uint8_t* codes;
    Scale *scales, *lows;
    long codes_step[2], scales_step[2], lows_step[2], batch, heads;
};

}  // namespace
