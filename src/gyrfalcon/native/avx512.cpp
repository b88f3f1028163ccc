// For x86-64 processors with AVX-512 (F, BW, DQ, VL) and VNNI (Ice Lake 2019, Zen 4, and later).
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx512";
constexpr int64_t AHEAD = 1024; // bytes that are fetched before they are needed
constexpr int NEAR = 3;         // to the first cache
constexpr int TILE_ROWS = 6, TILE_TOKENS = 4, SHORT_TILE_ROWS = 4;
constexpr int PANEL_ROWS = 2 * GYRFALCON_WIDTH, PANEL_TOKENS = 12, SHORT_TOKENS = 12;
constexpr bool CROSSES_SHORTS = false; // one instruction multiplies and adds
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *avx512_kernels() { return &kernels; }
} // namespace gyrfalcon
