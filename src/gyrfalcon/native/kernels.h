// The table of kernels that each instruction set provides; each works on one thread.
#pragma once
#include "gyrfalcon.h"
#include <stddef.h>

namespace gyrfalcon {

// The length of a row of floats, padded to whole vectors of any width.
constexpr int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
constexpr int64_t padded_int16(int64_t count) { return (count + 31) / 32 * 32; }
constexpr int64_t int8_blocks(int64_t count) { return (count + 63) / 64; }
// Of one number; not for i4.
constexpr int64_t bytes_of(int kind) { return kind == GF_F32 ? 4 : kind == GF_I8 ? 1 : 2; }

// i4 is stored in tiles of so many rows, each [blocks of 64 columns, 8 words, rows, 4 bytes]; scales in [groups, rows].
constexpr int64_t INT4_ROWS = 16, INT4_BLOCK_BYTES = 32 * INT4_ROWS;

// Some rows of a weight matrix, `row_bytes` apart (except i4).
struct Rows {
    const char *data;
    const char *scales; // of i8 and i4, those of the first row
    int64_t row_bytes;
    int64_t count; // of i4 whole tiles
    int64_t columns;
    int kind;
    int group;
    int64_t ahead = 0; // bytes to those that are packed next
};
constexpr int64_t int4_scale_bytes(const Rows &rows) { return rows.columns / rows.group * 2; } // of a row

// Cache lines of weights that are packed next. Each product prefetches some into the second-level cache, so that memory is read
// while numbers are multiplied; one by one, for it would wait for many.
struct Ahead {
    const char *place, *row;
    int64_t apart; // bytes from row to row
    int64_t row_lines, row_left;
    int64_t lines; // left
    int64_t each;  // of a product

