// Linears: inputs are packed once (inputs.h), then threads take blocks of rows.
//
// Few tokens: weights are streamed once, as stored. Many: a block of packed weights stays in cache for all tokens and is
// multiplied by micro-kernels of MR rows × NR tokens, or by a matrix unit.
#include "inputs.h"
#include "operations.h"
#include "threads.h"

#include <algorithm>
#include <numeric>

namespace gyrfalcon {
namespace {

constexpr int MOST_OUTPUTS = 4;
constexpr int64_t TOKENS_AT_ONCE = 576; // of many
constexpr int64_t SLICE_STEP = 12, UNIT_SLICE_STEP = 96; // whole tiles of every instruction set; whole groups, too
constexpr int64_t ROWS_AT_ONCE = 64;         // of weights, with many tokens: whole tiles
constexpr int64_t MOST_TILES_OF_ROWS = 4;    // at once: tokens are read again for each block
constexpr int64_t MOST_UNIT_ROWS = 256;      // the same with a matrix unit
constexpr int64_t TILES_IN_CACHE = 16;  // of tokens, 3 to 12 KiB each
constexpr int64_t MOST_SCALES = INT16_COLUMNS / 32; // of a row of a block
constexpr int64_t BLOCKS_A_THREAD = 8;              // of rows, so that threads end at about the same time

struct Matmul {
    const Kernels *kernels;
    const gf_output *outputs;
    Tokens inputs[2 * MOST_OUTPUTS]; // of each output's terms, in order
    int kind;
    int64_t block_rows;
    int64_t stride; // of a token's sums
    bool many;

