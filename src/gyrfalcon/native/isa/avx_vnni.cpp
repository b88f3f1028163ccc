// For x86-64 processors with AVX2 and AVX-VNNI, but without AVX-512 (Alder Lake 2021, Sierra Forest, and later): AVX2's
// kernels, but integers are multiplied and added by one instruction, and int8 weights multiplied with int8 tokens. Its
// latency of five cycles at two a cycle asks for ten sums at least, so tiles have twelve or more.
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 8
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx-vnni";
constexpr int64_t AHEAD = 2048; // prefetch distance in bytes
constexpr int NEAR = 2;         // into L2; the hardware moves them on to L1
constexpr int TILE_ROWS = 3, TILE_TOKENS = 4, INT8_TILE_ROWS = 3;
constexpr int MR = 2 * GYRFALCON_WIDTH, NR = 6, NR_INT16 = 6, NR_INT8 = 6;
constexpr bool WINOGRAD = false; // one instruction multiplies and adds
constexpr const char *MULTIPLY_FLOATS = "vfmadd", *MULTIPLY_INT16 = "vpdpwssd", *MULTIPLY_INT8 = "vpdpbusd";
#include "vectors.h"
#include "kernels.inl"
#include "byte_rows.inl"
#include "packed_bytes.inl"
} // namespace

const Kernels *avx_vnni_kernels() {
    static const Kernels all = [] {
        Kernels found = kernels;
        found.linear = linear_with_int8;
        found.pack_int8_bytes = pack_int8_bytes;
        found.micro_kernel_int4 = micro_kernel_bytes;
        return found;
    }();
    return &all;
}
} // namespace gyrfalcon
