// ---- linear with many tokens: micro-kernels of MR rows × NR tokens, both packed column by column ----

// Packs WIDTH rows × WIDTH columns; without WHOLE some may not exist and become zeros.
template <class Kind, bool WHOLE>
INLINE void pack_float_block(const Rows &rows, int64_t row, int64_t column, int64_t left, float *to) {
    Floats block[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i++) {
        const char *from = rows.data + (row + i) * rows.row_bytes;
        const bool exists = WHOLE || row + i < rows.count;
        block[i] = !exists                  ? Floats{}
                   : WHOLE || left >= WIDTH ? Kind::at(from, column)
                                            : load_partial<Kind>(from, column, left);
        if (Kind::size == 1 && exists)
            block[i] *= reinterpret_cast<const float *>(rows.scales)[row + i];
    }
    transpose(block);
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (WHOLE || i < left)
            store(to + i * MR, block[i]);
}
template <class Kind> void pack_rows_as(const Rows &rows, int64_t first, int64_t columns, float *to) {
    for (int64_t row = 0; row < MR; row += WIDTH) {
        int64_t column = 0;
        if (row + WIDTH <= rows.count)
            for (; column + WIDTH <= columns; column += WIDTH)
                pack_float_block<Kind, true>(rows, row, first + column, WIDTH, to + column * MR + row);
        for (; column < columns; column += WIDTH)
            pack_float_block<Kind, false>(rows, row, first + column, columns - column, to + column * MR + row);
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
INLINE void float_micro_kernel(const float *tile, const float *tokens, int64_t columns, float *to, int64_t stride,
                               bool add) {
    Floats total[TOKENS][2] = {};
    if (add)
        UNROLL for (int i = 0; i < TOKENS; i++)
            UNROLL for (int j = 0; j < 2; j++)
                total[i][j] = load<Floats>(to + i * stride + j * WIDTH);
    _Pragma("GCC unroll 4") for (int64_t column = 0; column < columns; column++) {
        Floats first = load<Floats>(tile + column * MR);
        Floats second = load<Floats>(tile + column * MR + WIDTH);
        UNROLL for (int i = 0; i < TOKENS; i++) {
            Floats input = broadcast(tokens[column * NR + i]);
            total[i][0] += first * input;
            total[i][1] += second * input;
        }
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++)
            store(to + i * stride + j * WIDTH, total[i][j]);
}
template <int TOKENS = NR>
INLINE void float_micro_kernel_of(const float *tile, const float *tokens, int64_t count, int64_t columns, float *to,
                                  int64_t stride, bool add) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return float_micro_kernel_of<TOKENS - 1>(tile, tokens, count, columns, to, stride, add);
    float_micro_kernel<TOKENS>(tile, tokens, columns, to, stride, add);
}
void micro_kernel(const float *tile, const float *tokens, int64_t count, int64_t columns, float *to, int64_t stride,
                  bool add) {
    float_micro_kernel_of(tile, tokens, count, columns, to, stride, add);
}
