// Products with weights: inputs are made ready once, then threads take blocks of rows.
//
// Few tokens: the weights stream through the registers once, as they are stored. Many: a block of them, widened
// to floats, stays in the caches while all tokens pass by, or a matrix unit multiplies them; int4 multiplies
// integers in all cases.
#include "kernels.h"
#include "operations.h"
#include "pool.h"

#include <algorithm>
#include <new>

namespace gyrfalcon {
namespace {

constexpr int MOST_OUTPUTS = 4;
constexpr int64_t FEW_TOKENS = 32;
constexpr int64_t TOKENS_AT_ONCE = 576; // of many: whole panels of every instruction set, whole groups of turned ones
constexpr int64_t ROWS_AT_ONCE = 64;    // of weights, with many tokens: whole panels
constexpr int64_t MOST_UNIT_ROWS = 256; // of weights, with a matrix unit: tokens are read again for each block
constexpr int64_t COLUMNS_AT_ONCE = 256;
constexpr int64_t WIDENED_ROWS = 6;
constexpr int64_t MOST_PANEL_ROWS = 32;
constexpr int64_t MOST_PANEL_TOKENS = 12;
constexpr int64_t BLOCKS_A_THREAD = 8; // of rows, so that threads end at about the same time

struct Product {
    const Kernels *kernels;
    const gf_output *outputs;
    Tokens inputs[2 * MOST_OUTPUTS]; // of each output's terms, in order
    int kind;
    int64_t block_rows;
    bool many;