    int64_t blocks(int output) const { return (outputs[output].terms[0].weight.rows + block_rows - 1) / block_rows; }
};

int64_t bytes_of_columns(int kind, int64_t columns) { return kind == GF_I4 ? columns / 2 : columns * bytes_of(kind); }

Rows rows_of(const gf_matrix &weight) {
    const int64_t row_bytes = bytes_of_columns(weight.kind, weight.columns);
    return {static_cast<const char *>(weight.data),
            static_cast<const char *>(weight.scales),
            row_bytes,
            weight.rows,
            weight.columns,
            weight.kind,
            weight.group};
}

// A weight's rows from `row` on, `most` of them; of i4 from a tile's first row on, or part of a tile.
Rows from_row(const Rows &rows, int64_t row, int64_t most) {
    Rows some = rows;
    const int64_t lane = rows.kind == GF_I4 ? row % INT4_ROWS : 0;
    some.data += (row - lane) * rows.row_bytes + 4 * lane;
    if (rows.kind == GF_I4)
        some.scales += (row - lane) * int4_scale_bytes(rows) + 2 * lane;
    else if (rows.kind == GF_I8)
        some.scales += 4 * row;
    some.count = std::min(most, rows.count - row);
    return some;
}

// A tile of rows to be packed, some columns, after which follow the next tile's or the first one's next columns.
Rows tile_of(const Kernels &kernels, const Rows &rows, int64_t row, int64_t columns) {
    Rows tile = from_row(rows, row, kernels.mr);
    const bool last = row + kernels.mr >= rows.count;
    const int64_t column_bytes = rows.kind == GF_I4 ? columns / 64 * INT4_BLOCK_BYTES : columns * bytes_of(rows.kind);
    tile.ahead = last ? column_bytes - row * rows.row_bytes : kernels.mr * rows.row_bytes;
    return tile;
}

// each(row, token, how many tokens) for every tile of rows and of tokens: a tile of rows stays in L1 for some tiles of
// tokens, and these stay in L2 for all rows.
template <class Each> void for_tiles(const Kernels &kernels, const Rows &rows, const Tokens &tokens, const Each &each) {
    const int64_t size = tokens_in_tile(kernels, tokens.form), step = TILES_IN_CACHE * size;
    for (int64_t first = 0; first < tokens.count; first += step)
        for (int64_t row = 0; row < rows.count; row += kernels.mr)
            for (int64_t token = first; token < std::min(tokens.count, first + step); token += size)
                each(row, token, std::min(size, tokens.count - token));
}

// Some columns of rows, from one on.
struct Columns {
    Rows rows;
    int64_t column;
};

// Cache lines of those that are packed next, for all tiles of rows and of tokens to prefetch.
Ahead lines_of(const Columns &next, const Kernels &kernels, const Rows &rows, const Tokens &tokens) {
    const Rows &from = next.rows;
    const bool int4 = from.kind == GF_I4;
    const int64_t together = int4 ? INT4_ROWS : 1, columns = std::min(INT16_COLUMNS, from.columns - next.column);
    const auto bytes = [&](int64_t count) { return int4 ? count / 64 * INT4_BLOCK_BYTES : count * bytes_of(from.kind); };
    const int64_t size = tokens_in_tile(kernels, tokens.form), row_lines = (bytes(columns) + 63) / 64;
    const int64_t lines = from.count / together * row_lines;
    const int64_t tiles = (rows.count + kernels.mr - 1) / kernels.mr * ((tokens.count + size - 1) / size);
    const char *row = from.data + bytes(next.column);
    return {row, row, together * from.row_bytes, row_lines, row_lines, lines, (lines + tiles - 1) / tiles};
}

// One term, some columns at a time.
void add_float_tiles(const Kernels &kernels, const Rows &rows, const Tokens &tokens, float *sums, int64_t stride,
                     bool add, float *tiles) {
    for (int64_t column = 0; column < rows.columns; column += FLOAT_COLUMNS) {
        const int64_t columns = std::min(FLOAT_COLUMNS, rows.columns - column);
        for (int64_t row = 0; row < rows.count; row += kernels.mr)
            kernels.pack_rows(tile_of(kernels, rows, row, columns), column, columns, tiles + row * columns);
        for_tiles(kernels, rows, tokens, [&](int64_t row, int64_t token, int64_t count) {
            kernels.micro_kernel(tiles + row * columns,
                                 tokens.floats + column * tokens.stride + (tokens.first + token) * columns, count,
                                 columns, sums + token * stride + row, stride, add || column);
        });
    }
}

// Some columns of bf16 weights.
void add_bf16_columns(const Kernels &kernels, const Rows &rows, int64_t column, const Columns &next, const Tokens &tokens,
                      float *sums, int64_t stride, bool add, float *memory) {
    Ahead ahead = lines_of(next, kernels, rows, tokens);
    auto *tiles = reinterpret_cast<uint16_t *>(memory);
    const int64_t columns = std::min(INT16_COLUMNS, rows.columns - column), room = (columns + 1) / 2 * 2;
    for (int64_t row = 0; row < rows.count; row += kernels.mr)
        kernels.pack_bf16_rows(tile_of(kernels, rows, row, columns), column, columns, tiles + row * room);
    for_tiles(kernels, rows, tokens, [&](int64_t row, int64_t token, int64_t count) {
        kernels.micro_kernel_bf16(tiles + row * room,
                                  tokens.halves + column * tokens.stride + (tokens.first + token) * room, count, columns,
                                  sums + token * stride + row, stride, add || column, ahead);
    });
}

// Some columns of int8 weights.
void add_int8_columns(const Kernels &kernels, const Rows &rows, int64_t column, const Columns &next, const Tokens &tokens,
                      float *sums, int64_t stride, bool add, float *memory) {
    Ahead ahead = lines_of(next, kernels, rows, tokens);
    float *scales = memory;
    auto *offsets = reinterpret_cast<int32_t *>(memory + stride);
    auto *tiles = reinterpret_cast<int16_t *>(memory + 2 * stride);
    const int64_t columns = std::min(INT16_COLUMNS, rows.columns - column), groups = (columns + 3) / 4;
    const int64_t of_block = column / INT16_COLUMNS * tokens.stride;
    for (int64_t row = 0; row < rows.count; row += kernels.mr)
        kernels.pack_int8_rows(tile_of(kernels, rows, row, columns), column, columns, tiles + row * INT16_COLUMNS,
                               scales + row, offsets + row);
    for_tiles(kernels, rows, tokens, [&](int64_t row, int64_t token, int64_t count) {
        const int64_t place = tokens.first + token;
        kernels.micro_kernel_int16({tiles + row * INT16_COLUMNS, scales + row, offsets + row},
                                   {tokens.shorts + column * tokens.stride + place * groups * 4,
                                    tokens.scales + of_block + place, tokens.offsets + of_block + place},
                                   count, columns, sums + token * stride + row, stride, add || column, ahead);
    });
}

// Some columns of int4 weights, or of int8 ones with int8 tokens.
void add_byte_columns(const Kernels &kernels, const Rows &rows, int64_t column, const Columns &next, const Tokens &tokens,
                      float *sums, int64_t stride, bool add, float *memory) {
    Ahead ahead = lines_of(next, kernels, rows, tokens);
    auto *tiles = reinterpret_cast<uint8_t *>(memory + stride * MOST_SCALES);
    const int64_t blocks = int8_blocks(rows.columns), columns = std::min(INT16_COLUMNS, 64 * blocks - column);
    const bool int4 = rows.kind == GF_I4;
    const int64_t group = int4 ? rows.group : 0, offset_columns = group == 32 ? 32 : 64;
    const auto pack = int4 ? kernels.pack_int4_rows : kernels.pack_int8_bytes;
    for (int64_t row = 0; row < rows.count; row += kernels.mr)
        pack(tile_of(kernels, rows, row, columns), column, columns, tiles + row * INT16_COLUMNS, memory + row * MOST_SCALES);
    for_tiles(kernels, rows, tokens, [&](int64_t row, int64_t token, int64_t count) {
        const int64_t place = tokens.first + token, tile = place / kernels.nr_int8;
        const int64_t block = tile * blocks + column / 64, offset = tile * tokens.offsets_each + column / offset_columns;
        const Int8Tokens some{tokens.bytes + column * tokens.stride + place * columns,
                              tokens.scales + block * kernels.nr_int8, tokens.offsets + offset * kernels.nr_int8, count};
        kernels.micro_kernel_int4(tiles + row * INT16_COLUMNS, memory + row * MOST_SCALES, some, columns, group,
                                  sums + token * stride + row, stride, add || column, ahead);
    });
}

// With few tokens each tile of rows is taken from end to end: long streams are read fastest.
void add_tiles(const Kernels &kernels, const Rows &rows, const Rows &next, const Tokens &tokens, float *sums,
               int64_t stride, bool add, bool many, float *memory) {
    const auto add_columns = tokens.form == BF16_TILES    ? add_bf16_columns
                             : tokens.form == INT16_TILES ? add_int8_columns
                                                          : add_byte_columns;
    const int64_t step = many ? rows.count : kernels.mr;
    for (int64_t row = 0; row < rows.count; row += step)
        for (int64_t column = 0; column < rows.columns; column += INT16_COLUMNS) {
            const Rows some = from_row(rows, row, step);
            const Rows then = row + step < rows.count ? from_row(rows, row + step, step) : from_row(next, 0, step);
            const bool last = column + INT16_COLUMNS >= rows.columns;
            const Columns follows = last ? Columns{then, 0} : Columns{some, column + INT16_COLUMNS};
            add_columns(kernels, some, column, follows, tokens, sums + row, stride, add, memory);
        }
}

// One term of int4 with tokens that are not quantised.
void add_widened(const Kernels &kernels, const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add,
                 float *floats) {
    for (int64_t row = 0; row < rows.count; row += INT4_ROWS) {
        Rows some = from_row(rows, row, INT4_ROWS);
        kernels.widen_int4(some, floats, rows.columns);
        some.data = reinterpret_cast<const char *>(floats);
        some.row_bytes = 4 * rows.columns;
        some.kind = GF_F32;
        kernels.linear(some, tokens, sums + row, stride, add, false);
    }
}

// One term. `next` are the rows that follow.
void add_term(const Kernels &kernels, const Rows &rows, const Rows &next, const Tokens &tokens, float *sums,
              int64_t stride, bool add, bool many, void *memory) {
    auto *floats = static_cast<float *>(memory);
    if (tokens.by_unit)
        kernels.unit->linear(rows, tokens, sums, stride, add, memory);
    else if (tokens.form == BF16_TILES || tokens.form == INT16_TILES || tokens.form == INT8_TILES)
        add_tiles(kernels, rows, next, tokens, sums, stride, add, many, floats);
    else if (tokens.form == FLOAT_TILES)
        add_float_tiles(kernels, rows, tokens, sums, stride, add, floats);
    else if (rows.kind == GF_I4 && tokens.form == FLOATS)
        add_widened(kernels, rows, tokens, sums, stride, add, floats);
    else
        kernels.linear(rows, tokens, sums, stride, add, !many);
}

// A block of an output's rows.
struct Block {
    int output;
    int64_t first;
};
Block block_at(const Matmul &matmul, int64_t number) {
    int output = 0;
    for (; number >= matmul.blocks(output); output++)
        number -= matmul.blocks(output);
    return {output, number * matmul.block_rows};
}

Rows rows_in(const Matmul &matmul, const Block &block, int term) {
    return from_row(rows_of(matmul.outputs[block.output].terms[term].weight), block.first, matmul.block_rows);
}

// A block, for tokens from `start` on. `next` are the rows that this thread probably takes next.
void compute(const Matmul &matmul, const Block &block, const Rows &next, int64_t start, int64_t tokens, int thread) {
    const Kernels &kernels = *matmul.kernels;
    const gf_output &output = matmul.outputs[block.output];
    const int64_t all_rows = output.terms[0].weight.rows, first = block.first;
    auto *sums = static_cast<float *>(scratch(thread, SUMS));
    for (int i = 0; i < output.num_terms; i++) {
        const Rows rows = rows_in(matmul, block, i);
        const Rows follows = i + 1 < output.num_terms ? rows_in(matmul, block, i + 1) : next;
        const Tokens inputs = slice(matmul.inputs[2 * block.output + i], start, tokens, rows.columns);
        add_term(kernels, rows, follows, inputs, sums, matmul.stride, i > 0, matmul.many, scratch(thread, WEIGHTS));
    }
    const int64_t size = bytes_of(matmul.kind), count = std::min(matmul.block_rows, all_rows - first);
    for (int64_t token = 0; token < tokens; token++) {
        char *y = static_cast<char *>(output.y) + ((start + token) * all_rows + first) * size;
        kernels.epilogue(sums + token * matmul.stride, output.bias, first, count, output.activation, matmul.kind,
                         y);
    }
}

int64_t block_rows(const Kernels &kernels, const gf_output *outputs, int num_outputs, bool many) {
    int64_t rows = 0;
    for (int i = 0; i < num_outputs; i++)
        rows += outputs[i].terms[0].weight.rows;
    const int64_t wanted = rows / (num_threads() * BLOCKS_A_THREAD);
    if (many) {
        const int64_t most = kernels.unit ? MOST_UNIT_ROWS : std::max(ROWS_AT_ONCE, MOST_TILES_OF_ROWS * kernels.mr);
        return std::clamp(wanted / ROWS_AT_ONCE * ROWS_AT_ONCE, ROWS_AT_ONCE, most);
    }
    const int64_t step = std::lcm(int64_t{48}, kernels.mr); // whole tiles, streamed and packed
    return std::clamp(wanted / step * step, step, int64_t{192});
}

// Slices of nearly equal size: a short last one would read all weights for few tokens.
int64_t slice_tokens(const Kernels &kernels, int64_t tokens) {
    const int64_t slices = (tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE, each = (tokens + slices - 1) / slices;
    const int64_t step = kernels.unit ? UNIT_SLICE_STEP : SLICE_STEP;
    return std::min(tokens, (each + step - 1) / step * step);
}

// Packs the inputs of all terms, a shared one only once. Returns the largest number of columns.
int64_t prepack_inputs(Matmul &matmul, int num_outputs, int64_t tokens) {
    int64_t columns = 0;
    const gf_term *terms[2 * MOST_OUTPUTS] = {};
    for (int i = 0; i < 2 * num_outputs; i++) {
        if (i % 2 == matmul.outputs[i / 2].num_terms)
            continue;
        const gf_term *term = terms[i] = &matmul.outputs[i / 2].terms[i % 2];
        columns = std::max(columns, term->weight.columns);
        int same = 0;
        while (same < i &&
               !(terms[same] && terms[same]->x == term->x && terms[same]->weight.columns == term->weight.columns &&
                 terms[same]->weight.kind == term->weight.kind && terms[same]->weight.group == term->weight.group))
            same++;
        matmul.inputs[i] = same < i ? matmul.inputs[same] : prepack(*matmul.kernels, *term, i, tokens, matmul.kind);
    }
    return columns;
}

} // namespace

void linears(const gf_output *outputs, int num_outputs, int64_t tokens, int kind) {
    Matmul matmul{chosen_kernels(), outputs, {}, kind, 0, 0, tokens > FEW_TOKENS};
    const int64_t columns = prepack_inputs(matmul, num_outputs, tokens);
    matmul.block_rows = block_rows(*matmul.kernels, outputs, num_outputs, matmul.many);
    // An odd number of cache lines, so that a tile's sums do not fall into few sets of a cache.
    matmul.stride = matmul.block_rows + (matmul.kernels->unit ? 16 : 0);
    const int64_t tokens_at_once = slice_tokens(*matmul.kernels, tokens);
    const int64_t sides = (tokens_at_once + UNIT_SIDE - 1) / UNIT_SIDE;
    reserve(SUMS, static_cast<size_t>(4 * sides * UNIT_SIDE * matmul.stride));
    const int64_t tiles = matmul.stride * (FLOAT_COLUMNS + MOST_SCALES);
    reserve(WEIGHTS, static_cast<size_t>(4 * std::max(tiles, INT4_ROWS * columns)));
    if (matmul.kernels->unit)
        reserve(WEIGHTS, matmul.kernels->unit->memory_bytes);
    int64_t blocks = 0;
    for (int i = 0; i < num_outputs; i++)
        blocks += matmul.blocks(i);
    for (int64_t start = 0; start < tokens; start += tokens_at_once) {
        const int64_t count = std::min(tokens_at_once, tokens - start);
        in_parallel(blocks, [&](int64_t number, int thread) {
            const int64_t next = number + num_threads();
            const Rows follows = next < blocks ? rows_in(matmul, block_at(matmul, next), 0) : Rows{};
            compute(matmul, block_at(matmul, number), follows, start, count, thread);
        });
    }
}

} // namespace gyrfalcon

extern "C" int gf_linears(const gf_output *outputs, int num_outputs, int64_t tokens, int kind) {
    return gyrfalcon::one_at_a_time([&] { gyrfalcon::linears(outputs, num_outputs, tokens, kind); });
}
