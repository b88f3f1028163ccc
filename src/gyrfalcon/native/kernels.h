// What every instruction set does in its own way, for one thread: the table of its kernels.
#pragma once
#include "gyrfalcon.h"
#include <stddef.h>

namespace gyrfalcon {

// A row of floats that vectors of any width may read to their end.
constexpr int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
constexpr int64_t padded_shorts(int64_t count) { return (count + 31) / 32 * 32; }
// Of one number, but i4.
constexpr int64_t bytes_of(int kind) { return kind == GF_F32 ? 4 : kind == GF_I8 ? 1 : 2; }

// i4 lies in tiles of so many rows, each [units of 64 columns, 8 words, rows, 4 bytes]; scales in [groups, rows].
constexpr int64_t INT4_ROWS = 16, INT4_UNIT_BYTES = 32 * INT4_ROWS;

// Some rows of a weight matrix; `row_bytes` apart, but those of i4.
struct Rows {
    const char *data;
    const char *scales; // of i8 and i4, those of the first row
    int64_t row_bytes;
    int64_t count; // of i4 whole tiles
    int64_t columns;
    int kind;
    int group;
};
constexpr int64_t int4_scale_bytes(const Rows &rows) { return rows.columns / rows.group * 2; } // of a row

// Tokens for a matrix unit, in groups of TURNED_TOKENS as it wants them: bf16, or rounded to 8 bits with float32
// scales of 64 columns each, which are turned as the numbers are.
struct TurnedTokens {
    const char *numbers;
    const char *scales; // or null
    int64_t count;
};
constexpr int64_t TURNED_TOKENS = 32;
constexpr int64_t turned_bytes(int64_t row_bytes) { return (row_bytes + 63) / 64 * 64 * TURNED_TOKENS; } // of a group

// Up to so many tokens rounded weights are multiplied row by row, as they lie; with more their rows are packed.
constexpr int64_t INT4_TOKENS = 16, INT8_TOKENS = 24;

// How tokens are made ready for a product.
enum Form {
    FLOATS,       // as floats
    PARTED,       // likewise, those of two vectors in even places before those in odd ones
    FLOAT_PANELS, // [blocks of FLOAT_COLUMNS, panels, columns, panel_tokens]
    SHORTS,       // rounded to 16 bits, each SHORT_COLUMNS by themselves
    SHORT_PANELS, // [blocks, panels, pairs of columns, short_tokens, 2], an even number of pairs
    BYTES,        // rounded to 8 bits, each 64 columns by themselves
    BYTE_PANELS,  // [blocks of SHORT_COLUMNS, panels, quads of columns, panel_tokens, 4]
    TURNED,       // for a matrix unit
};

constexpr int64_t FLOAT_COLUMNS = 256; // as many bytes as SHORT_COLUMNS take
// Sums of so many products of 8 and 16 bits fit 32 bits. Against the largest of a block, 16 bits are 128 times as
// fine as bfloat16 is.
constexpr int64_t SHORT_COLUMNS = 512;
constexpr int32_t LARGEST_SHORT = 32639; // with a weight of 8 bits it makes a sum that fits 16
constexpr int64_t short_blocks(int64_t columns) { return (columns + SHORT_COLUMNS - 1) / SHORT_COLUMNS; }

// Tokens as the products read them, `stride` numbers each. In panels they are the `first` and those after it of
// `stride` tokens.
struct Tokens {
    Form form = FLOATS;
    int64_t count = 0;
    int64_t stride = 0;
    int64_t first = 0;
    const float *floats = nullptr;
    const int16_t *shorts = nullptr;
    const int8_t *bytes = nullptr;
    const float *scales = nullptr; // [tokens, blocks]; of panels [blocks, tokens]
    // What sums begin with. Of bytes: -8 × the sum of 32 values, [tokens, columns / 32]; of panels turned. Of short
    // panels [blocks, tokens].
    const int32_t *offsets = nullptr;
    TurnedTokens turned = {};
};

// Some columns of a panel of rows or of tokens, with each one's scale, and what makes good for what it adds to crossed
// products by itself (kernels.inl).
struct ShortPanel {
    const int16_t *numbers;
    const float *scales;
    const int32_t *offsets;
};

// Some columns of a panel of tokens, rounded to bytes.
struct ByteTokens {
    const int8_t *bytes;    // [quads, panel_tokens, 4]
    const float *scales;    // [units of 64 columns, stride]
    const int32_t *offsets; // [halves of units, stride]
    int64_t stride;
    int64_t count; // panel_tokens at most
};

// Products with many tokens by a matrix unit.
struct MatrixUnit {
    // Whether it multiplies weights and tokens of these kinds.
    bool (*multiplies)(int weight_kind, int kind);
    // TURNED_TOKENS rows of numbers at most, to a group of turned ones.
    void (*turn)(const char *rows, int64_t row_bytes, int64_t count, char *to);
    // As Kernels::products, with memory_bytes(rows, tokens) of a thread's own memory, aligned to 64 bytes; sums of
    // rows up to a multiple of 32 are written.
    size_t (*memory_bytes)(int64_t rows, int64_t tokens);
    void (*products)(const Rows &rows, const TurnedTokens &tokens, float *sums, int64_t stride, bool add, void *memory);
};

// One KV head's part of a sequence's attention: `rows` queries, each of one head and one token.
struct Attending {
    const float *queries;   // [rows, padded(dim)], scaled
    const char *keys;       // of this head in the cache
    const char *values;     //
    const int64_t *table;   // the sequence's blocks
    const int64_t *limits;  // [rows], the keys up to which each row sees
    const float *slopes;    // [rows] of ALiBi, or null
    int64_t rows;
    int64_t first;          // key
    int64_t last;           // key, the largest of limits at most
    int64_t block_size;
    int64_t token_bytes;
    int64_t dim;
    int kind;
    float slope_scale;
};

constexpr int64_t KEYS_AT_ONCE = 64;

// What one thread works in: keys [KEYS_AT_ONCE, padded(dim)] or panels of them, values [KEYS_AT_ONCE, padded(dim)],
// scores [rows, KEYS_AT_ONCE], and panels of queries [panels, dim, panel_tokens].
struct AttendMemory {
    float *keys;
    float *values;
    float *scores;
    float *queries;
};

struct Kernels {
    const char *name;
    int64_t panel_rows;
    int64_t panel_tokens; // in a panel of floats or bytes
    int64_t short_tokens; // in one of shorts

