// The kernels of one instruction set, on the vectors of vectors.h. Included once by the file of each set, in a
// namespace of its own.

// ---- products: `ROWS` rows with `TOKENS` tokens at a time, all sums in registers ----

struct Sums {
    float *first;
    int64_t stride;
    bool add;
    INLINE_MEMBER void put(int64_t token, int64_t row, float value) const {
        float *place = first + token * stride + row;
        *place = add ? *place + value : value;
    }
    INLINE_MEMBER void put_vector(int64_t token, int64_t row, Floats value) const {
        float *place = first + token * stride + row;
        stored(place, add ? loaded<Floats>(place) + value : value);
    }
};

// Weights as the tokens lie that they are multiplied with: bf16 in even places, then in odd ones, of two vectors.
template <class Kind> struct Lying {
    static constexpr int vectors = 1;
    template <int PART> INLINE Floats at(const char *row, int64_t place) { return Kind::at(row, place); }
};
template <> struct Lying<Bf16> {
    static constexpr int vectors = 2;
    template <int PART> INLINE Floats at(const char *row, int64_t place) {
        Words both = loaded<Words>(row + place * 2);
        return (Floats)(PART ? both & 0xffff0000 : both << 16);
    }
};

// The numbers that a vector of each row is multiplied with, or each of two, and the sums.
template <class Kind, int PART, int ROWS, int TOKENS>
INLINE void float_step(const char *weights, int64_t apart_bytes, int64_t place, const float *x, int64_t stride,
                       Floats (&total)[ROWS][TOKENS]) {
    if constexpr (TOKENS == 1) {
        Floats input = loaded<Floats>(x + PART * WIDTH);
        UNROLL for (int i = 0; i < ROWS; i++)
            total[i][0] += Lying<Kind>::template at<PART>(weights + i * apart_bytes, place) * input;
    } else {
        Floats weight[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++)
            weight[i] = Lying<Kind>::template at<PART>(weights + i * apart_bytes, place);
        UNROLL for (int j = 0; j < TOKENS; j++) {
            Floats input = loaded<Floats>(x + j * stride + PART * WIDTH);
            UNROLL for (int i = 0; i < ROWS; i++) total[i][j] += weight[i] * input;
        }
    }
}

