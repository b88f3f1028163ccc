#include "inputs.h"
#include "threads.h"

#include <algorithm>
#include <string.h>

namespace gyrfalcon {
namespace {

bool by_unit(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    const bool by_bytes = weight_kind == GF_I8 && int8_activations(kernels);
    return kernels.unit && !by_bytes && kernels.unit->multiplies(weight_kind, tokens, kind);
}

// The form of tokens for a weight: int8 weights take int8 tokens or, by the setting, int16 ones, whose error is negligible
// beside bfloat16's own; int4 weights take int8 ones. In float32 tokens are not quantised.
Form form_of(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    const bool many = tokens > FEW_TOKENS;
    if (by_unit(kernels, weight_kind, tokens, kind))
        return weight_kind == GF_I4 ? INT8_GROUPS : weight_kind == GF_I8 ? SPLIT_INT16 : GATHERED;
    if (weight_kind == GF_I4 && kind == GF_F32)
        return FLOATS;
    if (kind != GF_F32 && weight_kind == GF_I8 && int8_activations(kernels))
        return tokens > INT8_BYTE_TOKENS ? INT8_TILES : INT8;
    if (kind != GF_F32 && weight_kind == GF_I8)
        return tokens > INT8_TOKENS ? INT16_TILES : INT16;
    if (weight_kind == GF_I4)
        return tokens > (kernels.pack_int8_bytes ? INT4_BYTE_TOKENS : INT4_TOKENS) ? INT8_TILES : INT8;
    if (kind == GF_BF16 && weight_kind == GF_BF16 && kernels.pack_bf16_rows)
        return tokens > BF16_TOKENS ? BF16_TILES : BF16;
    return many ? FLOAT_TILES : weight_kind == GF_BF16 ? DEINTERLEAVED : FLOATS;
}

// The tokens to be packed.
struct Source {
    const Kernels *kernels;
    const char *x;
    int64_t columns;
    int64_t tokens;
    int kind;
    int64_t tile_tokens;
    int place; // among the inputs of a call
    int64_t room;   // floats of a token, padded with zeros
    int weight_kind;
    int64_t halves; // of 64 columns of int8, an offset each

