// For x86-64 processors with AMX (Sapphire Rapids 2023, and later): AVX-512's kernels, but linears with several tokens by
// tiles of 16 rows × 64 bytes. amx_blocks.inl multiplies weights of bf16 and int8 with many tokens, amx_streams.inl with few,
// amx_int4.inl those of int4.
#include "instructions.h"
#include <immintrin.h>
#if defined(GYRFALCON_EMULATED_AMX)
#include "emulated_amx.h"
#endif

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
#include "vectors.h"

constexpr int64_t ROW_BYTES = 64, TILE_BYTES = 16 * ROW_BYTES;
constexpr int64_t TILE_SUMS = 16 * 16;

struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 3 hold sums, 4 and 5 are multiplied with 6 and 7: [rows, depth bytes] × [depth / 4, 16, 4 bytes].
void configure(int rows, int depth) {
    Configuration wanted;
    for (int tile = 0; tile < 8; tile++) {
        wanted.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? depth : ROW_BYTES);
        wanted.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : depth / 4);
    }
    asm volatile("" : : "r"(&wanted) : "memory"); // GCC 12 believes that only 8 bytes are read
    _tile_loadconfig(&wanted);
}

INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// The compiler does not know that tile loads read memory.
INLINE void finish_writes() { asm volatile("" : : : "memory"); }

// Of a matrix's rows or of tokens, those of a block of 32.
constexpr int64_t SIDE = 32;
static_assert(SIDE == UNIT_SIDE);

#include "amx_products.inl"
#include "amx_blocks.inl"
#include "amx_streams.inl"
#include "amx_int4.inl"

// ---- the unit ----

constexpr int64_t LEAST_TOKENS = 5; // with fewer AVX-512 is as fast

bool multiplies(int weight_kind, int64_t tokens, int kind) {
    if (tokens < LEAST_TOKENS || kind == GF_F32)
        return false;
    return weight_kind == GF_I4 || weight_kind == GF_I8 || (weight_kind == GF_BF16 && kind == GF_BF16);
}

constexpr size_t MEMORY_BYTES = sizeof(Int4Panel[2]);
static_assert(UNIT_STEPS * STEP_BYTES <= MEMORY_BYTES);

template <class Kind>
void multiply_by(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, void *memory) {
    configure(16, ROW_BYTES);
    auto *packed = static_cast<char *>(memory);
    if (Kind::few(tokens.stride)) // all groups
        Streams<Kind>{rows, tokens, sums, stride, add, packed}.multiply();
    else
        Blocks<Kind>{rows, tokens, sums, stride, add, packed}.multiply();
}
void linear(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, void *memory) {
    auto &panels = *static_cast<Int4Panel(*)[2]>(memory);
    if (rows.kind == GF_I4)
        rows.group == 32 ? int4_rows<2>(rows, tokens, sums, stride, add, panels)
                         : int4_rows<1>(rows, tokens, sums, stride, add, panels);
    else if (rows.kind == GF_I8)
        multiply_by<I8Weights>(rows, tokens, sums, stride, add, memory);
    else
        multiply_by<Bf16Weights>(rows, tokens, sums, stride, add, memory);
    _tile_release();
}

const MatrixUnit unit = {multiplies, gather_tokens, split_tokens, MEMORY_BYTES, linear};

// ---- peak arithmetic ----

// Of numbers between 1 and 2, and their negatives, as bf16: zeros are multiplied a quarter faster.
template <class Multiply> int64_t run_tiles(int64_t rounds, int64_t products, const Multiply &multiply) {
    alignas(64) uint16_t numbers[TILE_SUMS * 2];
    for (int i = 0; i < TILE_SUMS * 2; i++)
        numbers[i] = static_cast<uint16_t>(0x3f80 + i * 37 % 128 + i % 3 % 2 * 0x8000);
    finish_writes();
    configure(16, ROW_BYTES);
    zero_sums();
    _tile_loadd(4, numbers, ROW_BYTES);
    _tile_loadd(5, numbers, ROW_BYTES);
    _tile_loadd(6, numbers, ROW_BYTES);
    _tile_loadd(7, numbers, ROW_BYTES);
    for (int64_t i = 0; i < rounds; i++)
        multiply();
    _tile_release();
    return rounds * 4 * products * 2;
}
int64_t run_bf16(int64_t rounds) {
    return run_tiles(rounds, TILE_SUMS * 32, [] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    });
}
int64_t run_int8(int64_t rounds) {
    return run_tiles(rounds, TILE_SUMS * 64, [] {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    });
}

} // namespace

const Kernels *amx_kernels() {
    static const Kernels kernels = [] {
        Kernels all = *avx512_kernels();
        all.name = "amx";
        all.unit = &unit;
        all.instructions[UNIT_BF16] = {"tdpbf16ps", run_bf16};
        all.instructions[UNIT_INT8] = {"tdpbssd", run_int8};
        return all;
    }();
    return &kernels;
}

} // namespace gyrfalcon