// ROWS rows, each `apart` from the one before.
template <class Kind, int ROWS, int TOKENS, bool STREAMED>
INLINE void float_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                       const Sums &sums) {
    constexpr int VECTORS = Lying<Kind>::vectors * WIDTH;
    constexpr int STEP = STREAMED ? 64 / Kind::size : VECTORS; // a line of memory, or what lies together
    const char *weights = rows.data + row * rows.row_bytes;
    const int64_t apart_bytes = apart * rows.row_bytes;
    const float *x = tokens.floats + token * tokens.stride;
    Floats total[ROWS][TOKENS] = {};
    int64_t column = 0;
    for (; column + STEP <= rows.columns; column += STEP) {
        if (STREAMED && AHEAD)
            UNROLL for (int i = 0; i < ROWS; i++)
                __builtin_prefetch(weights + i * apart_bytes + column * Kind::size + AHEAD, 0, NEAR);
        UNROLL for (int part = 0; part < STEP; part += VECTORS) {
            const int64_t place = column + part;
            float_step<Kind, 0>(weights, apart_bytes, place, x + place, tokens.stride, total);
            if constexpr (Lying<Kind>::vectors == 2)
                float_step<Kind, 1>(weights, apart_bytes, place, x + place, tokens.stride, total);
        }
    }
    if constexpr (STEP > VECTORS)
        for (; column + VECTORS <= rows.columns; column += VECTORS) {
            float_step<Kind, 0>(weights, apart_bytes, column, x + column, tokens.stride, total);
            if constexpr (Lying<Kind>::vectors == 2)
                float_step<Kind, 1>(weights, apart_bytes, column, x + column, tokens.stride, total);
        }
    for (; column < rows.columns; column += WIDTH) {
        int64_t left = rows.columns - column;
        UNROLL for (int i = 0; i < ROWS; i++) {
            const char *one = weights + i * apart_bytes;
            Floats weight = left >= WIDTH ? Kind::at(one, column) : last<Kind>(one, column, left);
            UNROLL for (int j = 0; j < TOKENS; j++)
                total[i][j] += weight * loaded<Floats>(x + j * tokens.stride + column);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        float scale = Kind::size == 1 ? reinterpret_cast<const float *>(rows.scales)[row + i * apart] : 1.0f;
        UNROLL for (int j = 0; j < TOKENS; j++) sums.put(token + j, row + i * apart, sum(total[i][j]) * scale);
    }
}

// Where a row of int4 lies: its first word, and its scale of the first group.
INLINE const char *int4_words(const Rows &rows, int64_t row) {
    return rows.data + row / INT4_ROWS * INT4_ROWS * rows.row_bytes + row % INT4_ROWS * 4;
}
INLINE const char *int4_scales(const Rows &rows, int64_t row) {
    return rows.scales + row / INT4_ROWS * INT4_ROWS * int4_scale_bytes(rows) + row % INT4_ROWS * 2;
}

// value = (nibble - 8) × scale: the sums of WIDTH rows in one unit, of nibbles times numbers, with their scales.
template <bool HALVES>
INLINE Floats int4_scaled(Ints low, Ints high, const char *scales, const int32_t *offsets) {
    if constexpr (HALVES)
        return __builtin_convertvector(low + offsets[0], Floats) * Bf16::at(scales, 0) +
               __builtin_convertvector(high + offsets[1], Floats) * Bf16::at(scales, INT4_ROWS);
    else
        return __builtin_convertvector(low + high + (offsets[0] + offsets[1]), Floats) * Bf16::at(scales, 0);
}

// A tile of INT4_ROWS rows: a word of 4 bytes of each is a vector or several, and each lane is a row's own sum. `ahead`
// is where to fetch from in the meantime, that many bytes away; 0: nowhere.
template <int TOKENS, bool HALVES>
INLINE void int4_tile(const Rows &rows, int64_t row, const Tokens &tokens, int64_t token, int64_t ahead,
                      const Sums &sums) {
    constexpr int PARTS = INT4_ROWS / WIDTH;
    const int64_t units = rows.columns / 64, units_in_group = HALVES ? 1 : rows.group / 64;
    const char *words = int4_words(rows, row), *scales = int4_scales(rows, row);
    Floats total[PARTS][TOKENS] = {};
    for (int64_t unit = 0; unit < units; unit++, words += INT4_UNIT_BYTES) {
        const int8_t *x = tokens.bytes + token * tokens.stride + unit * 64;
        QuadSums low[PARTS][TOKENS] = {}, high[PARTS][TOKENS] = {};
        if (ahead)
            UNROLL for (int line = 0; line < INT4_UNIT_BYTES; line += 64) __builtin_prefetch(words + line + ahead, 0, 2);
        UNROLL for (int word = 0; word < 8; word++) {
            NibbleQuads low_half[PARTS], high_half[PARTS];
            UNROLL for (int i = 0; i < PARTS; i++) {
                Words packed = once(loaded<Words>(words + 4 * (word * INT4_ROWS + i * WIDTH)));
                low_half[i] = (NibbleQuads)packed & 15;
                high_half[i] = (NibbleQuads)(packed >> 4) & 15;
            }
            UNROLL for (int j = 0; j < TOKENS; j++) {
                const int8_t *quad = x + j * tokens.stride + 4 * word;
                ByteQuads x_low = (ByteQuads)same_int(loaded<int32_t>(quad));
                ByteQuads x_high = (ByteQuads)same_int(loaded<int32_t>(quad + 32));
                UNROLL for (int i = 0; i < PARTS; i++) {
                    low[i][j] = with_quads(low[i][j], low_half[i], x_low);
                    high[i][j] = with_quads(high[i][j], high_half[i], x_high);
                }
            }
        }
        const char *own_scales = scales + (HALVES ? 2 * unit : unit / units_in_group) * 2 * INT4_ROWS;
        UNROLL for (int j = 0; j < TOKENS; j++) {
            const int64_t place = (token + j) * units + unit;
            UNROLL for (int i = 0; i < PARTS; i++)
                total[i][j] += tokens.scales[place] * int4_scaled<HALVES>(of_quads(low[i][j]), of_quads(high[i][j]),
                                                                          own_scales + 2 * i * WIDTH,
                                                                          tokens.offsets + 2 * place);
        }
    }
    UNROLL for (int j = 0; j < TOKENS; j++)
        UNROLL for (int i = 0; i < PARTS; i++) sums.put_vector(token + j, row + i * WIDTH, total[i][j]);
}

// `count` bytes of a row, zeros after them.
INLINE Shorts last_shorts(const char *from, int64_t count) {
    ManyBytes bytes = {};
    memcpy(&bytes, from, static_cast<size_t>(count));
    return widened(bytes);
}

// Rows of i8, `apart` from each other.
template <int ROWS, int TOKENS, bool STREAMED>
INLINE void short_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                       const Sums &sums) {
    constexpr int VECTOR = 2 * WIDTH, STEP = STREAMED ? 64 : VECTOR;
    const int64_t blocks = short_blocks(rows.columns);
    const char *weights = rows.data + row * rows.row_bytes;
    const int64_t apart_bytes = apart * rows.row_bytes;
    const int16_t *x = tokens.shorts + token * tokens.stride;
    Floats total[ROWS][TOKENS] = {};
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t end = smaller(rows.columns, (block + 1) * SHORT_COLUMNS);
        int64_t column = block * SHORT_COLUMNS;
        Ints part[ROWS][TOKENS] = {};
        for (; column + STEP <= end; column += STEP) {
            if (STREAMED && AHEAD)
                UNROLL for (int i = 0; i < ROWS; i++)
                    __builtin_prefetch(weights + i * apart_bytes + column + AHEAD, 0, NEAR);
            UNROLL for (int place = 0; place < STEP; place += VECTOR) {
                Shorts weight[ROWS];
                UNROLL for (int i = 0; i < ROWS; i++)
                    weight[i] = widened(loaded<ManyBytes>(weights + i * apart_bytes + column + place));
                UNROLL for (int j = 0; j < TOKENS; j++) {
                    Shorts input = loaded<Shorts>(x + j * tokens.stride + column + place);
                    UNROLL for (int i = 0; i < ROWS; i++) part[i][j] = with_products(part[i][j], weight[i], input);
                }
            }
        }
        for (; column < end; column += VECTOR)
            UNROLL for (int i = 0; i < ROWS; i++) {
                Shorts weight = last_shorts(weights + i * apart_bytes + column, smaller(VECTOR, end - column));
                UNROLL for (int j = 0; j < TOKENS; j++)
                    part[i][j] = with_products(part[i][j], weight, loaded<Shorts>(x + j * tokens.stride + column));
            }
        UNROLL for (int j = 0; j < TOKENS; j++)
            UNROLL for (int i = 0; i < ROWS; i++)
                total[i][j] += __builtin_convertvector(part[i][j], Floats) * tokens.scales[(token + j) * blocks + block];
    }
    const auto *scales = reinterpret_cast<const float *>(rows.scales);
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put(token + j, row + i * apart, sum(total[i][j]) * scales[row + i * apart]);
}

// How a kind of weights is multiplied with TOKENS tokens.
template <class Kind> struct WithFloats {
    static constexpr int tile_rows = TILE_ROWS;
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        float_tile<Kind, ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};
struct WithShorts {
    static constexpr int tile_rows = SHORT_TILE_ROWS;
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        short_tile<ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};

// The tokens in tiles of nearly one size, of TILE_TOKENS at most.
template <class Way, bool STREAMED, int ROWS>
INLINE void all_tokens(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, const Sums &sums) {
    const int64_t tiles = (tokens.count + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t token = tokens.count * tile / tiles, count = tokens.count * (tile + 1) / tiles - token;
        if (count == 1)
            Way::template tile<ROWS, 1, STREAMED>(rows, row, apart, tokens, token, sums);
        else if (count == 2)
            Way::template tile<ROWS, 2, STREAMED>(rows, row, apart, tokens, token, sums);
        else if (count == 3)
            Way::template tile<ROWS, 3, STREAMED>(rows, row, apart, tokens, token, sums);
        else if constexpr (TILE_TOKENS > 3)
            Way::template tile<ROWS, 4, STREAMED>(rows, row, apart, tokens, token, sums);
    }
}

