// ---- linear with many tokens: int4 weights ----

// The same for int4 weights with int8 tokens, in groups of 4 columns: of each 64 columns the low nibbles before the high
// ones. WIDTH rows, or zeros where there are none.
template <bool EXIST> INLINE void pack_int4_words(const char *from, int64_t words, int64_t away, uint8_t *to) {
    for (int64_t word = 0; word < words; word++) {
        const char *place = from + word * 4 * INT4_ROWS;
        Words packed = {};
        if constexpr (EXIST) {
            prefetch_ahead(place, 4 * WIDTH, away);
            packed = load<Words>(place);
        }
        uint8_t *low = to + 4 * MR * (word / 8 * 16 + word % 8);
        store(low, (NibbleGroups)packed & 15);
        store(low + 8 * 4 * MR, (NibbleGroups)(packed >> 4) & 15);
    }
}
void pack_int4_rows(const Rows &rows, int64_t first, int64_t columns, uint8_t *to, float *scales) {
    const int64_t words = columns / 8; // each a group of low nibbles and one of high ones
    for (int64_t row = 0; row < MR; row += WIDTH) {
        if (row >= rows.count) {
            pack_int4_words<false>(nullptr, words, 0, to + 4 * row);
            continue;
        }
        pack_int4_words<true>(int4_words(rows, row) + first / 64 * INT4_BLOCK_BYTES, words, rows.ahead,
                              to + 4 * row);
        const char *own_scales = int4_scales(rows, row);
        for (int64_t group = first / rows.group, i = 0; group * rows.group < first + columns; group++, i++)
            store(scales + i * MR + row, Bf16::at(own_scales, group * INT4_ROWS));
    }
}

// HALVES × 32 columns share a scale of the rows, or a multiple of as many do.
template <int TOKENS, int HALVES>
INLINE void int4_micro_kernel(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens, int64_t columns,
                              int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    const int8_t *x = tokens.bytes;
    const float *token_scales = tokens.scales;
    const int32_t *offsets = tokens.offsets;
    int64_t left = group;
    for (int64_t column = 0; column < columns; column += HALVES * 32, add = true) {
        if (column < HALVES * 32 * ahead.each)
            ahead.prefetch_line();
        Ints total[TOKENS][2];
        UNROLL for (int half = 0; half < HALVES; half++) {
            GroupSums part[TOKENS][2] = {};
            for (int four = 0; four < 8; four++) {
                NibbleGroups first = load<NibbleGroups>(tile), second = load<NibbleGroups>(tile + 4 * WIDTH);
                UNROLL for (int i = 0; i < TOKENS; i++) {
                    ByteGroups input = (ByteGroups)broadcast_int(load<int32_t>(x + 4 * i));
                    part[i][0] = add_group_products(part[i][0], first, input);
                    part[i][1] = add_group_products(part[i][1], second, input);
                }
                tile += 4 * MR;
                x += 4 * NR_INT8;
            }
            UNROLL for (int i = 0; i < TOKENS; i++)
                UNROLL for (int j = 0; j < 2; j++) {
                    Ints sums = widen_group_sums(part[i][j]);
                    total[i][j] = sums + (half ? total[i][j] : broadcast_int(offsets[i]));
                }
        }
        offsets += NR_INT8;
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++) {
                float *place = to + i * stride + j * WIDTH;
                Floats scale = load<Floats>(row_scales + j * WIDTH) * token_scales[i];
                Floats before = add ? load<Floats>(place) : Floats{};
                store(place, before + __builtin_convertvector(total[i][j], Floats) * scale);
            }
        if (column % 64 + HALVES * 32 == 64)
            token_scales += NR_INT8;
        if (!(left -= HALVES * 32))
            left = group, row_scales += MR;
    }
}
template <int HALVES, int TOKENS = NR_INT8>
INLINE void int4_micro_kernel_of(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens,
                                 int64_t columns, int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    if constexpr (TOKENS > 1)
        if (tokens.count < TOKENS)
            return int4_micro_kernel_of<HALVES, TOKENS - 1>(tile, row_scales, tokens, columns, group, to, stride, add,
                                                            ahead);
    int4_micro_kernel<TOKENS, HALVES>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
}
void micro_kernel_int4(const uint8_t *tile, const float *row_scales, const Int8Tokens &tokens, int64_t columns,
                       int64_t group, float *to, int64_t stride, bool add, Ahead &ahead) {
    group == 32 ? int4_micro_kernel_of<1>(tile, row_scales, tokens, columns, group, to, stride, add, ahead)
                : int4_micro_kernel_of<2>(tile, row_scales, tokens, columns, group, to, stride, add, ahead);
}
