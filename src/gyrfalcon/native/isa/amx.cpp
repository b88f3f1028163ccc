// For x86-64 processors with AMX (Sapphire Rapids 2023, and later): AVX-512's kernels, but most linears with many
// tokens by tiles of 16 rows × 64 bytes. 2 × 2 tiles of sums take four loads for four multiplications:
//
//                 tokens 0…15   tokens 16…31
//                     6              7
//   rows 0…15   4     0              1          weights [16 rows, 64 bytes], tokens [16 × 4 bytes, 16 tokens],
//   rows 16…31  5     2              3          sums [16 rows, 16 tokens]
//
// bf16 and int8, which is exact in bf16, are multiplied as bf16 and summed in float32; int4 as integers, 64 columns at a
// time, since tokens have a scale for each.
#include "instructions.h"
#include <immintrin.h>
#if defined(GYRFALCON_EMULATED_AMX)
#include "emulated_amx.h"
#endif

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
#include "vectors.h"

constexpr int64_t SIDE = 32; // rows and tokens of 2 × 2 tiles
constexpr int64_t ROW_BYTES = 64, TILE_BYTES = 16 * ROW_BYTES, PAIR_BYTES = 2 * TILE_BYTES;
constexpr int64_t TILE_SUMS = 16 * 16, BLOCK_SUMS = 4 * TILE_SUMS;
// A step is one row of a tile. 32 rows × so many steps of weights take 32 KiB and stay in L1 for all tokens; 512 tokens
// take 512 KiB and stay in L2 for all rows.
constexpr int64_t STEPS_AT_ONCE = 16;

static_assert(SIDE == TRANSPOSED_TOKENS);

INLINE int64_t sides(int64_t count) { return (count + SIDE - 1) / SIDE; }

struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// `depth` bytes of each weight's row are multiplied at a time, 64 at most.
void configure(int depth) {
    Configuration wanted = {};
    wanted.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        const bool weights = tile == 4 || tile == 5, tokens = tile > 5;
        wanted.row_bytes[tile] = static_cast<uint16_t>(weights ? depth : ROW_BYTES);
        wanted.rows[tile] = static_cast<uint8_t>(tokens ? depth / 4 : 16);
    }
    asm volatile("" : : "r"(&wanted) : "memory"); // GCC 12 believes that only 8 bytes are read
    _tile_loadconfig(&wanted);
}

// The last bytes of a row, padded with zeros.
template <int64_t BYTES> struct Filled {
    char bytes[BYTES] = {};
    INLINE_MEMBER Filled(const char *from, int64_t left) { memcpy(bytes, from, static_cast<size_t>(left)); }
};

// ---- transposing tokens in groups of 4 bytes, as tiles are laid out ----

void transpose_tokens(const char *rows, int64_t row_bytes, int64_t count, char *to) {
    for (int64_t place = 0; place < row_bytes; place += ROW_BYTES)
        for (int64_t first = 0; first < SIDE; first += WIDTH, to += TILE_BYTES) {
            Floats square[WIDTH];                   // of any bits
            UNROLL for (int i = 0; i < WIDTH; i++) { // padded with the last token, whose extra sums are unused
                const char *from = rows + min(first + i, count - 1) * row_bytes + place;
                const int64_t left = row_bytes - place;
                square[i] = left >= ROW_BYTES ? load<Floats>(from) : load<Floats>(Filled<ROW_BYTES>(from, left).bytes);
            }
            transpose(square);
            UNROLL for (int i = 0; i < WIDTH; i++)
                store(to + i * ROW_BYTES, square[i]);
        }
}

// The scales of a group of tokens, [blocks of 64 columns, 32], as transpose_tokens leaves them.
INLINE Floats token_scales(const char *scales, int64_t block, int half) {
    return load<Floats>(scales + (block / 16 * 2 + half) * TILE_BYTES + block % 16 * ROW_BYTES);
}

// ---- 32 rows × 32 tokens, some steps of them; sums start from zero at step 0 ----

struct Block {
    const char *weights;  // [steps, 32 rows, 64 bytes]
    const float *factors; // of int4: [steps, parts, 32 rows]
    const char *tokens;   // [steps, 2 tiles]
    const char *scales;   // of int4's tokens
    int64_t first;
    int64_t steps;
    float *sums; // [4 tiles, 16 rows, 16 tokens]
};

INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
INLINE void load_sums(const float *sums) {
    _tile_loadd(0, sums, ROW_BYTES);
    _tile_loadd(1, sums + TILE_SUMS, ROW_BYTES);
    _tile_loadd(2, sums + 2 * TILE_SUMS, ROW_BYTES);
    _tile_loadd(3, sums + 3 * TILE_SUMS, ROW_BYTES);
}
template <class Number> INLINE void store_sums(Number *sums) {
    _tile_stored(0, sums, ROW_BYTES);
    _tile_stored(1, sums + TILE_SUMS, ROW_BYTES);
    _tile_stored(2, sums + 2 * TILE_SUMS, ROW_BYTES);
    _tile_stored(3, sums + 3 * TILE_SUMS, ROW_BYTES);
}

// The four products of a step, by the instruction `multiply`: tile numbers have to be literals.
#define MULTIPLY_TILES(multiply, weights, tokens)                                                                      \
    do {                                                                                                               \
        _tile_loadd(4, weights, ROW_BYTES);                                                                            \
        _tile_loadd(6, tokens, ROW_BYTES);                                                                             \
        multiply(0, 4, 6);                                                                                             \
        _tile_loadd(7, tokens + TILE_BYTES, ROW_BYTES);                                                                \
        multiply(1, 4, 7);                                                                                             \
        _tile_loadd(5, weights + TILE_BYTES, ROW_BYTES);                                                               \
        multiply(2, 5, 6);                                                                                             \
        multiply(3, 5, 7);                                                                                             \
    } while (0)

void multiply_bf16(const Block &block) {
    if (block.first)
        load_sums(block.sums);
    else
        zero_sums();
    const char *weights = block.weights, *tokens = block.tokens;
    for (int64_t step = 0; step < block.steps; step++, weights += PAIR_BYTES, tokens += PAIR_BYTES)
        MULTIPLY_TILES(_tile_dpbf16ps, weights, tokens);
    store_sums(block.sums);
}

// 64 / PARTS columns: the four tiles' integer sums.
template <int PARTS> INLINE void multiply_part(const char *weights, const char *tokens, int part, int32_t *sums) {
    weights += part * ROW_BYTES / PARTS;
    tokens += part * TILE_BYTES / PARTS;
    zero_sums();
    MULTIPLY_TILES(_tile_dpbssd, weights, tokens);
    store_sums(sums);
}

// Adds a tile of integers, scaled by tokens' and rows' scales, to a tile of sums.
INLINE void add_scaled(const int32_t *integers, Floats scales, const float *factors, float *sums) {
    UNROLL for (int row = 0; row < 16; row++) {
        Floats scaled = __builtin_convertvector(load<Ints>(integers + row * 16), Floats) * scales;
        store(sums + row * 16, load<Floats>(sums + row * 16) + scaled * factors[row]);
    }
}

template <int PARTS> void multiply_int4(const Block &block) {
    alignas(64) int32_t integers[BLOCK_SUMS];
    if (!block.first)
        memset(block.sums, 0, sizeof(float) * BLOCK_SUMS);
    const float *factors = block.factors;
    for (int64_t step = 0; step < block.steps; step++)
        for (int part = 0; part < PARTS; part++, factors += SIDE) {
            multiply_part<PARTS>(block.weights + step * PAIR_BYTES, block.tokens + step * PAIR_BYTES, part, integers);
            const Floats left = token_scales(block.scales, block.first + step, 0);
            const Floats right = token_scales(block.scales, block.first + step, 1);
            add_scaled(integers, left, factors, block.sums);
            add_scaled(integers + TILE_SUMS, right, factors, block.sums + TILE_SUMS);
            add_scaled(integers + 2 * TILE_SUMS, left, factors + 16, block.sums + 2 * TILE_SUMS);
            add_scaled(integers + 3 * TILE_SUMS, right, factors + 16, block.sums + 3 * TILE_SUMS);
        }
}

typedef uint16_t MoreHalves __attribute__((vector_size(64)));