// Whole tiles of ROWS rows; returns how many rows these are. Those that are streamed lie far apart, so that each
// is a stream of its own that goes on where the row ends: the processor fetches ahead of long streams.
template <class Way, bool STREAMED, int ROWS>
INLINE int64_t tiles(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    const int64_t count = rows.count / ROWS, apart = STREAMED ? count : 1;
    for (int64_t tile = 0; tile < count; tile++)
        all_tokens<Way, STREAMED, ROWS>(rows, STREAMED ? tile : tile * ROWS, apart, tokens, sums);
    return count * ROWS;
}

template <class Way, bool STREAMED> void all_rows(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    int64_t row = tokens.count == 1 ? tiles<Way, STREAMED, 8>(rows, tokens, sums)
                                    : tiles<Way, STREAMED, Way::tile_rows>(rows, tokens, sums);
    for (; row < rows.count; row++)
        all_tokens<Way, STREAMED, 1>(rows, row, 1, tokens, sums);
}

// Up to INT4_TOKENS tokens, two at a time: a tile stays in the caches, and with the last of them the next one is fetched.
// With more tokens rows are packed.
template <bool HALVES, bool STREAMED> void int4_rows(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    const int64_t tile_bytes = INT4_ROWS * rows.row_bytes;
    for (int64_t row = 0; row < rows.count; row += INT4_ROWS)
        for (int64_t token = 0; token < tokens.count; token += 2) {
            const int64_t ahead = STREAMED && token + 2 >= tokens.count ? tile_bytes : 0;
            if (token + 2 <= tokens.count)
                int4_tile<2, HALVES>(rows, row, tokens, token, ahead, sums);
            else
                int4_tile<1, HALVES>(rows, row, tokens, token, ahead, sums);
        }
}

template <bool STREAMED> void products_of(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    if (tokens.form == SHORTS)
        return all_rows<WithShorts, STREAMED>(rows, tokens, sums);
    switch (rows.kind) {
    case GF_F32:
        return all_rows<WithFloats<F32>, STREAMED>(rows, tokens, sums);
    case GF_BF16:
        return all_rows<WithFloats<Bf16>, STREAMED>(rows, tokens, sums);
    case GF_F16:
        return all_rows<WithFloats<F16>, STREAMED>(rows, tokens, sums);
    case GF_I8:
        return all_rows<WithFloats<I8>, STREAMED>(rows, tokens, sums);
    default:
        return rows.group == 32 ? int4_rows<true, STREAMED>(rows, tokens, sums)
                                : int4_rows<false, STREAMED>(rows, tokens, sums);
    }
}

void products(const Rows &rows, const Tokens &tokens, float *to, int64_t stride, bool add, bool streamed) {
    Sums sums{to, stride, add};
    streamed ? products_of<true>(rows, tokens, sums) : products_of<false>(rows, tokens, sums);
}

// ---- from and to memory ----

template <class Kind> void widen_as(const char *from, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        stored(to + i, Kind::at(from, i));
    if (i < count) {
        Floats rest = last<Kind>(from, i, count - i);
        memcpy(to + i, &rest, static_cast<size_t>(4 * (count - i)));
    }
}
void widen(const void *from, int kind, int64_t count, float *to) {
    const char *bytes = static_cast<const char *>(from);
    switch (kind) {
    case GF_F32:
        return widen_as<F32>(bytes, count, to);
    case GF_BF16:
        return widen_as<Bf16>(bytes, count, to);
    case GF_F16:
        return widen_as<F16>(bytes, count, to);
    default:
        return widen_as<I8>(bytes, count, to);
    }
}

// Rows of int4 as floats, for activations that are not to be rounded.
void widen_int4(const Rows &rows, float *to, int64_t stride) {
    for (int64_t row = 0; row < rows.count; row++) {
        const auto *words = reinterpret_cast<const uint8_t *>(int4_words(rows, row));
        const char *scales = int4_scales(rows, row);
        for (int64_t column = 0; column < rows.columns; column++) {
            const uint8_t both = words[column / 64 * INT4_UNIT_BYTES + column % 32 / 4 * 4 * INT4_ROWS + column % 4];
            const int value = (column & 32 ? both >> 4 : both & 15) - 8;
            uint16_t scale;
            memcpy(&scale, scales + 2 * INT4_ROWS * (column / rows.group), 2);
            const uint32_t bits = static_cast<uint32_t>(scale) << 16;
            float factor;
            memcpy(&factor, &bits, 4);
            to[row * stride + column] = static_cast<float>(value) * factor;
        }
    }
}

// ---- products with many tokens: a panel of PANEL_ROWS rows, as floats and turned so that a column lies
// together, with PANEL_TOKENS tokens, of which a column lies together, too ----

// WIDTH rows and columns; with WHOLE all of them exist, else zeros stand for the others.
template <class Kind, bool WHOLE>
INLINE void pack_block(const Rows &rows, int64_t row, int64_t column, int64_t left, float *to) {
    Floats block[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i++) {
        const char *from = rows.data + (row + i) * rows.row_bytes;
        const bool exists = WHOLE || row + i < rows.count;
        block[i] = !exists                    ? Floats{}
                   : WHOLE || left >= WIDTH ? Kind::at(from, column)
                                              : last<Kind>(from, column, left);
        if (Kind::size == 1 && exists)
            block[i] *= reinterpret_cast<const float *>(rows.scales)[row + i];
    }
    transpose(block);
    UNROLL for (int i = 0; i < WIDTH; i++) if (WHOLE || i < left) stored(to + i * PANEL_ROWS, block[i]);
}
template <class Kind> void pack_rows_as(const Rows &rows, int64_t first, int64_t columns, float *to) {
    for (int64_t row = 0; row < PANEL_ROWS; row += WIDTH) {
        int64_t column = 0;
        if (row + WIDTH <= rows.count)
            for (; column + WIDTH <= columns; column += WIDTH)
                pack_block<Kind, true>(rows, row, first + column, WIDTH, to + column * PANEL_ROWS + row);
        for (; column < columns; column += WIDTH)
            pack_block<Kind, false>(rows, row, first + column, columns - column, to + column * PANEL_ROWS + row);
    }
}
void pack_rows(const Rows &rows, int64_t first, int64_t columns, float *to) {
    switch (rows.kind) {
    case GF_F32:
        return pack_rows_as<F32>(rows, first, columns, to);
    case GF_BF16:
        return pack_rows_as<Bf16>(rows, first, columns, to);
    case GF_F16:
        return pack_rows_as<F16>(rows, first, columns, to);
    default:
        return pack_rows_as<I8>(rows, first, columns, to);
    }
}