    int64_t row_bytes() const { return columns * bytes_of(kind); }
    void widen(int64_t token, float *floats) const {
        kernels->widen(x + token * row_bytes(), kind, columns, floats);
        std::fill(floats + columns, floats + room, 0.0f);
    }
    template <class Number> Number *memory(SharedPurpose purpose, int64_t count) const {
        return static_cast<Number *>(shared_scratch(purpose, place, static_cast<size_t>(count) * sizeof(Number)));
    }
    // each(token, its floats, thread)
    template <class Each> void for_tokens(const Each &each) const {
        reserve(SUMS, static_cast<size_t>(room) * sizeof(float));
        in_parallel(tokens, [&](int64_t token, int thread) {
            auto *floats = static_cast<float *>(scratch(thread, SUMS));
            widen(token, floats);
            each(token, floats, thread);
        });
    }
    // The same tile by tile. each(token, floats, its bytes, thread) makes a token, of which `bytes` are packed, some of each
    // token at a time. Returns them as [blocks of `block_bytes`, tiles, words of 4 bytes, tile_tokens].
    template <class Each>
    char *pack_tiles(int64_t bytes, int64_t block_bytes, int64_t token_bytes, const Each &each) const {
        auto *to = memory<char>(INPUTS, stride() * ((bytes + 3) / 4 * 4));
        reserve(SUMS, static_cast<size_t>(room) * sizeof(float));
        reserve(KEYS, static_cast<size_t>(tile_tokens * token_bytes));
        in_parallel(tiles(), [&](int64_t tile, int thread) {
            auto *floats = static_cast<float *>(scratch(thread, SUMS));
            auto *own = static_cast<char *>(scratch(thread, KEYS));
            for (int64_t i = 0, token = tile * tile_tokens; i < tokens_in(tile); i++, token++) {
                widen(token, floats);
                each(token, floats, own + i * token_bytes, thread);
            }
            pack_tile(tile, own, token_bytes, bytes, block_bytes, to);
        });
        return to;
    }
    void pack_tile(int64_t tile, const char *from, int64_t apart, int64_t bytes, int64_t block_bytes, char *to) const {
        for (int64_t first = 0; first < bytes; first += block_bytes) {
            const int64_t count = std::min(block_bytes, bytes - first), words = (count + 3) / 4;
            kernels->pack_tokens(from + first, apart, tokens_in(tile), count, tile_tokens,
                                 to + first * stride() + tile * tile_tokens * words * 4);
        }
    }
    int64_t tokens_in(int64_t tile) const { return std::min(tile_tokens, tokens - tile * tile_tokens); }
    int64_t stride() const { return tiles() * tile_tokens; }
    int64_t tiles() const { return (tokens + tile_tokens - 1) / tile_tokens; }
};

Tokens as_floats(const Source &source, bool deinterleaved) {
    Tokens made;
    made.stride = source.room;
    if (!deinterleaved && source.kind == GF_F32 && made.stride == source.columns) {
        made.floats = reinterpret_cast<const float *>(source.x);
        return made;
    }
    auto *to = source.memory<float>(INPUTS, source.tokens * made.stride);
    in_parallel(source.tokens, [&](int64_t token, int) {
        source.widen(token, to + token * made.stride);
        if (deinterleaved)
            source.kernels->deinterleave(to + token * made.stride, source.columns);
    });
    made.floats = to;
    return made;
}

Tokens as_float_tiles(const Source &source) {
    const int64_t bytes = source.columns * static_cast<int64_t>(sizeof(float));
    Tokens made;
    made.stride = source.stride();
    made.floats = reinterpret_cast<const float *>(source.pack_tiles(
        bytes, FLOAT_COLUMNS * static_cast<int64_t>(sizeof(float)), bytes,
        [&](int64_t, const float *floats, char *to, int) { memcpy(to, floats, static_cast<size_t>(bytes)); }));
    return made;
}

Tokens as_bf16(const Source &source) {
    const int64_t blocks = (source.columns + BF16_COLUMNS - 1) / BF16_COLUMNS;
    auto *to = source.memory<uint16_t>(INPUTS, blocks * source.tokens * BF16_COLUMNS);
    in_parallel(source.tokens, [&](int64_t token, int) {
        const char *from = source.x + token * source.row_bytes();
        for (int64_t column = 0; column < source.columns; column += BF16_COLUMNS) {
            const int64_t columns = std::min(BF16_COLUMNS, source.columns - column);
            uint16_t *place = to + column * source.tokens + token * BF16_COLUMNS;
            memcpy(place, from + 2 * column, static_cast<size_t>(2 * columns));
            std::fill(place + columns, place + padded_int16(columns), uint16_t{0});
        }
    });
    Tokens made;
    made.halves = to;
    return made;
}

Tokens as_bf16_tiles(const Source &source) {
    const int64_t bytes = source.row_bytes();
    auto *to = source.memory<char>(INPUTS, source.stride() * (bytes + 2));
    in_parallel(source.tiles(), [&](int64_t tile, int) {
        source.pack_tile(tile, source.x + tile * source.tile_tokens * bytes, bytes, bytes, 2 * INT16_COLUMNS, to);
    });
    Tokens made;
    made.halves = reinterpret_cast<const uint16_t *>(to);
    made.stride = source.stride();
    return made;
}

Tokens as_int16(const Source &source) {
    const int64_t stride = padded_int16(source.columns), blocks = int16_blocks(source.columns);
    auto *to = source.memory<int16_t>(INPUTS, source.tokens * stride);
    auto *scales = source.memory<float>(SCALES, source.tokens * blocks);
    source.for_tokens([&](int64_t token, const float *floats, int) {
        source.kernels->quantise_int16(floats, source.columns, to + token * stride, scales + token * blocks);
    });
    Tokens made;
    made.shorts = to;
    made.scales = scales;
    made.stride = stride;
    return made;
}

Tokens as_int16_tiles(const Source &source) {
    const int64_t stride = source.stride(), blocks = int16_blocks(source.columns);
    const int64_t columns = (source.columns + 3) / 4 * 4, size = static_cast<int64_t>(sizeof(int16_t));
    auto *scales = source.memory<float>(SCALES, stride * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * blocks);
    reserve(VALUES, static_cast<size_t>(blocks) * sizeof(float));
    const auto quantise = [&](int64_t token, const float *floats, char *to, int thread) {
        auto *shorts = reinterpret_cast<int16_t *>(to);
        auto *own_scales = static_cast<float *>(scratch(thread, VALUES));
        source.kernels->quantise_int16(floats, source.columns, shorts, own_scales);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * INT16_COLUMNS, count = std::min(INT16_COLUMNS, columns - first);
            scales[block * stride + token] = own_scales[block];
            offsets[block * stride + token] = source.kernels->winograd_offset(shorts + first, count);
        }
    };
    Tokens made;
    made.shorts = reinterpret_cast<const int16_t *>(source.pack_tiles(
        columns * size, INT16_COLUMNS * size, padded_int16(source.columns) * size, quantise));
    made.scales = scales;
    made.offsets = offsets;
    made.stride = stride;
    return made;
}

// What weights are stored above their value, so that they are unsigned: sums start from as much less.
constexpr int32_t INT4_ZERO_POINT = 8, INT8_ZERO_POINT = 128;

// Scales and offsets of an int8 token, before they are packed.
struct Quantisation {
    float *scales;
    int32_t *offsets; // of 64 columns, or of 32

