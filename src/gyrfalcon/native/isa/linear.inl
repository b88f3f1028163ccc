// ---- linear with few tokens: ROWS × TOKENS sums at a time, all in registers; weights are read as stored ----

#include "sums.inl"

// Loads weights in the order of the tokens they are multiplied with: bf16 deinterleaved, even places of two vectors
// before odd ones.
template <class Kind> struct InTokenOrder {
    static constexpr int vectors = 1;
    template <int PART> INLINE Floats at(const char *row, int64_t place) { return Kind::at(row, place); }
};
template <> struct InTokenOrder<Bf16> {
    static constexpr int vectors = 2;
    template <int PART> INLINE Floats at(const char *row, int64_t place) {
        Words both = load<Words>(row + place * 2);
        return (Floats)(PART ? both & 0xffff0000 : both << 16);
    }
};

// Multiplies one vector of each row, the PART-th of InTokenOrder, and adds to the sums.
template <class Kind, int PART, int ROWS, int TOKENS>
INLINE void float_step(const char *weights, int64_t apart_bytes, int64_t place, const float *x, int64_t stride,
                       Floats (&total)[ROWS][TOKENS]) {
    if constexpr (TOKENS == 1) {
        Floats input = load<Floats>(x + PART * WIDTH);
        UNROLL for (int i = 0; i < ROWS; i++)
            total[i][0] += InTokenOrder<Kind>::template at<PART>(weights + i * apart_bytes, place) * input;
    } else {
        Floats weight[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++)
            weight[i] = InTokenOrder<Kind>::template at<PART>(weights + i * apart_bytes, place);
        UNROLL for (int j = 0; j < TOKENS; j++) {
            Floats input = load<Floats>(x + j * stride + PART * WIDTH);
            UNROLL for (int i = 0; i < ROWS; i++)
                total[i][j] = Kind::size == 2 && TOKENS > 2 ? add_products(total[i][j], weight[i], input)
                                                            : total[i][j] + weight[i] * input;
        }
    }
}

// ROWS rows, each `apart` from the one before.
template <class Kind, int ROWS, int TOKENS, bool STREAMED>
INLINE void float_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                       const Sums &sums) {
    constexpr int VECTORS = InTokenOrder<Kind>::vectors * WIDTH;
    constexpr int STEP = STREAMED ? 64 / Kind::size : VECTORS; // a cache line, or one load
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
            if constexpr (InTokenOrder<Kind>::vectors == 2)
                float_step<Kind, 1>(weights, apart_bytes, place, x + place, tokens.stride, total);
        }
    }
    if constexpr (STEP > VECTORS)
        for (; column + VECTORS <= rows.columns; column += VECTORS) {
            float_step<Kind, 0>(weights, apart_bytes, column, x + column, tokens.stride, total);
            if constexpr (InTokenOrder<Kind>::vectors == 2)
                float_step<Kind, 1>(weights, apart_bytes, column, x + column, tokens.stride, total);
        }
    for (; column < rows.columns; column += WIDTH) {
        int64_t left = rows.columns - column;
        UNROLL for (int i = 0; i < ROWS; i++) {
            const char *one = weights + i * apart_bytes;
            Floats weight = left >= WIDTH ? Kind::at(one, column) : load_partial<Kind>(one, column, left);
            UNROLL for (int j = 0; j < TOKENS; j++)
                total[i][j] += weight * load<Floats>(x + j * tokens.stride + column);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        float scale = Kind::size == 1 ? reinterpret_cast<const float *>(rows.scales)[row + i * apart] : 1.0f;
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put(token + j, row + i * apart, reduce_sum(total[i][j]) * scale);
    }
}

// The address of an int4 row's first word, and of its first group's scale.
INLINE const char *int4_words(const Rows &rows, int64_t row) {
    return rows.data + row / INT4_ROWS * INT4_ROWS * rows.row_bytes + row % INT4_ROWS * 4;
}
INLINE const char *int4_scales(const Rows &rows, int64_t row) {
    return rows.scales + row / INT4_ROWS * INT4_ROWS * int4_scale_bytes(rows) + row % INT4_ROWS * 2;
}

// value = (nibble - 8) × scale: scales the sums of nibbles × tokens of WIDTH rows over 64 columns.
template <bool HALVES> INLINE Floats int4_scaled(Ints low, Ints high, const char *scales, const int32_t *offsets) {
    if constexpr (HALVES)
        return __builtin_convertvector(low + offsets[0], Floats) * Bf16::at(scales, 0) +
               __builtin_convertvector(high + offsets[1], Floats) * Bf16::at(scales, INT4_ROWS);
    else
        return __builtin_convertvector(low + high + offsets[0], Floats) * Bf16::at(scales, 0);
}