template <int TOKENS>
INLINE void float_panel(const float *panel, const float *tokens, int64_t columns, float *to, int64_t stride, bool add) {
    Floats total[TOKENS][2] = {};
    if (add)
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++) total[i][j] = loaded<Floats>(to + i * stride + j * WIDTH);
    _Pragma("GCC unroll 4") for (int64_t column = 0; column < columns; column++) {
        Floats first = loaded<Floats>(panel + column * PANEL_ROWS);
        Floats second = loaded<Floats>(panel + column * PANEL_ROWS + WIDTH);
        UNROLL for (int i = 0; i < TOKENS; i++) {
            Floats input = same(tokens[column * PANEL_TOKENS + i]);
            total[i][0] += first * input;
            total[i][1] += second * input;
        }
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++) stored(to + i * stride + j * WIDTH, total[i][j]);
}
template <int TOKENS = PANEL_TOKENS>
INLINE void some_of_float_panel(const float *panel, const float *tokens, int64_t count, int64_t columns, float *to,
                                int64_t stride, bool add) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return some_of_float_panel<TOKENS - 1>(panel, tokens, count, columns, to, stride, add);
    float_panel<TOKENS>(panel, tokens, columns, to, stride, add);
}
void panel_products(const float *panel, const float *tokens, int64_t count, int64_t columns, float *to, int64_t stride,
                    bool add) {
    some_of_float_panel(panel, tokens, count, columns, to, stride, add);
}

// Fetches what the next panel is made of, `away` from what is read here, into the second cache: a line with the first of
// the vectors of `bytes` that lie in it.
INLINE void fetch_ahead(const char *from, int64_t bytes, int64_t away) {
    if (static_cast<int64_t>(reinterpret_cast<uintptr_t>(from) % 64) < bytes)
        __builtin_prefetch(from + away, 0, 2);
}

// The same with shorts: pairs of columns take the places of floats. Two pairs may be crossed, as Winograd multiplies (A
// New Algorithm for Inner Product, 1968):
//
//     w₀x₀ + w₁x₁ = (w₀ + x₁)(w₁ + x₀) - w₀w₁ - x₀x₁
//
// The last two are summed once for each row and once for each token, with which sums begin (offsets): an addition takes
// the place of a multiplication. All is modulo 2³², so sums are right however large what comes on the way is.
INLINE Ints with_two_pairs(Ints sums, Shorts first, Shorts second, Shorts input, Shorts next) {
    if constexpr (CROSSES_SHORTS)
        return with_products(sums, added(first, next), added(second, input));
    return with_products(with_products(sums, first, input), second, next);
}
// WIDTH rows and pairs, or as many as exist; adds to the rows' offsets.
template <bool WHOLE>
INLINE void pack_shorts(const Rows &rows, int64_t row, int64_t column, int64_t left, int16_t *to, Words &offsets) {
    Floats block[WIDTH]; // of any bits
    UNROLL for (int i = 0; i < WIDTH; i++) {
        const char *from = rows.data + (row + i) * rows.row_bytes + column;
        const bool exists = WHOLE || row + i < rows.count;
        block[i] = !exists                      ? Floats{}
                   : WHOLE || left >= 2 * WIDTH ? (Floats)widened(loaded<ManyBytes>(from))
                                                : (Floats)last_shorts(from, left);
        fetch_ahead(from, 2 * WIDTH, PANEL_ROWS * rows.row_bytes);
    }
    transpose(block);
    UNROLL for (int i = 0; i < WIDTH; i += 2) if (WHOLE || 2 * i < left) {
        stored(to + 2 * i * PANEL_ROWS, block[i]);
        stored(to + 2 * (i + 1) * PANEL_ROWS, block[i + 1]);
        if constexpr (CROSSES_SHORTS)
            offsets -= (Words)with_products(Ints{}, (Shorts)block[i], (Shorts)block[i + 1]);
    }
}
void pack_short_rows(const Rows &rows, int64_t first, int64_t columns, int16_t *to, float *scales, int32_t *offsets) {
    for (int64_t row = 0; row < PANEL_ROWS; row += WIDTH) {
        Words own_offsets = {};
        for (int64_t column = 0; column < columns; column += 2 * WIDTH) {
            int16_t *place = to + column * PANEL_ROWS + 2 * row;
            if (row + WIDTH <= rows.count && column + 2 * WIDTH <= columns)
                pack_shorts<true>(rows, row, first + column, 2 * WIDTH, place, own_offsets);
            else
                pack_shorts<false>(rows, row, first + column, columns - column, place, own_offsets);
        }
        stored(offsets + row, own_offsets);
    }
    for (int64_t row = 0; row < PANEL_ROWS; row++)
        scales[row] = row < rows.count ? reinterpret_cast<const float *>(rows.scales)[row] : 0.0f;
}
int32_t short_offset(const int16_t *shorts, int64_t columns) {
    uint32_t total = 0;
    if constexpr (CROSSES_SHORTS)
        for (int64_t i = 0; i < columns; i += 4)
            total -= static_cast<uint32_t>(shorts[i] * shorts[i + 2]) + static_cast<uint32_t>(shorts[i + 1] * shorts[i + 3]);
    return static_cast<int32_t>(total);
}

template <int TOKENS>
INLINE void short_panel(const ShortPanel &rows, const ShortPanel &tokens, int64_t columns, float *to, int64_t stride,
                        bool add) {
    Ints total[TOKENS][2];
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++)
            total[i][j] = (Ints)(loaded<Words>(rows.offsets + j * WIDTH) + static_cast<uint32_t>(tokens.offsets[i]));
    const int16_t *w = rows.numbers, *x = tokens.numbers;
    for (int64_t column = 0; column < columns; column += 4) {
        Shorts first[2], second[2];
        UNROLL for (int j = 0; j < 2; j++) {
            first[j] = loaded<Shorts>(w + 2 * j * WIDTH);
            second[j] = loaded<Shorts>(w + 2 * (PANEL_ROWS + j * WIDTH));
        }
        UNROLL for (int i = 0; i < TOKENS; i++) {
            Shorts input = (Shorts)same_int(loaded<int32_t>(x + 2 * i));
            Shorts next = (Shorts)same_int(loaded<int32_t>(x + 2 * (SHORT_TOKENS + i)));
            UNROLL for (int j = 0; j < 2; j++)
                total[i][j] = with_two_pairs(total[i][j], first[j], second[j], input, next);
        }
        w += 4 * PANEL_ROWS;
        x += 4 * SHORT_TOKENS;
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++) {
            float *place = to + i * stride + j * WIDTH;
            Floats scale = loaded<Floats>(rows.scales + j * WIDTH) * tokens.scales[i];
            Floats before = add ? loaded<Floats>(place) : Floats{};
            stored(place, before + __builtin_convertvector(total[i][j], Floats) * scale);
        }
}
template <int TOKENS = SHORT_TOKENS>
INLINE void some_of_short_panel(const ShortPanel &rows, const ShortPanel &tokens, int64_t count, int64_t columns,
                                float *to, int64_t stride, bool add) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return some_of_short_panel<TOKENS - 1>(rows, tokens, count, columns, to, stride, add);
    short_panel<TOKENS>(rows, tokens, columns, to, stride, add);
}
void short_panel_products(const ShortPanel &rows, const ShortPanel &tokens, int64_t count, int64_t columns, float *to,
                          int64_t stride, bool add) {
    some_of_short_panel(rows, tokens, count, columns, to, stride, add);
}

