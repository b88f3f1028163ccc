#include "inputs.h"
#include "threads.h"

#include <algorithm>
#include <string.h>

namespace gyrfalcon {
namespace {

bool by_unit(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    return kernels.unit && kernels.unit->multiplies(weight_kind, tokens, kind);
}

// The form of tokens for a weight: int8 weights take int16 tokens, whose error is negligible beside bfloat16's own; int4
// weights take int8 ones. In float32 tokens are not quantised.
Form form_of(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    const bool many = tokens > FEW_TOKENS;
    if (by_unit(kernels, weight_kind, tokens, kind))
        return weight_kind == GF_I4 ? INT8_GROUPS : weight_kind == GF_I8 ? SPLIT_INT16 : TRANSPOSED;
    if (weight_kind == GF_I4 && kind == GF_F32)
        return FLOATS;
    if (kind != GF_F32 && weight_kind == GF_I8)
        return tokens > INT8_TOKENS ? INT16_TILES : INT16;
    if (weight_kind == GF_I4)
        return tokens > INT4_TOKENS ? INT8_TILES : INT8;
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

    int64_t row_bytes() const { return columns * bytes_of(kind); }
    // One token as floats, padded with zeros.
    void widen(int64_t token, float *floats) const {
        kernels->widen(x + token * row_bytes(), kind, columns, floats);
        std::fill(floats + columns, floats + padded(columns), 0.0f);
    }
    template <class Number> Number *memory(SharedPurpose purpose, int64_t count) const {
        return static_cast<Number *>(shared_scratch(purpose, place, static_cast<size_t>(count) * sizeof(Number)));
    }
    // each(token, its floats, thread)
    template <class Each> void for_tokens(const Each &each) const {
        reserve(SUMS, static_cast<size_t>(padded(columns)) * sizeof(float));
        in_parallel(tokens, [&](int64_t token, int thread) {
            auto *floats = static_cast<float *>(scratch(thread, SUMS));
            widen(token, floats);
            each(token, floats, thread);
        });
    }
    // The same tile by tile; missing tokens are zeros: each(tile, token in it, floats, thread)
    template <class Each> void for_tiles(const Each &each) const {
        reserve(SUMS, static_cast<size_t>(padded(columns)) * sizeof(float));
        in_parallel(tiles(), [&](int64_t tile, int thread) {
            auto *floats = static_cast<float *>(scratch(thread, SUMS));
            for (int64_t i = 0, token = tile * tile_tokens; i < tile_tokens; i++, token++) {
                if (token < tokens)
                    widen(token, floats);
                else
                    std::fill(floats, floats + padded(columns), 0.0f);
                each(tile, i, floats, thread);
            }
        });
    }
    int64_t tiles() const { return (tokens + tile_tokens - 1) / tile_tokens; }
};

Tokens as_floats(const Source &source, bool deinterleaved) {
    Tokens made;
    made.stride = padded(source.columns);
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
    const int64_t size = source.tile_tokens, columns = source.columns;
    auto *to = source.memory<float>(INPUTS, source.tiles() * size * columns);
    Tokens made;
    made.floats = to;
    made.stride = source.tiles() * size;
    source.for_tiles([&](int64_t tile, int64_t i, const float *floats, int) {
        for (int64_t first = 0; first < columns; first += FLOAT_COLUMNS) {
            const int64_t count = std::min(FLOAT_COLUMNS, columns - first);
            float *block = to + first * made.stride + tile * size * count;
            for (int64_t column = 0; column < count; column++)
                block[column * size + i] = floats[first + column];
        }
    });
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
    const int64_t size = source.tile_tokens, stride = source.tiles() * size;
    const int64_t blocks = int16_blocks(source.columns), room = padded_int16(source.columns);
    const int64_t columns = (source.columns + 3) / 4 * 4;
    auto *to = source.memory<int16_t>(INPUTS, stride * columns);
    auto *scales = source.memory<float>(SCALES, stride * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * blocks);
    reserve(KEYS, static_cast<size_t>(room) * sizeof(int16_t) + static_cast<size_t>(blocks) * sizeof(float));
    source.for_tiles([&](int64_t tile, int64_t i, const float *floats, int thread) {
        auto *shorts = static_cast<int16_t *>(scratch(thread, KEYS));
        auto *own_scales = reinterpret_cast<float *>(shorts + room);
        source.kernels->quantise_int16(floats, source.columns, shorts, own_scales);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * INT16_COLUMNS, count = std::min(INT16_COLUMNS, columns - first);
            const int64_t place = block * stride + tile * size + i;
            scales[place] = own_scales[block];
            offsets[place] = source.kernels->winograd_offset(shorts + first, count);
            int16_t *own = to + first * stride + tile * size * count + 2 * i;
            for (int64_t pair = 0; pair < count; pair += 2)
                memcpy(own + pair * size, shorts + first + pair, 2 * sizeof(int16_t));
        }
    });
    Tokens made;
    made.shorts = to;
    made.scales = scales;
    made.offsets = offsets;
    made.stride = stride;
    return made;
}

Tokens as_int8(const Source &source) {
    const int64_t blocks = source.columns / 64, room = (source.tokens + UNIT_TOKENS - 1) / UNIT_TOKENS * UNIT_TOKENS;
    auto *to = source.memory<int8_t>(INPUTS, room * source.columns);
    auto *scales = source.memory<float>(SCALES, source.tokens * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, source.tokens * blocks * 2);
    source.for_tokens([&](int64_t token, const float *floats, int) {
        source.kernels->quantise_int8(floats, source.columns, to + token * source.columns, scales + token * blocks,
                                      offsets + 2 * token * blocks);
    });
    Tokens made;
    made.bytes = to;
    made.scales = scales;
    made.offsets = offsets;
    made.stride = source.columns;
    return made;
}

// A token before it is packed into a tile.
struct QuantisedToken {
    int32_t *groups;
    float *scales;
    int32_t *offsets;

