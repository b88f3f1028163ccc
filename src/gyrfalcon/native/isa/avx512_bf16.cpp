// For x86-64 processors with AVX-512, VNNI and BF16 (Zen 4, Cooper Lake, and later): AVX-512's kernels, but tokens of bf16 by
// weights of bf16 two products at a time. Denormal numbers are zeros to the instruction. Kernels that stream weights are
// compiled once more, for AMD's prefetchers: into the first-level cache one token of int8 takes 1.4 times as long.
#include "instructions.h"
#include <immintrin.h>

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
constexpr int64_t AHEAD = 2 * BF16_COLUMNS; // prefetch distance in bytes: the next block
constexpr int NEAR = 2;                     // into L2
constexpr int TILE_ROWS = AVX512_TILE_ROWS, TILE_TOKENS = AVX512_TILE_TOKENS, INT8_TILE_ROWS = AVX512_INT8_TILE_ROWS;
constexpr int MR = AVX512_MR, NR = AVX512_NR, NR_INT8 = AVX512_NR_INT8;
#include "vectors.h"
#include "packed_words.inl"
#include "linear.inl"
#include "attention.inl"
#include "int8_tokens.inl"
#include "packed_bytes.inl"
#include "read_streams.inl"
#include "chains.inl"

INLINE Floats add_bf16_products(Floats sums, Words a, Words b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}

#include "bf16_tokens.inl"

void pack_bf16_rows(const Rows &rows, int64_t first, int64_t columns, uint16_t *to) {
    pack_words(rows, 2 * first, 2 * columns, 2 * (rows.columns - first), 0, reinterpret_cast<char *>(to));
}

template <int TOKENS>
INLINE void add_bf16_pair(const uint16_t *tile, const uint16_t *x, Floats (&total)[TOKENS][2]) {
    const Words first = load<Words>(tile), second = load<Words>(tile + 2 * WIDTH);
    __builtin_prefetch(reinterpret_cast<const char *>(x) + TOKENS_AHEAD);
    UNROLL for (int i = 0; i < TOKENS; i++) {
        const Words input = (Words)broadcast_int(load<int32_t>(x + 2 * i));
        total[i][0] = add_bf16_products(total[i][0], first, input);
        total[i][1] = add_bf16_products(total[i][1], second, input);
    }
}
template <int TOKENS>
INLINE void bf16_micro_kernel(const uint16_t *tile, const uint16_t *x, int64_t columns, float *to, int64_t stride,
                              bool add, Ahead &ahead) {
    Floats total[TOKENS][2] = {};
    if (add)
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++)
                total[i][j] = load<Floats>(to + i * stride + j * WIDTH);
    Ahead next = ahead; // in registers
    int64_t pairs = (columns + 1) / 2, until = pairs - 4 * next.each;
    for (; pairs >= 4; pairs -= 4, tile += 8 * MR, x += 8 * NR) {
        if (pairs > until)
            next.prefetch_line();
        UNROLL for (int i = 0; i < 4; i++)
            add_bf16_pair<TOKENS>(tile + i * 2 * MR, x + i * 2 * NR, total);
    }
    for (; pairs; pairs--, tile += 2 * MR, x += 2 * NR)
        add_bf16_pair<TOKENS>(tile, x, total);
    ahead = next;
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++)
            store(to + i * stride + j * WIDTH, total[i][j]);
}
template <int TOKENS = NR>
INLINE void bf16_micro_kernel_of(const uint16_t *tile, const uint16_t *x, int64_t count, int64_t columns, float *to,
                                 int64_t stride, bool add, Ahead &ahead) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return bf16_micro_kernel_of<TOKENS - 1>(tile, x, count, columns, to, stride, add, ahead);
    bf16_micro_kernel<TOKENS>(tile, x, columns, to, stride, add, ahead);
}
void micro_kernel_bf16(const uint16_t *tile, const uint16_t *x, int64_t count, int64_t columns, float *to,
                       int64_t stride, bool add, Ahead &ahead) {
    bf16_micro_kernel_of(tile, x, count, columns, to, stride, add, ahead);
}

#include "bf16_attention.inl"

int64_t multiply_bf16(int64_t rounds) {
    Words numbers = (Words)broadcast_int(0x3f813f83);
    asm volatile("" : "+m"(numbers));
    return run_chains<Floats>(rounds, 2 * WIDTH, [&](Floats sums) { return add_bf16_products(sums, numbers, numbers); });
}
} // namespace

const Kernels *avx512_bf16_kernels() {
    static const Kernels kernels = [] {
        Kernels all = *avx512_kernels();
        all.name = "avx512-bf16";
        all.linear = linear_with_bf16;
        all.attend = attend_with_bf16;
        all.pack_int8_bytes = pack_int8_bytes;
        all.micro_kernel_int4 = micro_kernel_bytes;
        all.read_streams = read_streams;
        all.pack_bf16_rows = pack_bf16_rows;
        all.micro_kernel_bf16 = micro_kernel_bf16;
        all.instructions[OF_BF16] = {"vdpbf16ps", multiply_bf16};
        return all;
    }();
    return &kernels;
}
} // namespace gyrfalcon
