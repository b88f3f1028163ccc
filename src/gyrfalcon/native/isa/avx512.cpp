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
constexpr const char *MULTIPLY_FLOATS = "vfmadd", *MULTIPLY_INT16 = "vpdpwssd", *MULTIPLY_INT8 = "vpdpbusd";
#include "vectors.h"
#include "kernels.inl"

#if defined(__AVX512F__)
// vdpbf16ps, which some of these processors have: measured, not used.
__attribute__((target("avx512bf16"))) int64_t multiply_bf16(int64_t rounds) {
    Words ones = (Words)broadcast_int(0x3f803f80);
    asm volatile("" : "+m"(ones));
    Floats total[CHAINS];
    for (auto &one : total)
        one = hidden_zeros<Floats>();
    for (int64_t i = 0; i < rounds; i++)
        UNROLL for (int j = 0; j < CHAINS; j++)
            total[j] = (Floats)_mm512_dpbf16_ps((__m512)total[j], (__m512bh)ones, (__m512bh)ones);
    for (auto &one : total)
        asm volatile("" : "+m"(one));
    return rounds * CHAINS * 2 * WIDTH * 2;
}
#endif
} // namespace

const Kernels *avx512_kernels() {
    static const Kernels all = [] {
        Kernels found = kernels;
#if defined(__AVX512F__)
        if (__builtin_cpu_supports("avx512bf16"))
            found.instructions[OF_BF16] = {"vdpbf16ps", multiply_bf16};
#endif
        return found;
    }();
    return &all;
}
} // namespace gyrfalcon
