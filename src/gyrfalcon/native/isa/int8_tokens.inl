// ---- linears of int8 tokens by products of bytes, with weights of int8 or int4 ----
//
// The instruction multiplies unsigned by signed bytes, so an int8 weight is read as w + 128: its upper bit is flipped.
// The integer sum of a block of 64 columns starts from -128 × the sum of the token's numbers in it (Tokens::offsets).

constexpr uint32_t FLIP = 0x80808080;
static_assert(4 * WIDTH == 64); // a vector has the bytes of a block

// A block of 64 columns of ROWS rows × TOKENS tokens, lanes of one row each in the end.
template <int ROWS, int TOKENS>
INLINE void byte_block(const Words (&weights)[ROWS], const Tokens &tokens, int64_t token, int64_t block,
                       int64_t blocks, Floats (&total)[ROWS][TOKENS]) {
    UNROLL for (int j = 0; j < TOKENS; j++) {
        const int64_t place = (token + j) * blocks + block;
        const Words x = load<Words>(tokens.bytes + (token + j) * tokens.stride + block * 64);
        const Ints start = {tokens.offsets[place]}; // in one lane: lanes are added
        UNROLL for (int i = 0; i < ROWS; i++)
            total[i][j] += __builtin_convertvector(add_byte_products(start, weights[i], x), Floats) *
                           tokens.scales[place];
    }
}

template <int ROWS, int TOKENS, bool STREAMED>
INLINE void byte_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                      const Sums &sums) {
    const int64_t blocks = int8_blocks(rows.columns), whole = rows.columns / 64;
    const char *weights = rows.data + row * rows.row_bytes;
    const int64_t apart_bytes = apart * rows.row_bytes;
    Floats total[ROWS][TOKENS] = {};
    Words own[ROWS];
    for (int64_t block = 0; block < whole; block++) {
        UNROLL for (int i = 0; i < ROWS; i++) {
            const char *line = weights + i * apart_bytes + block * 64;
            if (STREAMED && AHEAD)
                __builtin_prefetch(line + AHEAD, 0, NEAR);
            own[i] = load<Words>(line) ^ FLIP;
        }
        byte_block<ROWS, TOKENS>(own, tokens, token, block, blocks, total);
    }
    if (whole < blocks) {
        UNROLL for (int i = 0; i < ROWS; i++)
            own[i] = load_some(weights + i * apart_bytes + whole * 64, rows.columns - whole * 64) ^ FLIP;
        byte_block<ROWS, TOKENS>(own, tokens, token, whole, blocks, total);
    }
    const auto *scales = reinterpret_cast<const float *>(rows.scales);
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put(token + j, row + i * apart, reduce_sum(total[i][j]) * scales[row + i * apart]);
}

struct WithInt8 {
    static constexpr int tile_rows = INT8_TILE_ROWS;
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        byte_tile<ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};

