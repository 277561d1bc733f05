// What the sources here use of the compiler's own headers: native.py compiles this once for all forms of rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#define HAS_AVX2 1
#endif