// The same with int4 and tokens of bytes: quads of columns take the places of floats, those of the low halves of a
// unit's bytes before those of the high ones. WIDTH rows, or zeros where there are none.
template <bool EXIST>
INLINE void pack_nibble_rows(const char *from, int64_t words, int64_t away, uint8_t *to) {
    for (int64_t word = 0; word < words; word++) {
        const char *place = from + word * 4 * INT4_ROWS;
        Words packed = {};
        if constexpr (EXIST) {
            fetch_ahead(place, 4 * WIDTH, away);
            packed = loaded<Words>(place);
        }
        uint8_t *low = to + 4 * PANEL_ROWS * (word / 8 * 16 + word % 8);
        stored(low, (NibbleQuads)packed & 15);
        stored(low + 8 * 4 * PANEL_ROWS, (NibbleQuads)(packed >> 4) & 15);
    }
}
void pack_nibbles(const Rows &rows, int64_t first, int64_t columns, uint8_t *to, float *scales) {
    const int64_t words = columns / 8; // a quad in the low halves and one in the high ones
    for (int64_t row = 0; row < PANEL_ROWS; row += WIDTH) {
        if (row >= rows.count) {
            pack_nibble_rows<false>(nullptr, words, 0, to + 4 * row);
            continue;
        }
        pack_nibble_rows<true>(int4_words(rows, row) + first / 64 * INT4_UNIT_BYTES, words, PANEL_ROWS * rows.row_bytes,
                               to + 4 * row);
        const char *own_scales = int4_scales(rows, row);
        for (int64_t group = first / rows.group, i = 0; group * rows.group < first + columns; group++, i++)
            stored(scales + i * PANEL_ROWS + row, Bf16::at(own_scales, group * INT4_ROWS));
    }
}

// A scale of the rows for HALVES × 32 columns, or for several times as many.
template <int TOKENS, int HALVES>
INLINE void byte_panel(const uint8_t *panel, const float *row_scales, const ByteTokens &tokens, int64_t columns,
                       int64_t group, float *to, int64_t stride, bool add) {
    const int8_t *x = tokens.bytes;
    const float *token_scales = tokens.scales;
    const int32_t *offsets = tokens.offsets;
    for (int64_t column = 0; column < columns; column += HALVES * 32, add = true) {
        Ints total[TOKENS][2];
        UNROLL for (int half = 0; half < HALVES; half++, offsets += tokens.stride) {
            QuadSums part[TOKENS][2] = {};
            for (int quad = 0; quad < 8; quad++) {
                NibbleQuads first = loaded<NibbleQuads>(panel), second = loaded<NibbleQuads>(panel + 4 * WIDTH);
                UNROLL for (int i = 0; i < TOKENS; i++) {
                    ByteQuads input = (ByteQuads)same_int(loaded<int32_t>(x + 4 * i));
                    part[i][0] = with_quads(part[i][0], first, input);
                    part[i][1] = with_quads(part[i][1], second, input);
                }
                panel += 4 * PANEL_ROWS;
                x += 4 * PANEL_TOKENS;
            }
            UNROLL for (int i = 0; i < TOKENS; i++)
                UNROLL for (int j = 0; j < 2; j++) {
                    Ints sums = of_quads(part[i][j]) + offsets[i];
                    total[i][j] = half ? total[i][j] + sums : sums;
                }
        }
        const float *scales = row_scales + column / group * PANEL_ROWS;
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++) {
                float *place = to + i * stride + j * WIDTH;
                Floats scale = loaded<Floats>(scales + j * WIDTH) * token_scales[i];
                Floats before = add ? loaded<Floats>(place) : Floats{};
                stored(place, before + __builtin_convertvector(total[i][j], Floats) * scale);
            }
        if (column % 64 + HALVES * 32 == 64)
            token_scales += tokens.stride;
    }
}
template <int HALVES, int TOKENS = PANEL_TOKENS>
INLINE void some_of_byte_panel(const uint8_t *panel, const float *row_scales, const ByteTokens &tokens, int64_t columns,
                               int64_t group, float *to, int64_t stride, bool add) {
    if constexpr (TOKENS > 1)
        if (tokens.count < TOKENS)
            return some_of_byte_panel<HALVES, TOKENS - 1>(panel, row_scales, tokens, columns, group, to, stride, add);
    byte_panel<TOKENS, HALVES>(panel, row_scales, tokens, columns, group, to, stride, add);
}
void byte_panel_products(const uint8_t *panel, const float *row_scales, const ByteTokens &tokens, int64_t columns,
                         int64_t group, float *to, int64_t stride, bool add) {
    group == 32 ? some_of_byte_panel<1>(panel, row_scales, tokens, columns, group, to, stride, add)
                : some_of_byte_panel<2>(panel, row_scales, tokens, columns, group, to, stride, add);
}

template <class Kind> void narrow_as(const float *from, int64_t count, char *to) {
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        Kind::put(to, i, loaded<Floats>(from + i));
    if (i < count)
        put_last<Kind>(to, i, count - i, last<F32>(reinterpret_cast<const char *>(from), i, count - i));
}
void narrow(const float *from, int64_t count, int kind, void *to) {
    char *bytes = static_cast<char *>(to);
    switch (kind) {
    case GF_F32:
        return narrow_as<F32>(from, count, bytes);
    case GF_BF16:
        return narrow_as<Bf16>(from, count, bytes);
    default:
        return narrow_as<F16>(from, count, bytes);
    }
}