// TILES tiles of int4 rows: each group of four numbers of a token, once broadcast, is multiplied with all of them.
template <int TILES, int TOKENS, bool HALVES>
INLINE void int4_tiles(const Rows &rows, int64_t row, const Tokens &tokens, int64_t token, int64_t ahead,
                       const Sums &sums) {
    constexpr bool APART = HALVES || TOKENS == 1; // low halves' sums from high ones': also shorter chains
    const int64_t blocks = rows.columns / 64, blocks_in_group = HALVES ? 1 : rows.group / 64;
    const char *words = int4_words(rows, row), *scales = int4_scales(rows, row);
    const int64_t tile_bytes = INT4_ROWS * rows.row_bytes, tile_scales = INT4_ROWS * int4_scale_bytes(rows);
    int64_t left = blocks_in_group;
    Floats total[TILES][TOKENS] = {};
    for (int64_t block = 0; block < blocks; block++, words += INT4_BLOCK_BYTES) {
        const int8_t *x = tokens.bytes + token * tokens.stride + block * 64;
        const int32_t *offsets = tokens.offsets + (HALVES ? 2 : 1) * (token * blocks + block);
        Ints low[TILES][TOKENS], high[TILES][TOKENS];
        UNROLL for (int j = 0; j < TOKENS; j++)
            UNROLL for (int i = 0; i < TILES; i++) {
                low[i][j] = broadcast_int(offsets[(HALVES ? 2 : 1) * j * blocks]);
                high[i][j] = HALVES ? broadcast_int(offsets[2 * j * blocks + 1]) : Ints{};
            }
        UNROLL for (int word = 0; word < 8; word++) {
            Words packed[TILES];
            UNROLL for (int i = 0; i < TILES; i++) {
                const char *line = words + i * tile_bytes + word * 64;
                if (ahead)
                    __builtin_prefetch(line + ahead, 0, 2);
                packed[i] = keep_in_register(load<Words>(line));
            }
            UNROLL for (int j = 0; j < TOKENS; j++) {
                const int8_t *four = x + j * tokens.stride + 4 * word;
                const Words x_low = (Words)broadcast_int(load<int32_t>(four));
                const Words x_high = (Words)broadcast_int(load<int32_t>(four + 32));
                UNROLL for (int i = 0; i < TILES; i++) {
                    low[i][j] = add_byte_products(low[i][j], packed[i] & 0x0f0f0f0f, x_low);
                    Ints &other = APART ? high[i][j] : low[i][j];
                    other = add_byte_products(other, packed[i] >> 4 & 0x0f0f0f0f, x_high);
                }
            }
        }
        UNROLL for (int i = 0; i < TILES; i++) {
            const char *own = scales + i * tile_scales;
            const Floats first = Bf16::at(own, 0);
            UNROLL for (int j = 0; j < TOKENS; j++) {
                const float scale = tokens.scales[(token + j) * blocks + block];
                if constexpr (HALVES)
                    total[i][j] += (__builtin_convertvector(low[i][j], Floats) * first +
                                    __builtin_convertvector(high[i][j], Floats) * Bf16::at(own, INT4_ROWS)) *
                                   scale;
                else
                    total[i][j] +=
                        __builtin_convertvector(APART ? low[i][j] + high[i][j] : low[i][j], Floats) * scale * first;
            }
        }
        if (!--left)
            left = blocks_in_group, scales += (HALVES ? 2 : 1) * 2 * INT4_ROWS;
    }
    UNROLL for (int i = 0; i < TILES; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put_vector(token + j, row + i * INT4_ROWS, total[i][j]);
}

// All tokens by up to MOST of them; the last ones prefetch the next tiles.
template <int TILES, bool HALVES>
INLINE void int4_all_tokens(const Rows &rows, int64_t row, const Tokens &tokens, bool streamed, const Sums &sums) {
    constexpr int MOST = HALVES ? 2 : 4;
    const int64_t tiles = (tokens.count + MOST - 1) / MOST;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t token = tokens.count * tile / tiles, count = tokens.count * (tile + 1) / tiles - token;
        const int64_t ahead = streamed && tile + 1 == tiles ? TILES * INT4_ROWS * rows.row_bytes : 0;
        if (count == 1)
            int4_tiles<TILES, 1, HALVES>(rows, row, tokens, token, ahead, sums);
        else if (count == 2)
            int4_tiles<TILES, 2, HALVES>(rows, row, tokens, token, ahead, sums);
        else if constexpr (MOST > 2) {
            if (count == 3)
                int4_tiles<TILES, 3, HALVES>(rows, row, tokens, token, ahead, sums);
            else
                int4_tiles<TILES, 4, HALVES>(rows, row, tokens, token, ahead, sums);
        }
    }
}
template <bool HALVES>
void int4_few_tokens(const Rows &rows, const Tokens &tokens, bool streamed, const Sums &sums) {
    int64_t row = 0;
    for (; row + 2 * INT4_ROWS <= rows.count; row += 2 * INT4_ROWS)
        int4_all_tokens<2, HALVES>(rows, row, tokens, streamed, sums);
    if (row < rows.count)
        int4_all_tokens<1, HALVES>(rows, row, tokens, streamed, sums);
}

void linear_with_int8(const Rows &rows, const Tokens &tokens, float *to, int64_t stride, bool add, bool streamed) {
    const Sums sums{to, stride, add};
    if (tokens.form != INT8)
        linear(rows, tokens, to, stride, add, streamed);
    else if (rows.kind == GF_I8)
        streamed ? all_rows<WithInt8, true>(rows, tokens, sums) : all_rows<WithInt8, false>(rows, tokens, sums);
    else
        rows.group == 32 ? int4_few_tokens<true>(rows, tokens, streamed, sums)
                         : int4_few_tokens<false>(rows, tokens, streamed, sums);
}