// Truncation is exact: 8-bit integers fit bfloat16.
template <uint16_t... PLACES>
INLINE MoreHalves upper_halves(Floats a, Floats b, std::integer_sequence<uint16_t, PLACES...>) {
    return __builtin_shuffle((MoreHalves)a, (MoreHalves)b, (MoreHalves){(2 * PLACES + 1)...});
}

// ---- kinds of weights: `bytes` of a row become the 64 of a step ----

struct Bf16Weights {
    static constexpr int64_t bytes = ROW_BYTES;
    static constexpr int depth = 64, parts = 0; // that have scales
    static constexpr auto multiply = multiply_bf16;
    INLINE void put(const char *from, char *to) { memcpy(to, from, bytes); }
};
struct I8Weights {
    static constexpr int64_t bytes = 32;
    static constexpr int depth = 64, parts = 0;
    static constexpr auto multiply = multiply_bf16;
    INLINE void put(const char *from, char *to) {
        store(to, upper_halves(I8::at(from, 0), I8::at(from, WIDTH), std::make_integer_sequence<uint16_t, 32>{}));
    }
};
template <int PARTS> struct I4Weights {
    static constexpr int64_t bytes = 32;
    static constexpr int depth = 64 / PARTS, parts = PARTS;
    static constexpr auto multiply = multiply_int4<PARTS>;
};

// Transposes the words of a stored int4 tile to 16 rows of 64 columns.
INLINE void put_int4(const char *words, char *to) {
    Floats square[WIDTH]; // of any bits
    UNROLL for (int i = 0; i < 8; i++) {
        Words packed = load<Words>(words + i * ROW_BYTES);
        square[i] = (Floats)((ByteGroups)(packed & 0x0f0f0f0f) - 8);
        square[8 + i] = (Floats)((ByteGroups)(packed >> 4 & 0x0f0f0f0f) - 8);
    }
    transpose(square);
    UNROLL for (int i = 0; i < WIDTH; i++)
        store(to + i * ROW_BYTES, square[i]);
}
// 32 rows, or one tile of 16; the sums of the missing tile are unused.
void pack_int4(const Rows &rows, int64_t row, int64_t first, int64_t steps, char *to) {
    for (int64_t tile = 0; tile < min(SIDE, rows.count - row); tile += INT4_ROWS)
        for (int64_t step = 0; step < steps; step++)
            put_int4(rows.data + (row + tile) * rows.row_bytes + (first + step) * INT4_BLOCK_BYTES,
                     to + step * PAIR_BYTES + tile * ROW_BYTES);
}

// 32 rows from `row` on, padded with the last one, whose extra sums are unused.
template <class Kind> void pack(const Rows &rows, int64_t row, int64_t first, int64_t steps, char *to) {
    for (int64_t i = 0; i < SIDE; i++) {
        const char *from = rows.data + min(row + i, rows.count - 1) * rows.row_bytes;
        for (int64_t step = 0; step < steps; step++) {
            const int64_t place = (first + step) * Kind::bytes, left = rows.row_bytes - place;
            char *line = to + step * PAIR_BYTES + i * ROW_BYTES;
            if (left >= Kind::bytes)
                Kind::put(from + place, line);
            else
                Kind::put(Filled<Kind::bytes>(from + place, left).bytes, line);
        }
    }
}
void pack_factors(const Rows &rows, int64_t row, int64_t first, int64_t steps, int64_t parts, float *to) {
    for (int64_t part = first * parts; part < (first + steps) * parts; part++)
        for (int64_t tile = 0; tile < SIDE; tile += INT4_ROWS, to += INT4_ROWS) {
            const int64_t group = part * 64 / parts / rows.group, left = rows.count - row - tile;
            const char *from = rows.scales + (row + tile) * int4_scale_bytes(rows);
            store(to, left > 0 ? Bf16::at(from, group * INT4_ROWS) : Floats{});
        }
}

// ---- all rows with all tokens ----

// A thread's scratch; the blocks' sums follow it, [row blocks, token groups, 4 tiles].
struct Memory {
    alignas(64) char weights[STEPS_AT_ONCE * PAIR_BYTES];
    float factors[2 * STEPS_AT_ONCE * SIDE];
};