    static size_t memory_bytes(int64_t blocks) { return static_cast<size_t>(blocks) * (4 + 8); }
    Quantisation(void *memory, int64_t blocks)
        : scales(static_cast<float *>(memory)), offsets(reinterpret_cast<int32_t *>(scales + blocks)) {}

    void quantise(const Source &source, const float *floats, char *to) const {
        const int32_t zero_point = source.weight_kind == GF_I4 ? INT4_ZERO_POINT : INT8_ZERO_POINT;
        const int64_t blocks = source.room / 64;
        source.kernels->quantise_int8(floats, blocks, reinterpret_cast<int8_t *>(to), scales, offsets);
        for (int64_t i = 0; i < blocks * source.halves; i++)
            offsets[i] = -zero_point * (source.halves == 1 ? offsets[2 * i] + offsets[2 * i + 1] : offsets[i]);
    }
};

// Tokens lie an odd number of cache lines apart: several of them are read together, and would fall into the same sets.
constexpr int64_t odd_lines(int64_t blocks) { return 64 * (blocks | 1); }

Tokens as_int8(const Source &source) {
    const int64_t blocks = source.room / 64;
    Tokens made;
    made.stride = odd_lines(blocks);
    made.offsets_each = blocks * source.halves;
    auto *to = source.memory<char>(INPUTS, source.tokens * made.stride);
    auto *scales = source.memory<float>(SCALES, source.tokens * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, source.tokens * made.offsets_each);
    reserve(VALUES, Quantisation::memory_bytes(blocks));
    source.for_tokens([&](int64_t token, const float *floats, int thread) {
        const Quantisation own(scratch(thread, VALUES), blocks);
        own.quantise(source, floats, to + token * made.stride);
        std::copy(own.scales, own.scales + blocks, scales + token * blocks);
        std::copy(own.offsets, own.offsets + made.offsets_each, offsets + token * made.offsets_each);
    });
    made.bytes = reinterpret_cast<const int8_t *>(to);
    made.scales = scales;
    made.offsets = offsets;
    return made;
}

Tokens as_int8_tiles(const Source &source) {
    const int64_t stride = source.stride(), blocks = source.room / 64;
    const int64_t size = source.tile_tokens, offsets_each = blocks * source.halves;
    auto *scales = source.memory<float>(SCALES, stride * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * offsets_each);
    reserve(VALUES, Quantisation::memory_bytes(blocks));
    const auto quantise = [&](int64_t token, const float *floats, char *to, int thread) {
        const Quantisation own(scratch(thread, VALUES), blocks);
        own.quantise(source, floats, to);
        const int64_t tile = token / size, i = token % size;
        for (int64_t block = 0; block < blocks; block++)
            scales[(tile * blocks + block) * size + i] = own.scales[block];
        for (int64_t part = 0; part < offsets_each; part++)
            offsets[(tile * offsets_each + part) * size + i] = own.offsets[part];
    };
    Tokens made;
    made.bytes = reinterpret_cast<const int8_t *>(source.pack_tiles(source.room, INT16_COLUMNS, source.room, quantise));
    made.scales = scales;
    made.offsets = offsets;
    made.stride = stride;
    made.offsets_each = offsets_each;
    return made;
}

// each(block, group) for all blocks of steps of all groups: of few groups, too, every thread gets some.
template <class Each> void for_unit_blocks(int64_t steps, int64_t groups, const Each &each) {
    const int64_t blocks = (steps + UNIT_STEPS - 1) / UNIT_STEPS;
    in_parallel(blocks * groups, [&](int64_t part, int) { each(part / groups, part % groups); });
}

Tokens as_gathered(const Source &source) {
    const int64_t groups = (source.tokens + UNIT_SIDE - 1) / UNIT_SIDE;
    const int64_t row_bytes = source.row_bytes(), steps = unit_steps(row_bytes);
    auto *to = source.memory<char>(TILES, groups * steps * UNIT_STEP_BYTES);
    for_unit_blocks(steps, groups, [&](int64_t block, int64_t group) {
        const int64_t first = group * UNIT_SIDE, count = std::min(UNIT_SIDE, source.tokens - first);
        source.kernels->unit->gather(source.x + first * row_bytes, row_bytes, count, block, group, groups, to);
    });
    Tokens made;
    made.tiles = to;
    made.stride = groups;
    return made;
}

// Scales [tokens, blocks] in the order of a matrix unit: [groups of UNIT_TOKENS, blocks, UNIT_TOKENS].
const float *in_groups(const Source &source, const float *scales, int64_t blocks) {
    const int64_t groups = (source.tokens + UNIT_SIDE - 1) / UNIT_SIDE * (UNIT_SIDE / UNIT_TOKENS);
    auto *to = source.memory<float>(TILE_SCALES, groups * blocks * UNIT_TOKENS);
    in_parallel(groups, [&](int64_t group, int) {
        for (int64_t i = 0; i < UNIT_TOKENS; i++) {
            const int64_t token = std::min(group * UNIT_TOKENS + i, source.tokens - 1); // extra ones are unused
            for (int64_t block = 0; block < blocks; block++)
                to[(group * blocks + block) * UNIT_TOKENS + i] = scales[token * blocks + block];
        }
    });
    return to;
}

Tokens as_int8_groups(const Source &source) {
    const int64_t blocks = source.room / 64, room = (source.tokens + UNIT_SIDE - 1) / UNIT_SIDE * UNIT_SIDE;
    Tokens made;
    made.stride = odd_lines(blocks);
    auto *to = source.memory<int8_t>(INPUTS, room * made.stride);
    auto *scales = source.memory<float>(SCALES, source.tokens * blocks);
    source.for_tokens([&](int64_t token, const float *floats, int) {
        source.kernels->quantise_int8(floats, blocks, to + token * made.stride, scales + token * blocks, nullptr);
    });
    made.bytes = to;
    made.scales = in_groups(source, scales, blocks);
    return made;
}

Tokens as_split_int16(const Source &source) {
    const Tokens shorts = as_int16(source);
    const int64_t groups = (source.tokens + UNIT_TOKENS - 1) / UNIT_TOKENS;
    const int64_t steps = unit_steps(source.columns);
    auto *to = source.memory<char>(TILES, groups * steps * UNIT_STEP_BYTES);
    for_unit_blocks(steps, groups, [&](int64_t block, int64_t group) {
        const int64_t first = group * UNIT_TOKENS, count = std::min(UNIT_TOKENS, source.tokens - first);
        source.kernels->unit->split(shorts.shorts + first * shorts.stride, shorts.stride, count, block, group, groups,
                                    to);
    });
    Tokens made;
    made.tiles = to;
    made.stride = groups;
    made.scales = in_groups(source, shorts.scales, int16_blocks(source.columns));
    return made;
}

} // namespace

