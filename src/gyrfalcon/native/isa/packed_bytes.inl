// ---- linears with many int8 tokens by products of bytes, with weights of int8 or int4 ----

// Columns that do not exist are zeros of tokens.
void pack_int8_bytes(const Rows &rows, int64_t first, int64_t columns, uint8_t *to, float *scales) {
    pack_words(rows, first, columns, rows.columns - first, FLIP, reinterpret_cast<char *>(to));
    for (int64_t row = 0; row < MR; row++)
        scales[row] = row < rows.count ? reinterpret_cast<const float *>(rows.scales)[row] : 0.0f;
}

// How rows are scaled: int8 rows once, int4 ones a part of PART columns at a time.
template <int PART, bool EACH_PART> struct Scaling {
    static constexpr int part = PART;
    static constexpr bool each_part = EACH_PART;
};

// MR rows × TOKENS tokens, integer sums of a part and float32 totals all in registers.
template <class Scale, int TOKENS>
INLINE void byte_micro_kernel(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens, int64_t columns,
                              int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    const int8_t *x = tokens.bytes;
    const float *token_scales = tokens.scales;
    const int32_t *offsets = tokens.offsets;
    int64_t left = group;
    Floats total[TOKENS][2] = {};
    for (int64_t column = 0; column < columns; column += Scale::part, offsets += NR_INT8) {
        if (column < Scale::part * ahead.each)
            ahead.prefetch_line();
        Ints part[TOKENS][2];
        UNROLL for (int i = 0; i < TOKENS; i++)
            part[i][0] = part[i][1] = broadcast_int(offsets[i]);
        _Pragma("GCC unroll 2") for (int four = 0; four < Scale::part / 4; four++) {
            const Words first = load<Words>(tile), second = load<Words>(tile + 4 * WIDTH);
            __builtin_prefetch(x + TOKENS_AHEAD);
            UNROLL for (int i = 0; i < TOKENS; i++) {
                const Words input = (Words)broadcast_int(load<int32_t>(x + 4 * i));
                part[i][0] = add_byte_products(part[i][0], first, input);
                part[i][1] = add_byte_products(part[i][1], second, input);
            }
            tile += 4 * MR;
            x += 4 * NR_INT8;
        }
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++) {
                const Floats scaled = __builtin_convertvector(part[i][j], Floats) * token_scales[i];
                total[i][j] += Scale::each_part ? scaled * load<Floats>(row_scales + j * WIDTH) : scaled;
            }
        if (Scale::each_part && !(left -= Scale::part))
            left = group, row_scales += MR;
        if (column % 64 + Scale::part == 64)
            token_scales += NR_INT8;
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++) {
            float *place = to + i * stride + j * WIDTH;
            const Floats once = Scale::each_part ? broadcast(1.0f) : load<Floats>(row_scales + j * WIDTH);
            store(place, total[i][j] * once + (add ? load<Floats>(place) : Floats{}));
        }
}
template <class Scale, int TOKENS = NR_INT8>
INLINE void byte_micro_kernel_of(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens,
                                 int64_t columns, int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    if constexpr (TOKENS > 1)
        if (tokens.count < TOKENS)
            return byte_micro_kernel_of<Scale, TOKENS - 1>(tile, row_scales, tokens, columns, group, to, stride, add,
                                                           ahead);
    byte_micro_kernel<Scale, TOKENS>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
}
void micro_kernel_bytes(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens, int64_t columns,
                        int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    if (!group)
        byte_micro_kernel_of<Scaling<64, false>>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
    else if (group == 32)
        byte_micro_kernel_of<Scaling<32, true>>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
    else
        byte_micro_kernel_of<Scaling<64, true>>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
}