size_t memory_bytes(int64_t rows, int64_t tokens) {
    return sizeof(Memory) + static_cast<size_t>(sides(rows) * sides(tokens) * BLOCK_SUMS) * sizeof(float);
}

template <class Kind> void multiply(const Rows &rows, const TransposedTokens &tokens, Memory &own, float *sums) {
    const int64_t steps = (rows.row_bytes + Kind::bytes - 1) / Kind::bytes;
    const int64_t blocks = sides(rows.count), groups = sides(tokens.count);
    const int64_t scale_bytes = transposed_bytes(steps * static_cast<int64_t>(sizeof(float)));
    configure(Kind::depth);
    for (int64_t first = 0; first < steps; first += STEPS_AT_ONCE) {
        const int64_t count = min(STEPS_AT_ONCE, steps - first);
        for (int64_t i = 0; i < blocks; i++) {
            Block block{own.weights, own.factors, nullptr, nullptr, first, count, nullptr};
            if constexpr (Kind::parts > 0) {
                pack_int4(rows, i * SIDE, first, count, own.weights);
                pack_factors(rows, i * SIDE, first, count, Kind::parts, own.factors);
            } else {
                pack<Kind>(rows, i * SIDE, first, count, own.weights);
            }
            asm volatile("" : : : "memory"); // the compiler does not know that tile loads read memory
            for (int64_t j = 0; j < groups; j++) {
                block.tokens = tokens.numbers + (j * steps + first) * PAIR_BYTES;
                block.scales = tokens.scales ? tokens.scales + j * scale_bytes : nullptr;
                block.sums = sums + (i * groups + j) * BLOCK_SUMS;
                Kind::multiply(block);
            }
        }
    }
    _tile_release();
}

// Transposed, times the rows' scales if any, stored or added to sums[token × stride + row].
void deliver(const float *tiles, const float *scales, int64_t rows, int64_t tokens, float *sums, int64_t stride,
             bool add) {
    for (int64_t i = 0; i < sides(rows); i++)
        for (int64_t j = 0; j < sides(tokens); j++)
            for (int tile = 0; tile < 4; tile++, tiles += TILE_SUMS) {
                const int64_t row = i * SIDE + tile / 2 * 16, token = j * SIDE + tile % 2 * 16;
                Floats square[WIDTH];
                UNROLL for (int k = 0; k < WIDTH; k++)
                    square[k] = load<Floats>(tiles + k * 16) * (scales ? scales[min(row + k, rows - 1)] : 1.0f);
                transpose(square);
                UNROLL for (int k = 0; k < WIDTH; k++)
                    if (token + k < tokens) {
                        float *to = sums + (token + k) * stride + row;
                        store(to, add ? load<Floats>(to) + square[k] : square[k]);
                    }
            }
}

bool multiplies(int weight_kind, int kind) {
    if (weight_kind == GF_I4)
        return kind != GF_F32;
    return kind == GF_BF16 && (weight_kind == GF_BF16 || weight_kind == GF_I8);
}

void linear(const Rows &rows, const TransposedTokens &tokens, float *sums, int64_t stride, bool add, void *memory) {
    auto *own = static_cast<Memory *>(memory);
    auto *tiles = reinterpret_cast<float *>(own + 1);
    if (rows.kind == GF_BF16)
        multiply<Bf16Weights>(rows, tokens, *own, tiles);
    else if (rows.kind == GF_I8)
        multiply<I8Weights>(rows, tokens, *own, tiles);
    else if (rows.group == 32)
        multiply<I4Weights<2>>(rows, tokens, *own, tiles);
    else
        multiply<I4Weights<1>>(rows, tokens, *own, tiles);
    const auto *scales = rows.kind == GF_I8 ? reinterpret_cast<const float *>(rows.scales) : nullptr;
    deliver(tiles, scales, rows.count, tokens.count, sums, stride, add);
}

const MatrixUnit unit = {multiplies, transpose_tokens, memory_bytes, linear};

} // namespace

const Kernels *amx_kernels() {
    static const Kernels kernels = [] {
        Kernels all = *avx512_kernels();
        all.name = "amx";
        all.unit = &unit;
        return all;
    }();
    return &kernels;
}

} // namespace gyrfalcon
