// For x86-64 processors with AVX-512 (F, BW, DQ, VL) and VNNI (Ice Lake 2019, Zen 4, and later).
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
constexpr const char *NAME = "avx512";
constexpr int64_t AHEAD = 1024; // prefetch distance in bytes
constexpr int NEAR = 3;         // into L1
constexpr int TILE_ROWS = AVX512_TILE_ROWS, TILE_TOKENS = AVX512_TILE_TOKENS, INT8_TILE_ROWS = AVX512_INT8_TILE_ROWS;
constexpr int MR = AVX512_MR, NR = AVX512_NR, NR_INT16 = 12, NR_INT8 = AVX512_NR_INT8;
constexpr bool WINOGRAD = false; // VNNI multiplies and adds in one instruction
constexpr const char *MULTIPLY_FLOATS = "vfmadd", *MULTIPLY_INT16 = "vpdpwssd", *MULTIPLY_INT8 = "vpdpbusd";
#include "vectors.h"
#include "kernels.inl"
#include "int8_tokens.inl"
#include "packed_bytes.inl"
} // namespace

const Kernels *avx512_kernels() {
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
