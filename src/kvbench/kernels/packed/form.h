// What a form of rows is compiled for: DIM numbers, BITS, CHANNELS that share a scale, SYMMETRIC, E4M3 and BFLOAT.

#include "standard.h"

namespace {

typedef _Float16 Half;

constexpr int SCALES = BITS >= 16 ? 0 : (DIM + CHANNELS - 1) / CHANNELS;
constexpr float MIDDLE = (1L << (BITS - 1)) - 1;  // the code of 0 where codes are symmetric

constexpr int width(int plane) { return (DIM * plane + 7) / 8; }

constexpr bool IS_NUMBERS = BITS >= 16;  // no codes, but the numbers themselves
constexpr int FIRST = IS_NUMBERS ? 8 : BITS == 3 ? 2 : BITS;  // three bits are a plane of two and a plane of one
constexpr int WIDTH = IS_NUMBERS ? BITS / 8 * DIM : width(FIRST) + (BITS == 3 ? width(1) : 0);

}  // namespace
