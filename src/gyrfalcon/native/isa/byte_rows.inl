// ---- linears of few int8 tokens by products of bytes, with int8 weights: lanes are columns ----
//
// The instruction multiplies unsigned by signed bytes, so an int8 weight is read as w + 128: its upper bit is flipped.
// The integer sum of a block of 64 columns starts from -128 × the sum of the token's numbers in it (Tokens::offsets).

constexpr uint32_t FLIP = 0x80808080;
constexpr int BLOCK_VECTORS = 16 / WIDTH; // of 64 columns

// A block of 64 columns of ROWS rows × TOKENS tokens, lanes of one row each in the end.
template <int ROWS, int TOKENS>
INLINE void byte_block(const Words (*weights)[BLOCK_VECTORS], const Tokens &tokens, int64_t token, int64_t block,
                       int64_t blocks, Floats (*total)[TOKENS]) {
    UNROLL for (int j = 0; j < TOKENS; j++) {
        const int64_t place = (token + j) * blocks + block;
        const int8_t *x = tokens.bytes + (token + j) * tokens.stride + block * 64;
        const Ints start = {tokens.offsets[place]}; // in one lane: lanes are added
        UNROLL for (int i = 0; i < ROWS; i++) {
            Ints sums = start;
            UNROLL for (int part = 0; part < BLOCK_VECTORS; part++)
                sums = add_byte_products(sums, weights[i][part], load<Words>(x + part * 4 * WIDTH));
            total[i][j] += __builtin_convertvector(sums, Floats) * tokens.scales[place];
        }
    }
}

template <int ROWS, int TOKENS, bool STREAMED>
INLINE void byte_tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                      const Sums &sums) {
    const int64_t blocks = int8_blocks(rows.columns), whole = rows.columns / 64;
    const char *weights = rows.data + row * rows.row_bytes;
    const int64_t apart_bytes = apart * rows.row_bytes;
    Floats total[ROWS][TOKENS] = {};
    Words own[ROWS][BLOCK_VECTORS];
    for (int64_t block = 0; block < whole; block++) {
        UNROLL for (int i = 0; i < ROWS; i++) {
            const char *line = weights + i * apart_bytes + block * 64;
            if (STREAMED && AHEAD)
                __builtin_prefetch(line + AHEAD, 0, NEAR);
            UNROLL for (int part = 0; part < BLOCK_VECTORS; part++)
                own[i][part] = load<Words>(line + part * 4 * WIDTH) ^ FLIP;
            if constexpr (TOKENS == 1) // row by row, or weights would fill the registers
                byte_block<1, 1>(own + i, tokens, token, block, blocks, total + i);
        }
        if constexpr (TOKENS > 1)
            byte_block<ROWS, TOKENS>(own, tokens, token, block, blocks, total);
    }
    if (whole < blocks) {
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int part = 0; part < BLOCK_VECTORS; part++) {
                const int64_t column = whole * 64 + part * 4 * WIDTH, left = rows.columns - column;
                own[i][part] = load_some(weights + i * apart_bytes + column, min(4 * WIDTH, left > 0 ? left : 0)) ^ FLIP;
            }
        byte_block<ROWS, TOKENS>(own, tokens, token, whole, blocks, total);
    }
    const auto *scales = reinterpret_cast<const float *>(rows.scales);
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            sums.put(token + j, row + i * apart, reduce_sum(total[i][j]) * scales[row + i * apart]);
}

struct WithInt8 {
    static constexpr int tile_rows = WIDTH / 4; // with four tokens half of the registers are sums
    template <int ROWS, int TOKENS, bool STREAMED>
    INLINE void tile(const Rows &rows, int64_t row, int64_t apart, const Tokens &tokens, int64_t token,
                     const Sums &sums) {
        byte_tile<ROWS, TOKENS, STREAMED>(rows, row, apart, tokens, token, sums);
    }
};

void linear_with_int8(const Rows &rows, const Tokens &tokens, float *to, int64_t stride, bool add, bool streamed) {
    const Sums sums{to, stride, add};
    if (tokens.form != INT8 || rows.kind != GF_I8)
        linear(rows, tokens, to, stride, add, streamed);
    else
        streamed ? all_rows<WithInt8, true>(rows, tokens, sums) : all_rows<WithInt8, false>(rows, tokens, sums);
}