// A tile of INT4_ROWS rows: one 4-byte word of each row fills a vector or several, and each lane sums one row. Prefetches
// `ahead` bytes further on; 0: nothing.
template <int TOKENS, bool HALVES>
INLINE void int4_tile(const Rows &rows, int64_t row, const Tokens &tokens, int64_t token, int64_t ahead,
                      const Sums &sums) {
    constexpr int PARTS = INT4_ROWS / WIDTH;
    const int64_t blocks = rows.columns / 64, blocks_in_group = HALVES ? 1 : rows.group / 64;
    const char *words = int4_words(rows, row), *scales = int4_scales(rows, row);
    int64_t left = blocks_in_group;
    Floats total[PARTS][TOKENS] = {};
    for (int64_t block = 0; block < blocks; block++, words += INT4_BLOCK_BYTES) {
        const int8_t *x = tokens.bytes + token * tokens.stride + block * 64;
        GroupSums low[PARTS][TOKENS] = {}, high[PARTS][TOKENS] = {};
        if (ahead)
            UNROLL for (int line = 0; line < INT4_BLOCK_BYTES; line += 64)
                __builtin_prefetch(words + line + ahead, 0, 2);
        UNROLL for (int word = 0; word < 8; word++) {
            NibbleGroups low_half[PARTS], high_half[PARTS];
            UNROLL for (int i = 0; i < PARTS; i++) {
                Words packed = keep_in_register(load<Words>(words + 4 * (word * INT4_ROWS + i * WIDTH)));
                low_half[i] = (NibbleGroups)packed & 15;
                high_half[i] = (NibbleGroups)(packed >> 4) & 15;
            }
            UNROLL for (int j = 0; j < TOKENS; j++) {
                const int8_t *four = x + j * tokens.stride + 4 * word;
                ByteGroups x_low = (ByteGroups)broadcast_int(load<int32_t>(four));
                ByteGroups x_high = (ByteGroups)broadcast_int(load<int32_t>(four + 32));
                UNROLL for (int i = 0; i < PARTS; i++) {
                    low[i][j] = add_group_products(low[i][j], low_half[i], x_low);
                    high[i][j] = add_group_products(high[i][j], high_half[i], x_high);
                }
            }
        }
        UNROLL for (int j = 0; j < TOKENS; j++) {
            const int64_t place = (token + j) * blocks + block;
            UNROLL for (int i = 0; i < PARTS; i++)
                total[i][j] += tokens.scales[place] *
                               int4_scaled<HALVES>(widen_group_sums(low[i][j]), widen_group_sums(high[i][j]),
                                                   scales + 2 * i * WIDTH,
                                                   tokens.offsets + (HALVES ? 2 : 1) * place);
        }
        if (!--left)
            left = blocks_in_group, scales += (HALVES ? 2 : 1) * 2 * INT4_ROWS;
    }
    UNROLL for (int j = 0; j < TOKENS; j++)
        UNROLL for (int i = 0; i < PARTS; i++)
            sums.put_vector(token + j, row + i * WIDTH, total[i][j]);
}

// `count` bytes of a row, padded with zeros.
INLINE Shorts widen_partial(const char *from, int64_t count) {
    ManyBytes bytes = {};
    memcpy(&bytes, from, static_cast<size_t>(count));
    return widen(bytes);
}

// Rows of int8, `apart` from each other.
template <int ROWS, int TOKENS, bool STREAMED>
INLINE void int8_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                      const Sums &sums) {
    constexpr int VECTOR = 2 * WIDTH, STEP = STREAMED ? 64 : VECTOR;
    const int64_t blocks = int16_blocks(rows.columns);
    const char *weights = rows.data + row * rows.row_bytes;
    const int64_t apart_bytes = apart * rows.row_bytes;
    const int16_t *x = tokens.shorts + token * tokens.stride;
    Floats total[ROWS][TOKENS] = {};
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t end = min(rows.columns, (block + 1) * INT16_COLUMNS);
        int64_t column = block * INT16_COLUMNS;
        Ints part[ROWS][TOKENS] = {};
        for (; column + STEP <= end; column += STEP) {
            if (STREAMED && AHEAD)
                UNROLL for (int i = 0; i < ROWS; i++)
                    __builtin_prefetch(weights + i * apart_bytes + column + AHEAD, 0, NEAR);
            UNROLL for (int place = 0; place < STEP; place += VECTOR) {
                Shorts weight[ROWS];
                UNROLL for (int i = 0; i < ROWS; i++)
                    weight[i] = widen(load<ManyBytes>(weights + i * apart_bytes + column + place));
                UNROLL for (int j = 0; j < TOKENS; j++) {
                    Shorts input = load<Shorts>(x + j * tokens.stride + column + place);
                    UNROLL for (int i = 0; i < ROWS; i++)
                        part[i][j] = add_pair_products(part[i][j], weight[i], input);
                }
            }
        }
        for (; column < end; column += VECTOR)
            UNROLL for (int i = 0; i < ROWS; i++) {
                Shorts weight = widen_partial(weights + i * apart_bytes + column, min(VECTOR, end - column));
                UNROLL for (int j = 0; j < TOKENS; j++)
                    part[i][j] = add_pair_products(part[i][j], weight, load<Shorts>(x + j * tokens.stride + column));
            }
        UNROLL for (int j = 0; j < TOKENS; j++)
            UNROLL for (int i = 0; i < ROWS; i++)
                total[i][j] +=
                    __builtin_convertvector(part[i][j], Floats) * tokens.scales[(token + j) * blocks + block];
    }
    const auto *scales = reinterpret_cast<const float *>(rows.scales);
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put(token + j, row + i * apart, reduce_sum(total[i][j]) * scales[row + i * apart]);
}