// Of each two whole vectors the numbers in even places, then those in odd ones.
void part(float *floats, int64_t columns) {
    float copy[2 * WIDTH];
    for (; columns >= 2 * WIDTH; columns -= 2 * WIDTH, floats += 2 * WIDTH) {
        memcpy(copy, floats, sizeof copy);
        for (int i = 0; i < WIDTH; i++) {
            floats[i] = copy[2 * i];
            floats[WIDTH + i] = copy[2 * i + 1];
        }
    }
}

// Of whole vectors; no number where there is one that is none: its bits are those of the largest integer.
INLINE float largest_size(const float *x, int64_t count) {
    Ints top = {};
    for (int64_t i = 0; i < count; i += WIDTH) {
        Ints size = loaded<Ints>(x + i) & 0x7fffffff;
        top = size > top ? size : top;
    }
    int32_t best = 0;
    for (int i = 0; i < WIDTH; i++)
        best = top[i] > best ? top[i] : best;
    float size;
    memcpy(&size, &best, sizeof size);
    return size;
}

// Each SHORT_COLUMNS to -LARGEST_SHORT … LARGEST_SHORT of their largest. `from` has zeros up to a whole vector.
void round_to_shorts(const float *from, int64_t columns, int16_t *to, float *scales) {
    const int64_t padded_columns = padded_shorts(columns);
    for (int64_t first = 0; first < columns; first += SHORT_COLUMNS) {
        const int64_t end = smaller(first + SHORT_COLUMNS, padded(columns));
        const float scale = largest_size(from + first, end - first) / LARGEST_SHORT;
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        *scales++ = scale;
        for (int64_t i = first; i < end; i += WIDTH)
            stored(to + i, narrowed_to_shorts(__builtin_convertvector(rounded(loaded<Floats>(from + i) * inverse), Ints)));
    }
    for (int64_t i = padded(columns); i < padded_columns; i++)
        to[i] = 0;
}

// Each 64 columns to -127 … 127 of their largest.
void round(const float *from, int64_t columns, int8_t *rounded_to, float *scales, int32_t *offsets) {
    for (int64_t unit = 0; unit < columns / 64; unit++) {
        const float *x = from + unit * 64;
        const float scale = largest_size(x, 64) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
        scales[unit] = scale;
        for (int half = 0; half < 2; half++) {
            Floats total = {};
            UNROLL for (int i = 32 * half; i < 32 * half + 32; i += WIDTH) {
                Floats whole = rounded(loaded<Floats>(x + i) * inverse);
                stored(rounded_to + unit * 64 + i, narrowed(__builtin_convertvector(whole, Ints)));
                total += whole;
            }
            const float all = sum(total);
            offsets[2 * unit + half] = all == all ? -8 * static_cast<int32_t>(all) : 0;
        }
    }
}

template <class Kind>
void finish_as(const float *sums, const char *bias, int64_t start, int64_t count, int activation, char *y) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        int64_t left = count - i;
        Floats x = left >= WIDTH ? loaded<Floats>(sums + i) : last<F32>(reinterpret_cast<const char *>(sums), i, left);
        if (bias)
            x += left >= WIDTH ? Kind::at(bias, start + i) : last<Kind>(bias, start + i, left);
        x = activated(x, activation);
        if (left >= WIDTH)
            Kind::put(y, i, x);
        else
            put_last<Kind>(y, i, left, x);
    }
}
void finish(const float *sums, const void *bias, int64_t start, int64_t count, int activation, int kind, char *y) {
    const char *from = static_cast<const char *>(bias);
    switch (kind) {
    case GF_F32:
        return finish_as<F32>(sums, from, start, count, activation, y);
    case GF_BF16:
        return finish_as<Bf16>(sums, from, start, count, activation, y);
    default:
        return finish_as<F16>(sums, from, start, count, activation, y);
    }
}

// ---- norms ----

// One token: the sum is rounded to `Kind` before its mean and variance are taken.
template <class Kind>
void add_norms_as(const char *x, const char *part, char *to, const gf_norm *norms, int num_norms, int64_t place,
                  int64_t hidden, float eps, float *floats) {
    const int64_t whole = hidden / WIDTH * WIDTH;
    Floats total = {};
    for (int64_t i = 0; i < hidden; i += WIDTH) {
        int64_t left = hidden - i;
        Floats value = i < whole ? Kind::at(x, i) : last<Kind>(x, i, left);
        if (part) {
            value += i < whole ? Kind::at(part, i) : last<Kind>(part, i, left);
            char copy[WIDTH * 4];
            Kind::put(copy, 0, value);
            value = Kind::at(copy, 0);
            if (i < whole)
                Kind::put(to, i, value);
            else
                put_last<Kind>(to, i, left, value);
        }
        stored(floats + i, value);
        total += value;
    }
    const float mean = sum(total) / static_cast<float>(hidden);
    Floats squares = {};
    for (int64_t i = 0; i < whole; i += WIDTH) {
        Floats off = loaded<Floats>(floats + i) - mean;
        squares += off * off;
    }
    float variance = sum(squares);
    for (int64_t i = whole; i < hidden; i++)
        variance += (floats[i] - mean) * (floats[i] - mean);
    const float inverse = 1.0f / __builtin_sqrtf(variance / static_cast<float>(hidden) + eps);
    for (int n = 0; n < num_norms; n++) {
        const char *weight = static_cast<const char *>(norms[n].weight);
        const char *bias = static_cast<const char *>(norms[n].bias);
        char *y = static_cast<char *>(norms[n].y) + place * hidden * Kind::size;
        for (int64_t i = 0; i < whole; i += WIDTH)
            Kind::put(y, i, (loaded<Floats>(floats + i) - mean) * inverse * Kind::at(weight, i) + Kind::at(bias, i));
        if (int64_t left = hidden - whole)
            put_last<Kind>(y, whole, left,
                           (loaded<Floats>(floats + whole) - mean) * inverse * last<Kind>(weight, whole, left) +
                               last<Kind>(bias, whole, left));
    }
}
void add_layer_norms(const char *x, const char *part, char *to, const gf_norm *norms, int num_norms, int64_t place,
               int64_t hidden, float eps, int kind, float *floats) {
    switch (kind) {
    case GF_F32:
        return add_norms_as<F32>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    case GF_BF16:
        return add_norms_as<Bf16>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    default:
        return add_norms_as<F16>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    }
}

