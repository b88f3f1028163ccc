// For x86-64 processors with AMX (Sapphire Rapids 2023, and later): AVX-512's kernels, but most products with many
// tokens by tiles, 16 rows of 64 bytes each. Four products of 2 × 2 tiles take four loads:
//
//                 tokens 0…15   tokens 16…31
//                     6              7
//   rows 0…15   4     0              1          weights [16 rows, 64 bytes], tokens [16 × 4 bytes, 16 tokens],
//   rows 16…31  5     2              3          sums [16 rows, 16 tokens]
//
// bf16 and int8, which bf16 holds exactly, are multiplied as bf16 and summed in float32; int4 as integers, one
// unit of 64 columns at a time, since tokens have a scale for each.
#include "instructions.h"
#include <immintrin.h>
#if defined(GYRFALCON_EVERY_WIDTH)
#include "emulated_amx.h"
#endif

#define GYRFALCON_WIDTH 16
namespace gyrfalcon {
namespace {
#include "vectors.h"

constexpr int64_t SIDE = 32; // rows and tokens of 2 × 2 tiles
constexpr int64_t ROW_BYTES = 64, TILE_BYTES = 16 * ROW_BYTES, PAIR_BYTES = 2 * TILE_BYTES;
constexpr int64_t TILE_SUMS = 16 * 16, BLOCK_SUMS = 4 * TILE_SUMS;
// A step is a row of a tile. In so many, 32 rows of weights take 32 KiB and stay in the nearest cache while all
// tokens pass by; 512 of these take 512 KiB and stay in the next one while all rows do.
constexpr int64_t STEPS_AT_ONCE = 16;

static_assert(SIDE == TURNED_TOKENS);

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

// The last bytes of a row, zeros after them.
template <int64_t BYTES> struct Filled {
    char bytes[BYTES] = {};
    INLINE_MEMBER Filled(const char *from, int64_t left) { memcpy(bytes, from, static_cast<size_t>(left)); }
};

// ---- tokens: 4 bytes of a row beside the same of all others, as the tiles want them ----

void turn(const char *rows, int64_t row_bytes, int64_t count, char *to) {
    for (int64_t place = 0; place < row_bytes; place += ROW_BYTES)
        for (int64_t first = 0; first < SIDE; first += WIDTH, to += TILE_BYTES) {
            Floats square[WIDTH]; // of any bits
            UNROLL for (int i = 0; i < WIDTH; i++) { // beyond the last token itself again: nobody reads its sums
                const char *from = rows + smaller(first + i, count - 1) * row_bytes + place;
                const int64_t left = row_bytes - place;
                square[i] = left >= ROW_BYTES ? loaded<Floats>(from) : loaded<Floats>(Filled<ROW_BYTES>(from, left).bytes);
            }
            transpose(square);
            UNROLL for (int i = 0; i < WIDTH; i++) stored(to + i * ROW_BYTES, square[i]);
        }
}

// The scales of a group of tokens, [units, 32], as `turn` leaves them.
INLINE Floats token_scales(const char *scales, int64_t unit, int half) {
    return loaded<Floats>(scales + (unit / 16 * 2 + half) * TILE_BYTES + unit % 16 * ROW_BYTES);
}

// ---- 32 rows with 32 tokens, some steps of them; from the first step on sums begin with zeros ----

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

// The four products of a step, by the instruction `multiply`: compilers want the tiles' numbers spelled out.
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

// One part of a unit, 64 / PARTS columns: the four tiles' sums of integers.
template <int PARTS> INLINE void multiply_part(const char *weights, const char *tokens, int part, int32_t *sums) {
    weights += part * ROW_BYTES / PARTS;
    tokens += part * TILE_BYTES / PARTS;
    zero_sums();
    MULTIPLY_TILES(_tile_dpbssd, weights, tokens);
    store_sums(sums);
}

// A tile of integers, with scales of tokens and of rows, onto a tile of sums.
INLINE void add_scaled(const int32_t *integers, Floats scales, const float *factors, float *sums) {
    UNROLL for (int row = 0; row < 16; row++) {
        Floats scaled = __builtin_convertvector(loaded<Ints>(integers + row * 16), Floats) * scales;
        stored(sums + row * 16, loaded<Floats>(sums + row * 16) + scaled * factors[row]);
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

// Of whole numbers of 8 bits nothing is cut off: bfloat16 holds them.
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
        stored(to, upper_halves(I8::at(from, 0), I8::at(from, WIDTH), std::make_integer_sequence<uint16_t, 32>{}));
    }
};
template <int PARTS> struct I4Weights {
    static constexpr int64_t bytes = 32;
    static constexpr int depth = 64 / PARTS, parts = PARTS;
    static constexpr auto multiply = multiply_int4<PARTS>;
};

// A tile of int4 as it is stored, to 16 rows of a unit each: its words are turned.
INLINE void put_int4(const char *words, char *to) {
    Floats square[WIDTH]; // of any bits
    UNROLL for (int i = 0; i < 8; i++) {
        Words packed = loaded<Words>(words + i * ROW_BYTES);
        square[i] = (Floats)((ByteQuads)(packed & 0x0f0f0f0f) - 8);
        square[8 + i] = (Floats)((ByteQuads)(packed >> 4 & 0x0f0f0f0f) - 8);
    }
    transpose(square);
    UNROLL for (int i = 0; i < WIDTH; i++) stored(to + i * ROW_BYTES, square[i]);
}
// 32 rows, or a tile alone: the other one's places stay as they are, nobody reads their sums.
void pack_int4(const Rows &rows, int64_t row, int64_t first, int64_t steps, char *to) {
    for (int64_t tile = 0; tile < smaller(SIDE, rows.count - row); tile += INT4_ROWS)
        for (int64_t step = 0; step < steps; step++)
            put_int4(rows.data + (row + tile) * rows.row_bytes + (first + step) * INT4_UNIT_BYTES,
                     to + step * PAIR_BYTES + tile * ROW_BYTES);
}

// Rows from `row` on, 32 of them: beyond the last one itself again, nobody reads its sums.
template <class Kind> void pack(const Rows &rows, int64_t row, int64_t first, int64_t steps, char *to) {
    for (int64_t i = 0; i < SIDE; i++) {
        const char *from = rows.data + smaller(row + i, rows.count - 1) * rows.row_bytes;
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
            stored(to, left > 0 ? Bf16::at(from, group * INT4_ROWS) : Floats{});
        }
}

// ---- all rows with all tokens ----

// What a thread works in; the blocks' sums follow it, [row blocks, token groups, 4 tiles].
struct Memory {
    alignas(64) char weights[STEPS_AT_ONCE * PAIR_BYTES];
    float factors[2 * STEPS_AT_ONCE * SIDE];
};

size_t memory_bytes(int64_t rows, int64_t tokens) {
    return sizeof(Memory) + static_cast<size_t>(sides(rows) * sides(tokens) * BLOCK_SUMS) * sizeof(float);
}

template <class Kind>
void multiply(const Rows &rows, const TurnedTokens &tokens, Memory &own, float *sums) {
    const int64_t steps = (rows.row_bytes + Kind::bytes - 1) / Kind::bytes;
    const int64_t blocks = sides(rows.count), groups = sides(tokens.count);
    const int64_t scale_bytes = turned_bytes(steps * static_cast<int64_t>(sizeof(float)));
    configure(Kind::depth);
    for (int64_t first = 0; first < steps; first += STEPS_AT_ONCE) {
        const int64_t count = smaller(STEPS_AT_ONCE, steps - first);
        for (int64_t i = 0; i < blocks; i++) {
            Block block{own.weights, own.factors, nullptr, nullptr, first, count, nullptr};
            if constexpr (Kind::parts > 0) {
                pack_int4(rows, i * SIDE, first, count, own.weights);
                pack_factors(rows, i * SIDE, first, count, Kind::parts, own.factors);
            } else {
                pack<Kind>(rows, i * SIDE, first, count, own.weights);
            }
            asm volatile("" : : : "memory"); // the tiles' loads are not known to read what was stored
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

// Turned, with the rows' own scales where they have some, to or onto sums[token × stride + row].
void deliver(const float *tiles, const float *scales, int64_t rows, int64_t tokens, float *sums, int64_t stride,
             bool add) {
    for (int64_t i = 0; i < sides(rows); i++)
        for (int64_t j = 0; j < sides(tokens); j++)
            for (int tile = 0; tile < 4; tile++, tiles += TILE_SUMS) {
                const int64_t row = i * SIDE + tile / 2 * 16, token = j * SIDE + tile % 2 * 16;
                Floats square[WIDTH];
                UNROLL for (int k = 0; k < WIDTH; k++)
                    square[k] = loaded<Floats>(tiles + k * 16) * (scales ? scales[smaller(row + k, rows - 1)] : 1.0f);
                transpose(square);
                UNROLL for (int k = 0; k < WIDTH; k++) if (token + k < tokens) {
                    float *to = sums + (token + k) * stride + row;
                    stored(to, add ? loaded<Floats>(to) + square[k] : square[k]);
                }
            }
}

bool multiplies(int weight_kind, int kind) {
    if (weight_kind == GF_I4)
        return kind != GF_F32;
    return kind == GF_BF16 && (weight_kind == GF_BF16 || weight_kind == GF_I8);
}

void products(const Rows &rows, const TurnedTokens &tokens, float *sums, int64_t stride, bool add, void *memory) {
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

const MatrixUnit unit = {multiplies, turn, memory_bytes, products};

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
