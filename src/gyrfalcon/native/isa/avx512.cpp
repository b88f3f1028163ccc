// For x86-64 processors with AVX-512 (F, BW, DQ, VL) and VNNI (Ice Lake 2019, Zen 4, and later).
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx512";
constexpr int64_t AHEAD = 1024; // prefetch distance in bytes
constexpr int NEAR = 3;         // into L1
constexpr int TILE_ROWS = 6, TILE_TOKENS = 4, INT8_TILE_ROWS = 4;
constexpr int MR = 2 * GYRFALCON_WIDTH, NR = 12, NR_INT16 = 12;
constexpr bool WINOGRAD = false; // VNNI multiplies and adds in one instruction
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *avx512_kernels() { return &kernels; }
} // namespace gyrfalcon