Tokens prepack(const Kernels &kernels, const gf_term &term, int place, int64_t tokens, int kind) {
    const gf_matrix &weight = term.weight;
    const Form form = form_of(kernels, weight.kind, tokens, kind);
    const int64_t tile_tokens = tokens_in_tile(kernels, form);
    const bool bytes = form == INT8 || form == INT8_TILES || form == INT8_GROUPS;
    const Source source{&kernels,
                        static_cast<const char *>(term.x),
                        weight.columns,
                        tokens,
                        kind,
                        tile_tokens,
                        place,
                        bytes ? 64 * int8_blocks(weight.columns) : padded(weight.columns),
                        weight.kind,
                        weight.kind == GF_I4 && weight.group == 32 ? 2 : 1};
    Tokens made = form == FLOATS          ? as_floats(source, false)
                  : form == DEINTERLEAVED ? as_floats(source, true)
                  : form == FLOAT_TILES   ? as_float_tiles(source)
                  : form == BF16          ? as_bf16(source)
                  : form == BF16_TILES    ? as_bf16_tiles(source)
                  : form == INT16         ? as_int16(source)
                  : form == INT16_TILES   ? as_int16_tiles(source)
                  : form == INT8          ? as_int8(source)
                  : form == INT8_TILES    ? as_int8_tiles(source)
                  : form == SPLIT_INT16   ? as_split_int16(source)
                  : form == INT8_GROUPS   ? as_int8_groups(source)
                                          : as_gathered(source);
    made.form = form;
    made.by_unit = by_unit(kernels, weight.kind, tokens, kind);
    made.count = tokens;
    return made;
}