    int64_t blocks(int output) const { return (outputs[output].terms[0].weight.rows + block_rows - 1) / block_rows; }
};

int64_t bytes_of_columns(int kind, int64_t columns) {
    return kind == GF_I4 ? columns / 2 : columns * bytes_of(kind);
}

Rows rows_of(const gf_matrix &weight, int64_t first, int64_t count) {
    const int64_t row_bytes = bytes_of_columns(weight.kind, weight.columns);
    const int64_t scale_bytes = weight.kind == GF_I4 ? 2 : 4;
    const char *scales = static_cast<const char *>(weight.scales);
    return {static_cast<const char *>(weight.data) + first * row_bytes,
            scales ? scales + first * scale_bytes : nullptr,
            row_bytes,
            weight.rows,
            count,
            weight.rows - first,
            weight.columns,
            weight.kind,
            weight.group};
}

// Whether the tokens are rounded, too: for int4, but not where float32 was asked for.
bool rounds(const gf_matrix &weight, int kind) { return weight.kind == GF_I4 && kind != GF_F32; }

// Many tokens as floats in panels, the last one filled up with zeros: [panels, columns, panel_tokens].
Tokens packed(const Kernels &kernels, const char *x, int64_t columns, int place, int64_t tokens, int kind) {
    const int64_t size = kernels.panel_tokens, panels = (tokens + size - 1) / size;
    auto *to = static_cast<float *>(shared_scratch(INPUTS, place, static_cast<size_t>(4 * panels * size * columns)));
    reserve(SUMS, static_cast<size_t>(4 * padded(columns)));
    in_parallel(panels, [&](int64_t panel, int thread) {
        auto *floats = static_cast<float *>(scratch(thread, SUMS));
        for (int64_t i = 0; i < size; i++) {
            const int64_t token = panel * size + i;
            if (token < tokens)
                kernels.widen(x + token * columns * bytes_of(kind), kind, columns, floats);
            else
                std::fill(floats, floats + columns, 0.0f);
            for (int64_t column = 0; column < columns; column++)
                to[(panel * columns + column) * size + i] = floats[column];
        }
    });
    return {to, nullptr, nullptr, nullptr, columns, tokens};
}

bool takes_unit(const Kernels &kernels, const gf_matrix &weight, int64_t tokens, int kind) {
    return tokens > FEW_TOKENS && kernels.unit && kernels.unit->multiplies(weight.kind, kind);
}

Tokens for_unit(const TurnedTokens &tokens) {
    return {nullptr, nullptr, nullptr, nullptr, 0, tokens.count, tokens};
}

// Rows of numbers in groups that a matrix unit reads: [groups, turned_bytes(row_bytes)].
const char *turned(const Kernels &kernels, const void *rows, int64_t row_bytes, int64_t tokens, SharedPurpose purpose,
                   int place) {
    const int64_t groups = (tokens + TURNED_TOKENS - 1) / TURNED_TOKENS, size = turned_bytes(row_bytes);
    auto *to = static_cast<char *>(shared_scratch(purpose, place, static_cast<size_t>(groups * size)));
    in_parallel(groups, [&](int64_t group, int) {
        const int64_t first = group * TURNED_TOKENS;
        kernels.unit->turn(static_cast<const char *>(rows) + first * row_bytes, row_bytes,
                           std::min(TURNED_TOKENS, tokens - first), to + group * size);
    });
    return to;
}

// The tokens as floats, rounded, or turned: in the caller's memory where they are ready as they are.
Tokens ready(const Kernels &kernels, const gf_term &term, int place, int64_t tokens, int kind) {
    const int64_t columns = term.weight.columns, stride = padded(columns), row_bytes = columns * bytes_of(kind);
    const char *x = static_cast<const char *>(term.x);
    const bool unit = takes_unit(kernels, term.weight, tokens, kind);
    if (unit && !rounds(term.weight, kind))
        return for_unit({turned(kernels, x, row_bytes, tokens, TURNED, place), nullptr, tokens});
    if (!rounds(term.weight, kind)) {
        if (tokens > FEW_TOKENS && term.weight.kind != GF_I4)
            return packed(kernels, x, columns, place, tokens, kind);
        if (kind == GF_F32 && stride == columns)
            return {reinterpret_cast<const float *>(x), nullptr, nullptr, nullptr, stride, tokens};
        auto *floats = static_cast<float *>(shared_scratch(INPUTS, place, static_cast<size_t>(4 * tokens * stride)));
        in_parallel(tokens, [&](int64_t token, int) {
            kernels.widen(x + token * row_bytes, kind, columns, floats + token * stride);
            std::fill(floats + token * stride + columns, floats + (token + 1) * stride, 0.0f);
        });
        return {floats, nullptr, nullptr, nullptr, stride, tokens};
    }
    const int64_t units = columns / 64;
    const size_t size = static_cast<size_t>(tokens * (columns + 12 * units));
    auto *rounded = static_cast<int8_t *>(shared_scratch(INPUTS, place, size));
    auto *scales = reinterpret_cast<float *>(rounded + tokens * columns);
    float *corrections = scales + tokens * units;
    reserve(SUMS, static_cast<size_t>(4 * stride));
    in_parallel(tokens, [&](int64_t token, int thread) {
        auto *floats = static_cast<float *>(scratch(thread, SUMS));
        kernels.widen(x + token * row_bytes, kind, columns, floats);
        kernels.round(floats, columns, rounded + token * columns, scales + token * units,
                      corrections + 2 * token * units);
    });
    if (unit)
        return for_unit({turned(kernels, rounded, columns, tokens, TURNED, place),
                         turned(kernels, scales, 4 * units, tokens, TURNED_SCALES, place), tokens});
    return {nullptr, rounded, scales, corrections, stride, tokens};
}

Tokens some(const Tokens &all, int64_t first, int64_t count, int64_t columns) {
    if (all.floats)
        return {all.floats + first * all.stride, nullptr, nullptr, nullptr, all.stride, count};
    const int64_t units = columns / 64, group = first / TURNED_TOKENS;
    const char *numbers = all.turned.numbers, *scales = all.turned.scales;
    if (scales)
        return for_unit({numbers + group * turned_bytes(columns), scales + group * turned_bytes(4 * units), count});
    if (numbers)
        return for_unit({numbers + group * turned_bytes(2 * columns), nullptr, count});
    return {nullptr, all.rounded + first * columns, all.scales + first * units, all.corrections + 2 * first * units,
            all.stride, count};
}

// The sums of one term, panel by panel and some columns at a time: a panel of weights stays in the cache nearest
// to the processor while all tokens pass by.
void add_panels(const Kernels &kernels, const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add,
                int thread) {
    auto *panel = static_cast<float *>(scratch(thread, WEIGHTS));
    for (int64_t row = 0; row < rows.count; row += kernels.panel_rows) {
        Rows some = rows;
        some.data += row * rows.row_bytes;
        some.scales = rows.scales ? rows.scales + 4 * row : nullptr;
        some.count = std::min(kernels.panel_rows, rows.count - row);
        for (int64_t column = 0; column < rows.columns; column += COLUMNS_AT_ONCE) {
            const int64_t columns = std::min(COLUMNS_AT_ONCE, rows.columns - column);
            kernels.pack_rows(some, column, columns, panel);
            for (int64_t token = 0; token < tokens.count; token += kernels.panel_tokens)
                kernels.panel_products(panel, tokens.floats + token * rows.columns + column * kernels.panel_tokens,
                                       columns, sums + token * stride + row, stride, add || column);
        }
    }
}

// The sums of one term of int4 with tokens that are not rounded.
void add_widened(const Kernels &kernels, const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add,
                 int thread) {
    auto *floats = static_cast<float *>(scratch(thread, WEIGHTS));
    for (int64_t row = 0; row < rows.count; row += WIDENED_ROWS) {
        Rows some = rows;
        some.data += row * rows.row_bytes;
        some.scales += 2 * row;
        some.count = std::min(WIDENED_ROWS, rows.count - row);
        kernels.widen_int4(some, floats, rows.columns);
        some.data = reinterpret_cast<const char *>(floats);
        some.row_bytes = 4 * rows.columns;
        some.kind = GF_F32;
        kernels.products(some, tokens, sums + row, stride, add, false);
    }
}

// One output's rows from `first` on, for tokens from `start` on.
void compute(const Product &product, int number, int64_t first, int64_t start, int64_t tokens, int thread) {
    const Kernels &kernels = *product.kernels;
    const gf_output &output = product.outputs[number];
    const int64_t all_rows = output.terms[0].weight.rows;
    const int64_t count = std::min(product.block_rows, all_rows - first);
    auto *sums = static_cast<float *>(scratch(thread, SUMS));
    for (int i = 0; i < output.num_terms; i++) {
        const gf_matrix &weight = output.terms[i].weight;
        Rows rows = rows_of(weight, first, count);
        Tokens inputs = some(product.inputs[2 * number + i], start, tokens, weight.columns);
        if (inputs.turned.numbers)
            kernels.unit->products(rows, inputs.turned, sums, product.block_rows, i > 0, scratch(thread, WEIGHTS));
        else if (weight.kind == GF_I4 && inputs.floats)
            add_widened(kernels, rows, inputs, sums, product.block_rows, i > 0, thread);
        else if (product.many && weight.kind != GF_I4)
            add_panels(kernels, rows, inputs, sums, product.block_rows, i > 0, thread);
        else
            kernels.products(rows, inputs, sums, product.block_rows, i > 0, !product.many);
    }
    const int64_t size = bytes_of(product.kind);
    for (int64_t token = 0; token < tokens; token++) {
        char *y = static_cast<char *>(output.y) + ((start + token) * all_rows + first) * size;
        kernels.finish(sums + token * product.block_rows, output.bias, first, count, output.activation, product.kind, y);
    }
}

int64_t block_rows(const Kernels &kernels, const gf_output *outputs, int num_outputs, bool many) {
    if (many && !kernels.unit)
        return ROWS_AT_ONCE;
    int64_t rows = 0;
    for (int i = 0; i < num_outputs; i++)
        rows += outputs[i].terms[0].weight.rows;
    const int64_t wanted = rows / (num_threads() * BLOCKS_A_THREAD);
    if (many)
        return std::clamp(wanted / ROWS_AT_ONCE * ROWS_AT_ONCE, ROWS_AT_ONCE, MOST_UNIT_ROWS);
    return std::clamp(wanted / 48 * 48, int64_t{48}, int64_t{192});
}

// Makes the inputs of all terms ready, one that several read only once. Returns the most columns.
int64_t make_ready(Product &product, int num_outputs, int64_t tokens) {
    int64_t columns = 0;
    const gf_term *terms[2 * MOST_OUTPUTS] = {};
    for (int i = 0; i < 2 * num_outputs; i++) {
        if (i % 2 == product.outputs[i / 2].num_terms)
            continue;
        const gf_term *term = terms[i] = &product.outputs[i / 2].terms[i % 2];
        columns = std::max(columns, term->weight.columns);
        int same = 0;
        while (same < i && !(terms[same] && terms[same]->x == term->x &&
                             terms[same]->weight.columns == term->weight.columns &&
                             terms[same]->weight.kind == term->weight.kind))
            same++;
        product.inputs[i] = same < i ? product.inputs[same] : ready(*product.kernels, *term, i, tokens, product.kind);
    }
    return columns;
}

void multiply(const gf_output *outputs, int num_outputs, int64_t tokens, int kind) {
    Product product{chosen_kernels(), outputs, {}, kind, 0, tokens > FEW_TOKENS};
    const int64_t columns = make_ready(product, num_outputs, tokens);
    product.block_rows = block_rows(*product.kernels, outputs, num_outputs, product.many);
    const int64_t tokens_at_once = std::min(tokens, TOKENS_AT_ONCE);
    reserve(SUMS, static_cast<size_t>(4 * (tokens_at_once + MOST_PANEL_TOKENS) * product.block_rows));
    reserve(WEIGHTS, static_cast<size_t>(4 * std::max(MOST_PANEL_ROWS * COLUMNS_AT_ONCE, WIDENED_ROWS * columns)));
    if (product.many && product.kernels->unit)
        reserve(WEIGHTS, product.kernels->unit->memory_bytes(product.block_rows, tokens_at_once));
    int64_t blocks = 0;
    for (int i = 0; i < num_outputs; i++)
        blocks += product.blocks(i);
    for (int64_t start = 0; start < tokens; start += tokens_at_once) {
        const int64_t count = std::min(tokens_at_once, tokens - start);
        in_parallel(blocks, [&](int64_t block, int thread) {
            int output = 0;
            for (; block >= product.blocks(output); output++)
                block -= product.blocks(output);
            compute(product, output, block * product.block_rows, start, count, thread);
        });
    }
}

} // namespace
} // namespace gyrfalcon

extern "C" int gf_products(const gf_output *outputs, int num_outputs, int64_t tokens, int kind) {
    return gyrfalcon::one_at_a_time([&] { gyrfalcon::multiply(outputs, num_outputs, tokens, kind); });
}