    // sums[token × stride + row] = or += the products, i8 and i4 with their scales. `streamed`: the weights
    // come from memory and are read once.
    void (*products)(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, bool streamed);
    // int4 rows as floats, `stride` apart.
    void (*widen_int4)(const Rows &rows, float *to, int64_t stride);
    // With many tokens: at most panel_rows rows as floats, scaled, to [columns, panel_rows]; and a panel of them
    // with `count` of a panel of tokens [columns, panel_tokens] to or onto sums[token × stride + row].
    void (*pack_rows)(const Rows &rows, int64_t first_column, int64_t columns, float *to);
    void (*panel_products)(const float *panel, const float *tokens, int64_t count, int64_t columns, float *sums,
                           int64_t stride, bool add);
    // The same with 16-bit numbers, at most SHORT_COLUMNS of one block: i8 rows to [pairs, panel_rows, 2].
    void (*pack_short_rows)(const Rows &rows, int64_t first_column, int64_t columns, int16_t *to, float *scales,
                            int32_t *offsets);
    void (*short_panel_products)(const ShortPanel &rows, const ShortPanel &tokens, int64_t count, int64_t columns,
                                 float *sums, int64_t stride, bool add);
    // And with bytes: i4 rows to [quads, panel_rows, 4] and their scales to [groups, panel_rows].
    void (*pack_nibbles)(const Rows &rows, int64_t first_column, int64_t columns, uint8_t *to, float *scales);
    void (*byte_panel_products)(const uint8_t *panel, const float *row_scales, const ByteTokens &tokens,
                                int64_t columns, int64_t group, float *sums, int64_t stride, bool add);

    void (*widen)(const void *from, int kind, int64_t count, float *to);
    void (*part)(float *floats, int64_t columns); // into those of even and odd places, as bf16 weights want them
    void (*narrow)(const float *from, int64_t count, int kind, void *to);
    // Of a token: to bytes, and to shorts with zeros up to padded_shorts(columns).
    void (*round)(const float *from, int64_t columns, int8_t *bytes, float *scales, int32_t *offsets);
    void (*round_to_shorts)(const float *from, int64_t columns, int16_t *shorts, float *scales);
    int32_t (*short_offset)(const int16_t *shorts, int64_t columns); // of a whole number of quads
    // y = activation(sums + bias), all of `count`
    void (*finish)(const float *sums, const void *bias, int64_t bias_start, int64_t count, int activation, int kind,
                   char *y);
    void (*add_layer_norms)(const char *x, const char *part, char *sum, const gf_norm *norms, int num_norms, int64_t place,
                      int64_t hidden, float eps, int kind, float *floats);
    void (*rotate)(const char *from, const float *cosines, const float *sines, int64_t dim, int kind, char *to);
    // out [rows, dim] without its division; top [rows] the largest score, total [rows] the sum of e^(score - top)
    void (*attend)(const Attending &work, const AttendMemory &own, float *out, float *top, float *total);

    // Multiply-adds in registers, returns how many floating-point operations; reading memory, eight streams.
    int64_t (*multiply_add)(int64_t rounds);
    void (*read_streams)(const char *from, int64_t bytes);

    const MatrixUnit *unit = nullptr; // or none
};

inline int64_t tokens_in_panel(const Kernels &kernels, Form form) {
    return form == SHORT_PANELS ? kernels.short_tokens : kernels.panel_tokens;
}

// Null where the processor lacks the instructions.
const Kernels *chosen_kernels();

// Null where the build lacks them.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();
const Kernels *amx_kernels();

} // namespace gyrfalcon
