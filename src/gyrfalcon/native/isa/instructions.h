// Common includes of the instruction sets' files.
#pragma once
#include "kernels.h"
#include <float.h>
#include <math.h>
#include <string.h>
#include <utility>

// Rows and tokens of micro-kernels and of tiles, of several files.
constexpr int AVX512_MR = 32, AVX512_NR = 12, AVX512_NR_INT8 = 6;
constexpr int AVX512_TILE_ROWS = 6, AVX512_TILE_TOKENS = 4, AVX512_INT8_TILE_ROWS = 4;

// How far ahead micro-kernels prefetch tokens, in bytes: for each block of rows they come from the third-level cache once.
constexpr int64_t TOKENS_AHEAD = 3072;

#define INLINE_MEMBER inline __attribute__((always_inline))