// The tile for a kind of weights.
template <class Kind> struct WithFloats {
    static constexpr int tile_rows = TILE_ROWS;
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        float_tile<Kind, ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};
struct WithInt16 {
    static constexpr int tile_rows = INT8_TILE_ROWS;
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        int8_tile<ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};

// All tokens in tiles of nearly equal size, TILE_TOKENS at most.
template <class Tiling, bool STREAMED, int ROWS>
INLINE void all_tokens(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, const Sums &sums) {
    const int64_t tiles = (tokens.count + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t token = tokens.count * tile / tiles, count = tokens.count * (tile + 1) / tiles - token;
        if (count == 1)
            Tiling::template tile<ROWS, 1, STREAMED>(rows, row, apart, tokens, token, sums);
        else if (count == 2)
            Tiling::template tile<ROWS, 2, STREAMED>(rows, row, apart, tokens, token, sums);
        else if (count == 3)
            Tiling::template tile<ROWS, 3, STREAMED>(rows, row, apart, tokens, token, sums);
        else if constexpr (TILE_TOKENS > 3)
            Tiling::template tile<ROWS, 4, STREAMED>(rows, row, apart, tokens, token, sums);
    }
}

// Whole tiles of ROWS rows; returns the number of rows done. Streamed rows are far apart, so that each is a stream of its
// own that continues where the row ends: hardware prefetchers follow long streams.
template <class Tiling, bool STREAMED, int ROWS>
INLINE int64_t tiles(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    const int64_t count = rows.count / ROWS, apart = STREAMED ? count : 1;
    for (int64_t tile = 0; tile < count; tile++)
        all_tokens<Tiling, STREAMED, ROWS>(rows, STREAMED ? tile : tile * ROWS, apart, tokens, sums);
    return count * ROWS;
}

template <class Tiling, bool STREAMED> void all_rows(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    int64_t row = tokens.count == 1 ? tiles<Tiling, STREAMED, 8>(rows, tokens, sums)
                                    : tiles<Tiling, STREAMED, Tiling::tile_rows>(rows, tokens, sums);
    for (; row < rows.count; row++)
        all_tokens<Tiling, STREAMED, 1>(rows, row, 1, tokens, sums);
}

// Up to INT4_TOKENS tokens, two at a time, or four where a tile is one vector: it stays in cache, and the last tokens
// prefetch the next tile. With more tokens rows are packed.
constexpr int INT4_TILE_TOKENS = WIDTH == INT4_ROWS ? 4 : 2;
template <bool HALVES, int TOKENS = INT4_TILE_TOKENS>
INLINE void int4_tile_of(const Rows &rows, int64_t row, const Tokens &tokens, int64_t token, int64_t ahead,
                         const Sums &sums) {
    if constexpr (TOKENS > 1)
        if (tokens.count - token < TOKENS)
            return int4_tile_of<HALVES, TOKENS - 1>(rows, row, tokens, token, ahead, sums);
    int4_tile<TOKENS, HALVES>(rows, row, tokens, token, ahead, sums);
}
template <bool HALVES, bool STREAMED> void int4_rows(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    const int64_t tile_bytes = INT4_ROWS * rows.row_bytes;
    for (int64_t row = 0; row < rows.count; row += INT4_ROWS)
        for (int64_t token = 0; token < tokens.count; token += INT4_TILE_TOKENS) {
            const int64_t ahead = STREAMED && token + INT4_TILE_TOKENS >= tokens.count ? tile_bytes : 0;
            int4_tile_of<HALVES>(rows, row, tokens, token, ahead, sums);
        }
}

template <bool STREAMED> void linear_of(const Rows &rows, const Tokens &tokens, const Sums &sums) {
    if (tokens.form == INT16)
        return all_rows<WithInt16, STREAMED>(rows, tokens, sums);
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

void linear(const Rows &rows, const Tokens &tokens, float *to, int64_t stride, bool add, bool streamed) {
    Sums sums{to, stride, add};
    streamed ? linear_of<true>(rows, tokens, sums) : linear_of<false>(rows, tokens, sums);
}
