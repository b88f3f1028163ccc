// Common includes of the instruction sets' files.
#pragma once
#include "kernels.h"
#include <math.h>
#include <string.h>
#include <utility>

// A micro-kernel's rows and tokens, of several files.
constexpr int AVX512_MR = 32, AVX512_NR = 12;

#define INLINE_MEMBER inline __attribute__((always_inline))