    inline __attribute__((always_inline)) void prefetch_line() {
        if (lines <= 0)
            return;
        __builtin_prefetch(place, 0, 2);
        lines--, place += 64;
        if (!--row_left) {
            row_left = row_lines;
            place = row += apart;
        }
    }
};

// Tokens for a matrix unit, in groups: of bf16, or of int16 as bytes. A step of a group has UNIT_STEP_BYTES, for 64 bytes
// of a weight's row; some steps of all groups lie together, [blocks of steps, groups, steps].
constexpr int64_t UNIT_SIDE = 32, UNIT_TOKENS = 16;
constexpr int64_t UNIT_STEP_BYTES = 2048, UNIT_STEPS = 8;
constexpr int64_t unit_steps(int64_t row_bytes) { return (row_bytes + 63) / 64; }

// Up to so many tokens weights are multiplied as stored; with more their rows are packed: quantised ones with int8 or int16
// tokens, and where there are instructions for products of bytes (isa/int8_tokens.inl) and of bf16.
constexpr int64_t INT4_TOKENS = 16, INT8_TOKENS = 24;
constexpr int64_t INT4_BYTE_TOKENS = 32, INT8_BYTE_TOKENS = 12, BF16_TOKENS = 64;

// The form in which a linear's kernel reads its tokens.
enum Form {
    FLOATS,        // float32
    DEINTERLEAVED, // float32; of each two vectors, even places before odd ones
    FLOAT_TILES,   // [blocks of FLOAT_COLUMNS, tiles, columns, nr]
    BF16,          // [blocks of BF16_COLUMNS, tokens, BF16_COLUMNS], padded with zeros to whole cache lines
    BF16_TILES,    // [blocks of INT16_COLUMNS, tiles, pairs of columns, nr, 2]
    INT16,         // quantised to int16, a scale for each INT16_COLUMNS
    INT16_TILES,   // [blocks, tiles, pairs of columns, nr_int16, 2], an even number of pairs
    INT8,          // quantised to int8, a scale for each 64 columns, padded with zeros to whole blocks of them
    INT8_TILES,    // [blocks of INT16_COLUMNS, tiles, groups of 4 columns, nr, 4]
    GATHERED,      // for a matrix unit: bf16, UNIT_STEPS in a block, groups of UNIT_SIDE;
                   // up to UNIT_SIDE tokens are transposed
    SPLIT_INT16,   // for a matrix unit: INT16 as bytes, UNIT_STEPS in a block, groups of UNIT_TOKENS; likewise
    INT8_GROUPS,   // for a matrix unit: INT8, with memory for whole groups of UNIT_SIDE
};

constexpr int64_t BF16_COLUMNS = 1024; // isa/bf16_tokens.inl
constexpr int64_t FLOAT_COLUMNS = 256; // half of INT16_COLUMNS: as many bytes
// Sums of so many int8 × int16 products fit int32. Relative to a block's largest, int16 is 128 times as fine as
// bfloat16.
constexpr int64_t INT16_COLUMNS = 512;
constexpr int32_t LARGEST_INT16 = 32639; // plus an int8 weight it still fits int16 (Winograd)
constexpr int64_t int16_blocks(int64_t columns) { return (columns + INT16_COLUMNS - 1) / INT16_COLUMNS; }

// Tokens as the kernels read them, `stride` numbers each; in tiles those from `first` on of `stride` tokens.
struct Tokens {
    Form form = FLOATS;
    int64_t count = 0;
    int64_t stride = 0;
    int64_t first = 0;
    const float *floats = nullptr;
    const int16_t *shorts = nullptr;
    const uint16_t *halves = nullptr; // bf16
    const int8_t *bytes = nullptr;
    // [tokens, blocks]; INT16_TILES: [blocks, tokens]; INT8_TILES: [tiles, blocks, nr_int8], for then no thread writes
    // where another does; in groups [groups, an even number, blocks, UNIT_TOKENS].
    const float *scales = nullptr;
    // Initial values of the sums. INT8: minus what the weight is stored above its value (8, 128), times the sum of 64
    // numbers, of 32 for weights in groups of 32, [tokens, sums of a token]; INT8_TILES: [tiles, sums of a token, nr_int8];
    // INT16_TILES: [blocks, tokens].
    const int32_t *offsets = nullptr;
    int64_t offsets_each = 0; // INT8, INT8_TILES: of a token
    const char *tiles = nullptr; // of a matrix unit, `stride` groups
    bool by_unit = false;        // a matrix unit multiplies them
};

// Some columns of a tile of rows or of tokens, with the scale of each and its own term of the Winograd inner product
// (isa/packed_int8.inl).
struct Int16Tile {
    const int16_t *numbers;
    const float *scales;
    const int32_t *offsets;
};

// Some columns of a tile of int8 tokens.
struct Int8Tokens {
    const int8_t *bytes;    // [groups, nr, 4]
    const float *scales;    // [blocks of 64 columns, nr]
    const int32_t *offsets; // [blocks, or halves of them, nr]
    int64_t count;          // nr at most
};

// Linears by a matrix unit. It reads tokens as GATHERED for bf16 weights, SPLIT_INT16 for int8, INT8_GROUPS for int4.
struct MatrixUnit {
    // Whether it multiplies so many tokens of a kind with weights of a kind.
    bool (*multiplies)(int weight_kind, int64_t tokens, int kind);
    // Packs one block of steps of group number `group` of `groups`, `count` tokens, as GATHERED or SPLIT_INT16.
    void (*gather)(const char *tokens, int64_t row_bytes, int64_t count, int64_t block, int64_t group, int64_t groups,
                   char *to);
    void (*split)(const int16_t *tokens, int64_t stride, int64_t count, int64_t block, int64_t group, int64_t groups,
                  char *to);
    size_t memory_bytes; // of scratch, 64-byte aligned
    // As Kernels::linear; sums are written for rows and tokens up to a multiple of UNIT_SIDE.
    void (*linear)(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, void *memory);
};

// One KV head's part of a sequence's attention: `rows` queries, each of one head and one token.
struct AttentionWork {
    const float *queries;  // [rows, padded(dim)]
    const char *keys;      // of this head in the cache
    const char *values;    //
    const int64_t *table;  // the sequence's blocks
    const int64_t *limits; // [rows], the keys up to which each row sees
    const float *slopes;   // [rows] of ALiBi, or null
    int64_t rows;
    int64_t first; // key
    int64_t last;  // key, the largest of limits at most
    int64_t block_size;
    int64_t token_bytes;
    int64_t dim;
    int kind;
    float scale; // of a score, its slope included
};

constexpr int64_t KEYS_AT_ONCE = 64;

// Logits in groups: of GROUP_SPAN successive ones, those that are GROUP_LANES apart. And the weights that are summed up
// together.
constexpr int64_t GROUP_LANES = 16, GROUP_SPAN = 128, WEIGHT_BLOCK = 64;
constexpr int64_t groups_of(int64_t count) { return (count + GROUP_SPAN - 1) / GROUP_SPAN * GROUP_LANES; }

// A thread's scratch: keys [KEYS_AT_ONCE, padded(dim)] or tiles of them, values [KEYS_AT_ONCE, padded(dim)],
// scores [nr, KEYS_AT_ONCE], and tiles of queries [tiles, dim, nr].
struct AttentionScratch {
    float *keys;
    float *values;
    float *scores;
    float *queries;
};

// What multiplies numbers of a kind: an instruction's name, and a function that executes it in registers, `rounds` times
// some independent sums, and returns the number of operations, two a multiply-add. Null where the CPU has none.
struct Instruction {
    const char *name = nullptr;
    int64_t (*run)(int64_t rounds) = nullptr;
};
enum Arithmetic { OF_FLOATS, OF_INT16, OF_INT8, OF_BF16, UNIT_BF16, UNIT_INT8, ARITHMETICS };

struct Kernels {
    const char *name;
    int64_t mr;       // rows of a micro-kernel
    int64_t nr;       // of float tokens
    int64_t nr_int16; // of int16 tokens
    int64_t nr_int8;  // of int8 tokens

