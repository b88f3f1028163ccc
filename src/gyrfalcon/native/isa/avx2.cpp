// For x86-64 processors with AVX2, FMA and F16C (Haswell 2013, Zen 2017, and later).
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 8
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx2";
constexpr int64_t AHEAD = 2048; // prefetch distance in bytes
constexpr int NEAR = 2;         // into L2; the hardware moves them on to L1
constexpr int TILE_ROWS = 3, TILE_TOKENS = 4, INT8_TILE_ROWS = 3;
constexpr int MR = 2 * GYRFALCON_WIDTH, NR = 6, NR_INT16 = 4, NR_INT8 = 6;
constexpr bool WINOGRAD = true; // trades a multiplication for an addition, which has more execution ports
constexpr const char *MULTIPLY_FLOATS = "vfmadd", *MULTIPLY_INT16 = "vpmaddwd", *MULTIPLY_INT8 = "vpmaddubsw";
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *avx2_kernels() { return &kernels; }
} // namespace gyrfalcon
