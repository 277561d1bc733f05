// What a form of rows is compiled for: DIM numbers, BITS, CHANNELS that share a scale, SYMMETRIC, and E4M3.

#include <cstdint>

namespace {

typedef _Float16 Half;

constexpr int SCALES = BITS == 16 ? 0 : (DIM + CHANNELS - 1) / CHANNELS;
constexpr float MIDDLE = (1 << (BITS - 1)) - 1;  // the code of 0 where codes are symmetric

constexpr int width(int plane) { return (DIM * plane + 7) / 8; }

constexpr bool IS_HALF = BITS == 16;  // the numbers themselves
constexpr int FIRST = IS_HALF ? 8 : BITS == 3 ? 2 : BITS;  // three bits are a plane of two and a plane of one
constexpr int WIDTH = IS_HALF ? 2 * DIM : width(FIRST) + (BITS == 3 ? width(1) : 0);

}  // namespace