// ---- rotary positions: dimensions i and i + dim / 2 turn together ----

template <class Kind>
void rotate_as(const char *from, const float *cosines, const float *sines, int64_t half, char *to) {
    for (int64_t i = 0; i < half; i += WIDTH) {
        int64_t left = half - i;
        bool whole = left >= WIDTH;
        Floats a = whole ? Kind::at(from, i) : last<Kind>(from, i, left);
        Floats b = whole ? Kind::at(from, half + i) : last<Kind>(from, half + i, left);
        Floats cosine = whole ? loaded<Floats>(cosines + i) : last<F32>(reinterpret_cast<const char *>(cosines), i, left);
        Floats sine = whole ? loaded<Floats>(sines + i) : last<F32>(reinterpret_cast<const char *>(sines), i, left);
        Floats first = a * cosine - b * sine, second = b * cosine + a * sine;
        if (whole) {
            Kind::put(to, i, first);
            Kind::put(to, half + i, second);
        } else {
            put_last<Kind>(to, i, left, first);
            put_last<Kind>(to, half + i, left, second);
        }
    }
}
void rotate(const char *from, const float *cosines, const float *sines, int64_t dim, int kind, char *to) {
    if (!cosines) {
        memcpy(to, from, static_cast<size_t>(dim * bytes_of(kind)));
        return;
    }
    switch (kind) {
    case GF_F32:
        return rotate_as<F32>(from, cosines, sines, dim / 2, to);
    case GF_BF16:
        return rotate_as<Bf16>(from, cosines, sines, dim / 2, to);
    default:
        return rotate_as<F16>(from, cosines, sines, dim / 2, to);
    }
}

// ---- attention: softmax over blocks of keys, scaled again whenever a larger score comes (Milakov and
// Gimelshein 2018) ----

// Those of WIDTH keys from `first` on.
INLINE Ints key_numbers(int64_t first) {
    Ints number;
    UNROLL for (int i = 0; i < WIDTH; i++) number[i] = i;
    return number + static_cast<int32_t>(first);
}

// Slope, position and product rounded to bfloat16, as Falcon was trained (reference.alibi_bias).
INLINE Floats alibi_bias(float slope, Floats position) {
    return from_bf16(to_bf16(from_bf16(to_bf16(same(slope))) * from_bf16(to_bf16(position))));
}

// Scores of one row become weights e^(score - top); what was summed before is scaled to the new top.
INLINE void weigh(const Attending &work, int64_t row, int64_t first, float *scores, float *out, int64_t stride,
                  float *top, float *total) {
    // Keys of this block that the row sees.
    const Ints count = same_int(static_cast<int32_t>(smaller(work.limits[row] - first, KEYS_AT_ONCE)));
    Floats best = same(*top);
    for (int64_t i = 0; i < KEYS_AT_ONCE; i += WIDTH) {
        Floats score = loaded<Floats>(scores + i);
        if (work.slopes)
            score += alibi_bias(work.slopes[row], __builtin_convertvector(key_numbers(first + i), Floats)) * work.slope_scale;
        score = chosen(key_numbers(i) < count, score, same(-INFINITY));
        best = larger(score, best);
        stored(scores + i, score);
    }
    const float new_top = largest(best);
    if (work.limits[row] <= first && new_top == -INFINITY) { // the row sees none of these keys, nor any before
        memset(scores, 0, KEYS_AT_ONCE * 4);
        return;
    }
    Floats added = {};
    for (int64_t i = 0; i < KEYS_AT_ONCE; i += WIDTH) {
        Floats weight = exponential(loaded<Floats>(scores + i) - new_top);
        added += weight;
        stored(scores + i, weight);
    }
    if (new_top > *top) {
        Floats factor = exponential(same(*top - new_top));
        for (int64_t i = 0; i < stride; i += WIDTH)
            stored(out + i, loaded<Floats>(out + i) * factor);
        *total *= factor[0];
        *top = new_top;
    }
    *total += sum(added);
}

// out[row] += Σ weights[row][key] × values[key] over `keys` keys.
template <int ROWS, int PARTS>
INLINE void mix_tile(const float *weights, const float *values, int64_t keys, int64_t stride, float *out) {
    Floats total[ROWS][PARTS];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++) total[i][j] = loaded<Floats>(out + i * stride + j * WIDTH);
    for (int64_t key = 0; key < keys; key++) {
        Floats value[PARTS];
        UNROLL for (int j = 0; j < PARTS; j++) value[j] = loaded<Floats>(values + key * stride + j * WIDTH);
        UNROLL for (int i = 0; i < ROWS; i++) {
            float weight = weights[i * KEYS_AT_ONCE + key];
            UNROLL for (int j = 0; j < PARTS; j++) total[i][j] += weight * value[j];
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++) stored(out + i * stride + j * WIDTH, total[i][j]);
}
template <int ROWS>
INLINE void mix_rows(const float *weights, const float *values, int64_t keys, int64_t stride, float *out) {
    int64_t place = 0;
    for (; place + 2 * WIDTH <= stride; place += 2 * WIDTH)
        mix_tile<ROWS, 2>(weights, values + place, keys, stride, out + place);
    for (; place < stride; place += WIDTH)
        mix_tile<ROWS, 1>(weights, values + place, keys, stride, out + place);
}
// Sums of two rows would wait for each other: eight are taken as four and four.
void mix(const float *weights, const float *values, int64_t rows, int64_t keys, int64_t stride, float *out) {
    int64_t row = 0;
    for (; row + 6 <= rows && row + 8 != rows; row += 6)
        mix_rows<6>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    for (; row + 4 <= rows; row += 4)
        mix_rows<4>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    for (; row + 2 <= rows; row += 2)
        mix_rows<2>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    if (row < rows)
        mix_rows<1>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
}

// Keys as panels, their scores with panels of queries; dot products take longer from so many queries on.
constexpr int64_t PANEL_QUERIES = 4;

