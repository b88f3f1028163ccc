// For x86-64 processors with AVX-512 (F, BW, DQ, VL) but without VNNI (Skylake-X and Skylake-SP, 2017): AVX-512's floats, and
// integers as AVX2 multiplies them, by instructions whose products are added by another. Additions take the two ports of
// 512 bits that multiplications take, so Winograd's inner product saves nothing: four operations for two pairs either way.
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx512-core";
constexpr int64_t AHEAD = 1024; // prefetch distance in bytes
constexpr int NEAR = 3;         // into L1
constexpr int TILE_ROWS = AVX512_TILE_ROWS, TILE_TOKENS = AVX512_TILE_TOKENS, INT8_TILE_ROWS = AVX512_INT8_TILE_ROWS;
constexpr int MR = AVX512_MR, NR = AVX512_NR, NR_INT16 = 12, NR_INT8 = AVX512_NR_INT8;
constexpr bool WINOGRAD = false;
constexpr const char *MULTIPLY_FLOATS = "vfmadd", *MULTIPLY_INT16 = "vpmaddwd", *MULTIPLY_INT8 = "vpmaddubsw";
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *avx512_core_kernels() { return &kernels; }
} // namespace gyrfalcon
