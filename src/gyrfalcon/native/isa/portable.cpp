// For any CPU: 16-byte vectors, which compilers for every 64-bit target support.
#include "instructions.h"

#define GYRFALCON_WIDTH 4
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "portable";
constexpr int64_t AHEAD = 0; // no prefetch
constexpr int NEAR = 3;
constexpr int TILE_ROWS = 2, TILE_TOKENS = 4, INT8_TILE_ROWS = 2;
constexpr int MR = 2 * GYRFALCON_WIDTH, NR = 6, NR_INT16 = 6, NR_INT8 = 6;
constexpr bool WINOGRAD = false;
constexpr const char *MULTIPLY_FLOATS = "multiply-add";
constexpr const char *MULTIPLY_INT16 = "int16-multiply-add", *MULTIPLY_INT8 = "int8-multiply-add";
#include "vectors.h"
#include "kernels.inl"
} // namespace
const Kernels *portable_kernels() { return &kernels; }
} // namespace gyrfalcon
