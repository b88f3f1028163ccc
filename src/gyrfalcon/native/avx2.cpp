// For x86-64 processors with AVX2, FMA and F16C (Haswell 2013, Zen 2017, and later).
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 8
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx2";
constexpr int64_t AHEAD = 2048; // bytes that are fetched before they are needed
constexpr int NEAR = 2;         // to the second cache: the processor takes them from there to the first by itself
constexpr int TILE_ROWS = 3, TILE_TOKENS = 4, SHORT_TILE_ROWS = 3;
constexpr int PANEL_ROWS = 2 * GYRFALCON_WIDTH, PANEL_TOKENS = 6, SHORT_TOKENS = 4;
constexpr bool CROSSES_SHORTS = true; // an addition more and a multiplication less, for which there are fewer units
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *avx2_kernels() { return &kernels; }
} // namespace gyrfalcon
