#include "inputs.h"
#include "pool.h"

#include <algorithm>
#include <string.h>

namespace gyrfalcon {
namespace {

// As what tokens are multiplied with a weight. int8's are rounded to 16 bits, which costs nothing beside bfloat16's own
// rounding; int4's to 8. None where float32 was asked for.
Form form_of(const Kernels &kernels, const gf_matrix &weight, int64_t tokens, int kind) {
    const bool many = tokens > FEW_TOKENS;
    if (many && kernels.unit && kernels.unit->multiplies(weight.kind, kind))
        return TURNED;
    if (weight.kind == GF_I4 && kind == GF_F32)
        return FLOATS;
    if (kind != GF_F32 && weight.kind == GF_I8)
        return tokens > INT8_TOKENS ? SHORT_PANELS : SHORTS;
    if (weight.kind == GF_I4)
        return tokens > INT4_TOKENS ? BYTE_PANELS : BYTES;
    return many ? FLOAT_PANELS : weight.kind == GF_BF16 ? PARTED : FLOATS;
}

// Tokens on their way to a form.
struct Source {
    const Kernels *kernels;
    const char *x;
    int64_t columns;
    int64_t tokens;
    int kind;
    int64_t panel_tokens;
    int place; // among the inputs of a call

    int64_t row_bytes() const { return columns * bytes_of(kind); }
    // One as floats, with zeros after them.
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
    // The same panel by panel; tokens that do not exist are zeros: each(panel, token in it, floats, thread)
    template <class Each> void for_panels(const Each &each) const {
        reserve(SUMS, static_cast<size_t>(padded(columns)) * sizeof(float));
        in_parallel(panels(), [&](int64_t panel, int thread) {
            auto *floats = static_cast<float *>(scratch(thread, SUMS));
            for (int64_t i = 0, token = panel * panel_tokens; i < panel_tokens; i++, token++) {
                if (token < tokens)
                    widen(token, floats);
                else
                    std::fill(floats, floats + padded(columns), 0.0f);
                each(panel, i, floats, thread);
            }
        });
    }
    int64_t panels() const { return (tokens + panel_tokens - 1) / panel_tokens; }
};

Tokens as_floats(const Source &source, bool parted) {
    Tokens made;
    made.stride = padded(source.columns);
    if (!parted && source.kind == GF_F32 && made.stride == source.columns) {
        made.floats = reinterpret_cast<const float *>(source.x);
        return made;
    }
    auto *to = source.memory<float>(INPUTS, source.tokens * made.stride);
    in_parallel(source.tokens, [&](int64_t token, int) {
        source.widen(token, to + token * made.stride);
        if (parted)
            source.kernels->part(to + token * made.stride, source.columns);
    });
    made.floats = to;
    return made;
}

Tokens as_float_panels(const Source &source) {
    const int64_t size = source.panel_tokens, columns = source.columns;
    auto *to = source.memory<float>(INPUTS, source.panels() * size * columns);
    Tokens made;
    made.floats = to;
    made.stride = source.panels() * size;
    source.for_panels([&](int64_t panel, int64_t i, const float *floats, int) {
        for (int64_t first = 0; first < columns; first += FLOAT_COLUMNS) {
            const int64_t count = std::min(FLOAT_COLUMNS, columns - first);
            float *block = to + first * made.stride + panel * size * count;
            for (int64_t column = 0; column < count; column++)
                block[column * size + i] = floats[first + column];
        }
    });
    return made;
}

Tokens as_shorts(const Source &source) {
    const int64_t stride = padded_shorts(source.columns), blocks = short_blocks(source.columns);
    auto *to = source.memory<int16_t>(INPUTS, source.tokens * stride);
    auto *scales = source.memory<float>(SCALES, source.tokens * blocks);
    source.for_tokens([&](int64_t token, const float *floats, int) {
        source.kernels->round_to_shorts(floats, source.columns, to + token * stride, scales + token * blocks);
    });
    Tokens made;
    made.shorts = to;
    made.scales = scales;
    made.stride = stride;
    return made;
}

Tokens as_short_panels(const Source &source) {
    const int64_t size = source.panel_tokens, stride = source.panels() * size;
    const int64_t blocks = short_blocks(source.columns), room = padded_shorts(source.columns);
    const int64_t columns = (source.columns + 3) / 4 * 4;
    auto *to = source.memory<int16_t>(INPUTS, stride * columns);
    auto *scales = source.memory<float>(SCALES, stride * blocks);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * blocks);
    reserve(KEYS, static_cast<size_t>(room) * sizeof(int16_t) + static_cast<size_t>(blocks) * sizeof(float));
    source.for_panels([&](int64_t panel, int64_t i, const float *floats, int thread) {
        auto *shorts = static_cast<int16_t *>(scratch(thread, KEYS));
        auto *own_scales = reinterpret_cast<float *>(shorts + room);
        source.kernels->round_to_shorts(floats, source.columns, shorts, own_scales);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * SHORT_COLUMNS, count = std::min(SHORT_COLUMNS, columns - first);
            const int64_t place = block * stride + panel * size + i;
            scales[place] = own_scales[block];
            offsets[place] = source.kernels->short_offset(shorts + first, count);
            int16_t *own = to + first * stride + panel * size * count + 2 * i;
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

Tokens as_bytes(const Source &source) {
    const int64_t units = source.columns / 64;
    auto *to = source.memory<int8_t>(INPUTS, source.tokens * source.columns);
    auto *scales = source.memory<float>(SCALES, source.tokens * units);
    auto *offsets = source.memory<int32_t>(OFFSETS, source.tokens * units * 2);
    source.for_tokens([&](int64_t token, const float *floats, int) {
        source.kernels->round(floats, source.columns, to + token * source.columns, scales + token * units,
                              offsets + 2 * token * units);
    });
    Tokens made;
    made.bytes = to;
    made.scales = scales;
    made.offsets = offsets;
    made.stride = source.columns;
    return made;
}

// A token on its way into a panel.
struct RoundedToken {
    int32_t *quads;
    float *scales;
    int32_t *offsets;

    static size_t memory_bytes(int64_t columns) { return static_cast<size_t>(columns + columns / 64 * 12); }
    RoundedToken(void *memory, int64_t columns)
        : quads(static_cast<int32_t *>(memory)), scales(reinterpret_cast<float *>(quads + columns / 4)),
          offsets(reinterpret_cast<int32_t *>(scales + columns / 64)) {}
};

// Places of tokens that do not exist stay as they are: nobody reads them.
Tokens as_byte_panels(const Source &source) {
    const int64_t size = source.panel_tokens, stride = source.panels() * size, columns = source.columns;
    auto *to = source.memory<int32_t>(INPUTS, stride * columns / 4);
    auto *scales = source.memory<float>(SCALES, stride * columns / 64);
    auto *offsets = source.memory<int32_t>(OFFSETS, stride * columns / 32);
    reserve(KEYS, RoundedToken::memory_bytes(columns));
    source.for_tokens([&](int64_t token, const float *floats, int thread) {
        const RoundedToken own(scratch(thread, KEYS), columns);
        source.kernels->round(floats, columns, reinterpret_cast<int8_t *>(own.quads), own.scales, own.offsets);
        for (int64_t first = 0; first < columns; first += SHORT_COLUMNS) {
            const int64_t count = std::min(SHORT_COLUMNS, columns - first) / 4;
            int32_t *panel = to + first / 4 * stride + token / size * size * count + token % size;
            for (int64_t quad = 0; quad < count; quad++)
                panel[quad * size] = own.quads[first / 4 + quad];
        }
        for (int64_t unit = 0; unit < columns / 64; unit++)
            scales[unit * stride + token] = own.scales[unit];
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

// Rows of numbers in groups that a matrix unit reads: [groups, turned_bytes(row_bytes)].
const char *turned(const Source &source, const void *rows, int64_t row_bytes, SharedPurpose purpose) {
    const int64_t groups = (source.tokens + TURNED_TOKENS - 1) / TURNED_TOKENS, size = turned_bytes(row_bytes);
    auto *to = source.memory<char>(purpose, groups * size);
    in_parallel(groups, [&](int64_t group, int) {
        const int64_t first = group * TURNED_TOKENS;
        source.kernels->unit->turn(static_cast<const char *>(rows) + first * row_bytes, row_bytes,
                                   std::min(TURNED_TOKENS, source.tokens - first), to + group * size);
    });
    return to;
}

Tokens as_turned(const Source &source, bool rounded) {
    Tokens made;
    made.turned.count = source.tokens;
    if (!rounded) {
        made.stride = turned_bytes(source.row_bytes());
        made.turned.numbers = turned(source, source.x, source.row_bytes(), TURNED_INPUTS);
        return made;
    }
    const Tokens bytes = as_bytes(source);
    made.stride = turned_bytes(source.columns);
    made.turned.numbers = turned(source, bytes.bytes, source.columns, TURNED_INPUTS);
    made.turned.scales = turned(source, bytes.scales, source.columns / 64 * 4, TURNED_SCALES);
    return made;
}

} // namespace

Tokens ready(const Kernels &kernels, const gf_term &term, int place, int64_t tokens, int kind) {
    const gf_matrix &weight = term.weight;
    const Form form = form_of(kernels, weight, tokens, kind);
    const int64_t panel_tokens = tokens_in_panel(kernels, form);
    const Source source{&kernels, static_cast<const char *>(term.x), weight.columns, tokens, kind, panel_tokens, place};
    Tokens made = form == FLOATS         ? as_floats(source, false)
                  : form == PARTED       ? as_floats(source, true)
                  : form == FLOAT_PANELS ? as_float_panels(source)
                  : form == SHORTS       ? as_shorts(source)
                  : form == SHORT_PANELS ? as_short_panels(source)
                  : form == BYTES        ? as_bytes(source)
                  : form == BYTE_PANELS  ? as_byte_panels(source)
                                         : as_turned(source, weight.kind == GF_I4);
    made.form = form;
    made.count = tokens;
    return made;
}

Tokens some(const Tokens &all, int64_t first, int64_t count, int64_t columns) {
    Tokens part = all;
    part.count = part.turned.count = count;
    const int64_t group = first / TURNED_TOKENS, units = columns / 64;
    switch (all.form) {
    case FLOATS:
    case PARTED:
        part.floats += first * all.stride;
        break;
    case FLOAT_PANELS:
    case SHORT_PANELS:
    case BYTE_PANELS:
        part.first = first;
        break;
    case SHORTS:
        part.shorts += first * all.stride;
        part.scales += first * short_blocks(columns);
        break;
    case BYTES:
        part.bytes += first * all.stride;
        part.scales += first * units;
        part.offsets += 2 * first * units;
        break;
    case TURNED:
        part.turned.numbers += group * all.stride;
        if (part.turned.scales)
            part.turned.scales += group * turned_bytes(4 * units);
    }
    return part;
}

} // namespace gyrfalcon