template <class Kind> void pack_keys_as(const char *const *keys, int64_t count, int64_t dim, float *to) {
    const int64_t whole = (count + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS;
    for (int64_t first = 0; first < whole; first += WIDTH)
        for (int64_t place = 0; place < dim; place += WIDTH) {
            const int64_t left = dim - place;
            Floats block[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; i++) { // beyond the last key itself again: nobody looks at its scores
                const char *key = keys[smaller(first + i, count - 1)];
                block[i] = left >= WIDTH ? Kind::at(key, place) : last<Kind>(key, place, left);
            }
            transpose(block);
            float *place_to = to + (first / PANEL_ROWS * dim + place) * PANEL_ROWS + first % PANEL_ROWS;
            UNROLL for (int i = 0; i < WIDTH; i++) if (i < left) stored(place_to + i * PANEL_ROWS, block[i]);
        }
}
void pack_keys(const char *const *keys, int kind, int64_t count, int64_t dim, float *to) {
    switch (kind) {
    case GF_F32:
        return pack_keys_as<F32>(keys, count, dim, to);
    case GF_BF16:
        return pack_keys_as<Bf16>(keys, count, dim, to);
    default:
        return pack_keys_as<F16>(keys, count, dim, to);
    }
}

// scores[row × KEYS_AT_ONCE + key] of all queries
void score(const Attending &work, const char *const *places, int64_t count, const AttendMemory &own) {
    if (work.rows < PANEL_QUERIES) {
        const int64_t stride = padded(work.dim);
        for (int64_t i = 0; i < count; i++) {
            memset(own.keys + i * stride + work.dim, 0, static_cast<size_t>(4 * (stride - work.dim)));
            widen(places[i], work.kind, work.dim, own.keys + i * stride);
        }
        const Rows keys{reinterpret_cast<const char *>(own.keys), nullptr, stride * 4, count, stride, GF_F32, 0};
        Tokens queries;
        queries.floats = work.queries;
        queries.stride = stride;
        queries.count = work.rows;
        return products(keys, queries, own.scores, KEYS_AT_ONCE, false, false);
    }
    pack_keys(places, work.kind, count, work.dim, own.keys);
    for (int64_t row = 0; row < work.rows; row += PANEL_TOKENS)
        for (int64_t key = 0; key < count; key += PANEL_ROWS)
            panel_products(own.keys + key * work.dim, own.queries + row * work.dim,
                           smaller(PANEL_TOKENS, work.rows - row), work.dim, own.scores + row * KEYS_AT_ONCE + key,
                           KEYS_AT_ONCE, false);
}

// Where keys lie in the cache, from the first of its keys and values on.
INLINE int64_t place_of(const Attending &work, int64_t key) {
    return (work.table[key / work.block_size] * work.block_size + key % work.block_size) * work.token_bytes;
}

// Fetches keys or values that are wanted next: rows are too far apart for the processor to see them coming.
INLINE void fetch_next(const Attending &work, const char *from, int64_t first) {
    const int64_t bytes = work.dim * bytes_of(work.kind);
    for (int64_t key = first; key < smaller(first + KEYS_AT_ONCE, work.last); key++) {
        const char *row = from + place_of(work, key);
        for (int64_t place = 0; place < bytes; place += 64)
            __builtin_prefetch(row + place);
    }
}

void attend(const Attending &work, const AttendMemory &own, float *out, float *top, float *total) {
    const int64_t stride = padded(work.dim);
    memset(out, 0, static_cast<size_t>(4 * work.rows * stride));
    for (int64_t row = 0; row < work.rows; row++) {
        top[row] = -INFINITY;
        total[row] = 0;
        for (int64_t i = 0; i < work.dim; i++)
            own.queries[(row / PANEL_TOKENS * work.dim + i) * PANEL_TOKENS + row % PANEL_TOKENS] =
                work.queries[row * stride + i];
    }
    for (int64_t first = work.first; first < work.last; first += KEYS_AT_ONCE) {
        const int64_t count = smaller(KEYS_AT_ONCE, work.last - first);
        const char *places[KEYS_AT_ONCE];
        for (int64_t i = 0; i < count; i++)
            places[i] = work.keys + place_of(work, first + i);
        fetch_next(work, work.values, first);
        score(work, places, count, own);
        for (int64_t row = 0; row < work.rows; row++)
            weigh(work, row, first, own.scores + row * KEYS_AT_ONCE, out + row * stride, stride, top + row, total + row);
        fetch_next(work, work.keys, first + KEYS_AT_ONCE);
        for (int64_t i = 0; i < count; i++) {
            memset(own.values + i * stride + work.dim, 0, static_cast<size_t>(4 * (stride - work.dim)));
            widen(work.values + place_of(work, first + i), work.kind, work.dim, own.values + i * stride);
        }
        mix(own.scores, own.values, work.rows, count, stride, out);
    }
}

// ---- what the processor can do at most ----

constexpr int CHAINS = 12; // of multiply-adds that do not wait for each other

int64_t multiply_add(int64_t rounds) {
    Floats total[CHAINS] = {};
    Floats factor = same(0.999f), step = same(0.001f);
    asm volatile("" : "+m"(factor), "+m"(step)); // not known when this is compiled
    for (int64_t i = 0; i < rounds; i++)
        UNROLL for (int j = 0; j < CHAINS; j++) total[j] = total[j] * factor + step;
    for (auto &one : total)
        asm volatile("" : "+m"(one)); // wanted
    return rounds * CHAINS * WIDTH * 2;
}

void read_streams(const char *from, int64_t bytes) {
    constexpr int STREAMS = 8, LINE = 64;
    const int64_t length = bytes / STREAMS / LINE * LINE;
    Ints total[STREAMS] = {};
    for (int64_t place = 0; place < length; place += LINE)
        UNROLL for (int i = 0; i < STREAMS; i++) {
            const char *line = from + i * length + place;
            if (AHEAD)
                __builtin_prefetch(line + AHEAD, 0, NEAR);
            for (int j = 0; j < LINE; j += WIDTH * 4)
                total[i] ^= loaded<Ints>(line + j);
        }
    for (auto &one : total)
        asm volatile("" : "+m"(one));
}

const Kernels kernels = {NAME,
                         PANEL_ROWS,
                         PANEL_TOKENS,
                         SHORT_TOKENS,
                         products,
                         widen_int4,
                         pack_rows,
                         panel_products,
                         pack_short_rows,
                         short_panel_products,
                         pack_nibbles,
                         byte_panel_products,
                         widen,
                         part,
                         narrow,
                         round,
                         round_to_shorts,
                         short_offset,
                         finish,
                         add_layer_norms,
                         rotate,
                         attend,
                         multiply_add,
                         read_streams};
