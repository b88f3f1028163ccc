// ---- packing rows of weights in words of 4 bytes, as instructions multiply them: [words, MR rows, 4 bytes] ----

// Prefetches the next tile's source, `away` bytes further on, into the second-level cache: once per cache line, with the
// first vector of `bytes` in it.
INLINE void prefetch_ahead(const char *from, int64_t bytes, int64_t away) {
    if (static_cast<int64_t>(reinterpret_cast<uintptr_t>(from) % 64) < bytes)
        __builtin_prefetch(from + away, 0, 2);
}

// WIDTH words of WIDTH rows from a byte of them on, with the bits of `flip` flipped; without WHOLE there are as many
// bytes as `left`, and some rows may not exist.
template <bool WHOLE>
INLINE void pack_square(const Rows &rows, int64_t row, int64_t byte, int64_t left, uint32_t flip, char *to) {
    Floats square[WIDTH]; // of any bits
    UNROLL for (int i = 0; i < WIDTH; i++) {
        const char *from = rows.data + (row + i) * rows.row_bytes + byte;
        if (WHOLE || row + i < rows.count) {
            square[i] = (Floats)((WHOLE ? load<Words>(from) : load_some(from, min(left, 4 * WIDTH))) ^ flip);
            prefetch_ahead(from, 4 * WIDTH, rows.ahead);
        } else {
            square[i] = Floats{};
        }
    }
    transpose(square);
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (WHOLE || 4 * i < left)
            store(to + i * 4 * MR, square[i]);
}
// `bytes` of MR rows from one on, after which they have `left`: a word beyond is left out, part of one filled up with zeros.
INLINE void pack_words(const Rows &rows, int64_t first, int64_t bytes, int64_t left, uint32_t flip, char *to) {
    for (int64_t row = 0; row < MR; row += WIDTH)
        for (int64_t byte = 0; byte < min(bytes, left); byte += 4 * WIDTH) {
            char *place = to + byte * MR + 4 * row;
            if (row + WIDTH <= rows.count && byte + 4 * WIDTH <= left)
                pack_square<true>(rows, row, first + byte, left - byte, flip, place);
            else
                pack_square<false>(rows, row, first + byte, left - byte, flip, place);
        }
}