    // Few tokens: sums[token × stride + row] = or += x weightᵀ. `streamed`: weights come from memory and are read
    // once.
    void (*linear)(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, bool streamed);
    // Dequantises int4 rows to floats, `stride` apart.
    void (*widen_int4)(const Rows &rows, float *to, int64_t stride);
    // Many tokens: packs at most mr rows as scaled floats to [columns, mr]; multiplies them with `count` tokens of a
    // tile [columns, nr], and stores or adds to sums[token × stride + row].
    void (*pack_rows)(const Rows &rows, int64_t first_column, int64_t columns, float *to);
    void (*micro_kernel)(const float *tile, const float *tokens, int64_t count, int64_t columns, float *sums,
                         int64_t stride, bool add);
    // The same in int16, at most INT16_COLUMNS of one block: int8 rows to [pairs, mr, 2].
    void (*pack_int8_rows)(const Rows &rows, int64_t first_column, int64_t columns, int16_t *to, float *scales,
                           int32_t *offsets);
    void (*micro_kernel_int16)(const Int16Tile &rows, const Int16Tile &tokens, int64_t count, int64_t columns,
                               float *sums, int64_t stride, bool add, Ahead &ahead);
    // And in int8: int4 rows to [groups of 4 columns, mr, 4] and their scales to [groups, mr].
    void (*pack_int4_rows)(const Rows &rows, int64_t first_column, int64_t columns, uint8_t *to, float *scales);
    void (*micro_kernel_int4)(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens, int64_t columns,
                              int64_t group, float *sums, int64_t stride, bool add, Ahead &ahead);

    void (*widen)(const void *from, int kind, int64_t count, float *to);
    void (*deinterleave)(float *floats, int64_t columns); // to match bf16 weights
    void (*narrow)(const float *from, int64_t count, int kind, void *to);
    // Packs `bytes` of each of `count` tokens, `apart` from each other, as a tile of `size`, nr or the like, word by word of 4
    // bytes; the last word is filled up with zeros, and places of missing tokens with anything.
    void (*pack_tokens)(const char *from, int64_t apart, int64_t count, int64_t bytes, int64_t size, char *to);
    // Quantise a token: whole blocks of 64 to int8, with the sum of each 32, or null; int16 is padded with zeros to
    // padded_int16(columns).
    void (*quantise_int8)(const float *from, int64_t blocks, int8_t *bytes, float *scales, int32_t *sums);
    void (*quantise_int16)(const float *from, int64_t columns, int16_t *shorts, float *scales);
    int32_t (*winograd_offset)(const int16_t *shorts, int64_t columns); // a multiple of 4
    // y = activation(sums + bias), all of `count`
    void (*epilogue)(const float *sums, const void *bias, int64_t bias_start, int64_t count, int activation, int kind,
                     char *y);
    void (*add_layer_norms)(const char *x, const char *part, char *sum, const gf_norm *norms, int num_norms,
                            int64_t place, int64_t hidden, float eps, int kind, float *floats);
    void (*rotate)(const char *from, const float *cosines, const float *sines, int64_t dim, int kind, char *to);
    // out [rows, dim] not yet divided by total; top [rows] the largest score, total [rows] the sum of e^(score - top)
    void (*attend)(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total);

    // For sampling: a row's largest logit, maxima [groups_of(count)], at most -FLT_MAX of no logits, and whether all are finite,
    // or may also be -inf, where the row `forbids`.
    float (*group_maxima)(const float *row, int64_t count, bool forbids, float *maxima, bool &finite);
    // e^((logit - top) / temperature) of WEIGHT_BLOCK logits; and the sum of each of some blocks.
    void (*weigh)(const float *logits, double top, double temperature, double *weights);
    void (*sum_weights)(const float *logits, int64_t blocks, double top, double temperature, double *sums);

    void (*read_streams)(const char *from, int64_t bytes); // eight of them

    Instruction instructions[ARITHMETICS];
    const MatrixUnit *unit = nullptr; // null: none
    // As pack_rows and micro_kernel, with bf16 tokens as BF16_TILES: bf16 rows to [pairs of columns, mr, 2]. Null where no
    // instruction multiplies them.
    void (*pack_bf16_rows)(const Rows &rows, int64_t first_column, int64_t columns, uint16_t *to) = nullptr;
    void (*micro_kernel_bf16)(const uint16_t *tile, const uint16_t *tokens, int64_t count, int64_t columns, float *sums,
                              int64_t stride, bool add, Ahead &ahead) = nullptr;
    // As pack_int4_rows, int8 rows by the number of their bytes + 128, to micro_kernel_int4 as group 0 with one scale for
    // all columns. Null where int8 weights are not multiplied with int8 tokens.
    void (*pack_int8_bytes)(const Rows &rows, int64_t first_column, int64_t columns, uint8_t *to,
                            float *scales) = nullptr;
};

inline int64_t tokens_in_tile(const Kernels &kernels, Form form) {
    return form == INT16_TILES ? kernels.nr_int16 : form == INT8_TILES ? kernels.nr_int8 : kernels.nr;
}

// Those in use.
const Kernels *chosen_kernels();

// Whether they take int8 tokens for int8 weights: a setting, never a step's size.
bool int8_activations(const Kernels &kernels);

// Null where they were not built.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx_vnni_kernels();
const Kernels *avx512_core_kernels();
const Kernels *avx512_kernels();
const Kernels *avx512_bf16_kernels();
const Kernels *amx_kernels();

} // namespace gyrfalcon
