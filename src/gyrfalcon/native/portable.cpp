// For any processor: vectors of 16 bytes, which every compiler of a 64-bit target knows.
#include "instructions.h"

#define GYRFALCON_WIDTH 4
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "portable";
constexpr int64_t AHEAD = 0; // bytes that are fetched before they are needed: none
constexpr int NEAR = 3;
constexpr int TILE_ROWS = 2, TILE_TOKENS = 4, SHORT_TILE_ROWS = 2;
constexpr int PANEL_ROWS = 2 * GYRFALCON_WIDTH, PANEL_TOKENS = 6, SHORT_TOKENS = 6;
constexpr bool CROSSES_SHORTS = false;
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *portable_kernels() { return &kernels; }
} // namespace gyrfalcon
