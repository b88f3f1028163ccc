// ---- linear with many tokens: int8 weights ----

// The same for int8 weights with int16 tokens, in pairs of columns. Two pairs may form a Winograd inner product (A New
// Algorithm for Inner Product, 1968):
//
//     w₀x₀ + w₁x₁ = (w₀ + x₁)(w₁ + x₀) - w₀w₁ - x₀x₁
//
// The last two terms are summed once per row and once per token, and sums start from them (offsets): an addition replaces
// a multiplication. All is modulo 2³², so intermediate overflow does no harm.
template <int TOKENS>
INLINE void add_winograd_products(const int16_t *w, const int16_t *x, Ints (&total)[TOKENS][2]) {
    Shorts first[2], second[2];
    UNROLL for (int j = 0; j < 2; j++) {
        first[j] = load<Shorts>(w + 2 * j * WIDTH);
        second[j] = load<Shorts>(w + 2 * (MR + j * WIDTH));
    }
    UNROLL for (int i = 0; i < TOKENS; i++) {
        Shorts input = (Shorts)broadcast_int(load<int32_t>(x + 2 * i));
        Shorts next = (Shorts)broadcast_int(load<int32_t>(x + 2 * (NR_INT16 + i)));
        UNROLL for (int j = 0; j < 2; j++)
            total[i][j] =
                add_pair_products(total[i][j], add_wrapping(first[j], next), add_wrapping(second[j], input));
    }
}
// One pair.
template <int TOKENS> INLINE void add_products_of(const int16_t *w, const int16_t *x, Ints (&total)[TOKENS][2]) {
    const Shorts first = load<Shorts>(w), second = load<Shorts>(w + 2 * WIDTH);
    UNROLL for (int i = 0; i < TOKENS; i++) {
        Shorts input = (Shorts)broadcast_int(load<int32_t>(x + 2 * i));
        total[i][0] = add_pair_products(total[i][0], first, input);
        total[i][1] = add_pair_products(total[i][1], second, input);
    }
}
// Packs WIDTH rows × WIDTH pairs, or as many as exist; adds to the rows' offsets.
template <bool WHOLE>
INLINE void pack_int8_block(const Rows &rows, int64_t row, int64_t column, int64_t left, int16_t *to, Words &offsets) {
    Floats block[WIDTH]; // of any bits
    UNROLL for (int i = 0; i < WIDTH; i++) {
        const char *from = rows.data + (row + i) * rows.row_bytes + column;
        const bool exists = WHOLE || row + i < rows.count;
        block[i] = !exists                      ? Floats{}
                   : WHOLE || left >= 2 * WIDTH ? (Floats)widen(load<ManyBytes>(from))
                                                : (Floats)widen_partial(from, left);
        prefetch_ahead(from, 2 * WIDTH, rows.ahead);
    }
    transpose(block);
    UNROLL for (int i = 0; i < WIDTH; i += 2)
        if (WHOLE || 2 * i < left) {
            store(to + 2 * i * MR, block[i]);
            store(to + 2 * (i + 1) * MR, block[i + 1]);
            if constexpr (WINOGRAD)
                offsets -= (Words)add_pair_products(Ints{}, (Shorts)block[i], (Shorts)block[i + 1]);
        }
}
void pack_int8_rows(const Rows &rows, int64_t first, int64_t columns, int16_t *to, float *scales, int32_t *offsets) {
    for (int64_t row = 0; row < MR; row += WIDTH) {
        Words own_offsets = {};
        for (int64_t column = 0; column < columns; column += 2 * WIDTH) {
            int16_t *place = to + column * MR + 2 * row;
            if (row + WIDTH <= rows.count && column + 2 * WIDTH <= columns)
                pack_int8_block<true>(rows, row, first + column, 2 * WIDTH, place, own_offsets);
            else
                pack_int8_block<false>(rows, row, first + column, columns - column, place, own_offsets);
        }
        store(offsets + row, own_offsets);
    }
    for (int64_t row = 0; row < MR; row++)
        scales[row] = row < rows.count ? reinterpret_cast<const float *>(rows.scales)[row] : 0.0f;
}
int32_t winograd_offset(const int16_t *shorts, int64_t columns) {
    uint32_t total = 0;
    if constexpr (WINOGRAD)
        for (int64_t i = 0; i < columns; i += 4)
            total -=
                static_cast<uint32_t>(shorts[i] * shorts[i + 2]) + static_cast<uint32_t>(shorts[i + 1] * shorts[i + 3]);
    return static_cast<int32_t>(total);
}

template <int TOKENS>
INLINE void int16_micro_kernel(const Int16Tile &rows, const Int16Tile &tokens, int64_t columns, float *to,
                               int64_t stride, bool add, Ahead &ahead) {
    Ints total[TOKENS][2];
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++)
            total[i][j] = (Ints)(load<Words>(rows.offsets + j * WIDTH) + static_cast<uint32_t>(tokens.offsets[i]));
    const int16_t *w = rows.numbers, *x = tokens.numbers;
    for (int64_t column = 0; column < columns; column += 4) {
        if (column < 4 * ahead.each)
            ahead.prefetch_line();
        if constexpr (WINOGRAD) {
            add_winograd_products(w, x, total);
        } else {
            add_products_of(w, x, total);
            add_products_of(w + 2 * MR, x + 2 * NR_INT16, total);
        }
        w += 4 * MR;
        x += 4 * NR_INT16;
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        UNROLL for (int j = 0; j < 2; j++) {
            float *place = to + i * stride + j * WIDTH;
            Floats scale = load<Floats>(rows.scales + j * WIDTH) * tokens.scales[i];
            Floats before = add ? load<Floats>(place) : Floats{};
            store(place, before + __builtin_convertvector(total[i][j], Floats) * scale);
        }
}
template <int TOKENS = NR_INT16>
INLINE void int16_micro_kernel_of(const Int16Tile &rows, const Int16Tile &tokens, int64_t count, int64_t columns,
                                  float *to, int64_t stride, bool add, Ahead &ahead) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return int16_micro_kernel_of<TOKENS - 1>(rows, tokens, count, columns, to, stride, add, ahead);
    int16_micro_kernel<TOKENS>(rows, tokens, columns, to, stride, add, ahead);
}
void micro_kernel_int16(const Int16Tile &rows, const Int16Tile &tokens, int64_t count, int64_t columns, float *to,
                        int64_t stride, bool add, Ahead &ahead) {
    int16_micro_kernel_of(rows, tokens, count, columns, to, stride, add, ahead);
}