Arithmetic arithmetic_of(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    if (by_unit(kernels, weight_kind, tokens, kind))
        return weight_kind == GF_BF16 ? UNIT_BF16 : UNIT_INT8;
    switch (form_of(kernels, weight_kind, tokens, kind)) {
    case BF16:
    case BF16_TILES:
        return OF_BF16;
    case INT16:
    case INT16_TILES:
        return OF_INT16;
    case INT8:
    case INT8_TILES:
        return OF_INT8;
    default:
        return OF_FLOATS;
    }
}

Tokens slice(const Tokens &all, int64_t first, int64_t count, int64_t columns) {
    Tokens part = all;
    part.count = count;
    const int64_t blocks = int8_blocks(columns);
    switch (all.form) {
    case FLOATS:
    case DEINTERLEAVED:
        part.floats += first * all.stride;
        break;
    case BF16: // few: never a part of them
    case FLOAT_TILES:
    case BF16_TILES:
    case INT16_TILES:
    case INT8_TILES:
        part.first = first;
        break;
    case INT16:
        part.shorts += first * all.stride;
        part.scales += first * int16_blocks(columns);
        break;
    case INT8_GROUPS:
        part.bytes += first * all.stride;
        part.scales += first * blocks;
        break;
    case INT8:
        part.bytes += first * all.stride;
        part.scales += first * blocks;
        part.offsets += first * all.offsets_each;
        break;
    case GATHERED:
        part.first = first;
        break;
    case SPLIT_INT16:
        part.first = first;
        part.scales += first * int16_blocks(columns);
    }
    return part;
}

} // namespace gyrfalcon