    static size_t memory_bytes(int64_t columns) { return static_cast<size_t>(columns + columns / 64 * 12); }
    QuantisedToken(void *memory, int64_t columns)
        : groups(static_cast<int32_t *>(memory)), scales(reinterpret_cast<float *>(groups + columns / 4)),
          offsets(reinterpret_cast<int32_t *>(scales + columns / 64)) {}
};

// Places of missing tokens stay uninitialised: their sums are unused.
Tokens as_int8_tiles(const Source &source) {
    const int64_t size = source.tile_tokens, stride = source.tiles() * size, columns = source.columns;
    auto *to = source.memory<int32_t>(INPUTS, stride * columns / 4);
    auto *scales = source.memory<float>(SCALES, stride * columns / 64);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * columns / 32);
    reserve(KEYS, QuantisedToken::memory_bytes(columns));
    source.for_tokens([&](int64_t token, const float *floats, int thread) {
        const QuantisedToken own(scratch(thread, KEYS), columns);
        source.kernels->quantise_int8(floats, columns, reinterpret_cast<int8_t *>(own.groups), own.scales, own.offsets);
        for (int64_t first = 0; first < columns; first += INT16_COLUMNS) {
            const int64_t count = std::min(INT16_COLUMNS, columns - first) / 4;
            int32_t *tile = to + first / 4 * stride + token / size * size * count + token % size;
            for (int64_t four = 0; four < count; four++)
                tile[four * size] = own.groups[first / 4 + four];
        }
        for (int64_t block = 0; block < columns / 64; block++)
            scales[block * stride + token] = own.scales[block];
        for (int64_t half = 0; half < columns / 32; half++)
            offsets[half * stride + token] = own.offsets[half];
    });
    Tokens made;
    made.bytes = reinterpret_cast<const int8_t *>(to);
    made.scales = scales;
    made.offsets = offsets;
    made.stride = stride;
    return made;
}

Tokens as_transposed(const Source &source) {
    const int64_t groups = (source.tokens + TRANSPOSED_TOKENS - 1) / TRANSPOSED_TOKENS;
    auto *to = source.memory<char>(TILES, groups * unit_steps(source.row_bytes()) * UNIT_STEP_BYTES);
    in_parallel(groups, [&](int64_t group, int) {
        const int64_t first = group * TRANSPOSED_TOKENS;
        source.kernels->unit->transpose(source.x + first * source.row_bytes(), source.row_bytes(),
                                        std::min(TRANSPOSED_TOKENS, source.tokens - first), group, groups, to);
    });
    Tokens made;
    made.tiles = to;
    made.stride = groups;
    return made;
}

// Scales [tokens, blocks] in the order of a matrix unit: [groups of UNIT_TOKENS, blocks, UNIT_TOKENS].
const float *in_groups(const Source &source, const float *scales, int64_t blocks) {
    const int64_t groups = (source.tokens + UNIT_TOKENS - 1) / UNIT_TOKENS;
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
    Tokens made = as_int8(source);
    made.scales = in_groups(source, made.scales, source.columns / 64);
    return made;
}

Tokens as_split_int16(const Source &source) {
    const Tokens shorts = as_int16(source);
    const int64_t groups = (source.tokens + UNIT_TOKENS - 1) / UNIT_TOKENS;
    auto *to = source.memory<char>(TILES, groups * unit_steps(source.columns) * UNIT_STEP_BYTES);
    in_parallel(groups, [&](int64_t group, int) {
        const int64_t first = group * UNIT_TOKENS, count = std::min(UNIT_TOKENS, source.tokens - first);
        source.kernels->unit->split(shorts.shorts + first * shorts.stride, shorts.stride, count, group, groups, to);
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
    const Source source{&kernels, static_cast<const char *>(term.x), weight.columns, tokens, kind, tile_tokens, place};
    Tokens made = form == FLOATS          ? as_floats(source, false)
                  : form == DEINTERLEAVED ? as_floats(source, true)
                  : form == FLOAT_TILES   ? as_float_tiles(source)
                  : form == INT16         ? as_int16(source)
                  : form == INT16_TILES   ? as_int16_tiles(source)
                  : form == INT8          ? as_int8(source)
                  : form == INT8_TILES    ? as_int8_tiles(source)
                  : form == SPLIT_INT16   ? as_split_int16(source)
                  : form == INT8_GROUPS   ? as_int8_groups(source)
                                          : as_transposed(source);
    made.form = form;
    made.by_unit = by_unit(kernels, weight.kind, tokens, kind);
    made.count = tokens;
    return made;
}

Arithmetic arithmetic_of(const Kernels &kernels, int weight_kind, int64_t tokens, int kind) {
    if (by_unit(kernels, weight_kind, tokens, kind))
        return weight_kind == GF_BF16 ? UNIT_BF16 : UNIT_INT8;
    switch (form_of(kernels, weight_kind, tokens, kind)) {
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
    const int64_t blocks = columns / 64;
    switch (all.form) {
    case FLOATS:
    case DEINTERLEAVED:
        part.floats += first * all.stride;
        break;
    case FLOAT_TILES:
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
        part.offsets += 2 * first * blocks;
        break;
    case TRANSPOSED:
        part.first = first;
        break;
    case SPLIT_INT16:
        part.first = first;
        part.scales += first * int16_blocks(columns);
    }
    return part;
}

} // namespace gyrfalcon
