// ---- bf16 weights as stored with few bf16 tokens: lanes are columns, rows and tokens are both read as they are ----
//
// A tile is ROWS rows × TOKENS tokens of sums: 8 × 3, 6 × 4 or 4 × 6, 24 of 32 registers, so that sums are more than the
// instruction's latency of 6 (Zen 4: one a cycle, as loads of 64 bytes). 6 × 4 and 4 × 6 load 10 vectors for 24 products;
// 8 × 1 loads 9 for 8, but there memory is the bound.
//
// Of BF16_COLUMNS columns a tile's rows (4 × 2 KiB) are in the first-level cache while all tokens pass by, TOKENS at a time,
// 2 KiB apart: whole rows would lie a power of two apart, in the same sets. Each pass prefetches its share of the
// next columns, so that memory is read during all products, into the second-level cache: 35 ns a KiB, into the first 56.
// Sums are made in the same order whatever the tile, so a token gets what it gets alone, bit for bit.

// The sums of 16 vectors, in its lanes: halves are added again and again, of two vectors at a time.
template <int HALF, int... PLACES>
INLINE Floats add_halves(Floats a, Floats b, std::integer_sequence<int, PLACES...>) {
    return __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES : PLACES)...}) + // blended, which is cheap
           __builtin_shuffle(a, b, (Ints){(PLACES & HALF ? WIDTH + PLACES - HALF : PLACES + HALF)...});
}
template <int HALF = WIDTH / 2> INLINE Floats reduce_sums(Floats (&v)[WIDTH]) {
    UNROLL for (int i = 0; i < HALF; i++)
        v[i] = add_halves<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, WIDTH>{});
    if constexpr (HALF > 1)
        return reduce_sums<HALF / 2>(v);
    else
        return v[0];
}

// Some tokens with a tile's rows, a block of columns.
struct Bf16Pass {
    const char *weights;    // of the first row
    int64_t apart_bytes;    // from row to row
    const char *tokens;     // the first one
    int64_t columns;
    int64_t number, passes; // of the block
};

template <int ROWS, int TOKENS>
INLINE void add_bf16_line(const Words (&w)[ROWS], const char *x, Floats (&total)[ROWS][TOKENS]) {
    UNROLL for (int j = 0; j < TOKENS; j++) {
        const Words input = load<Words>(x + j * 2 * BF16_COLUMNS);
        UNROLL for (int i = 0; i < ROWS; i++)
            total[i][j] = add_bf16_products(total[i][j], w[i], input);
    }
}

template <int ROWS, int TOKENS> INLINE void bf16_pass(const Bf16Pass &pass, Floats (&total)[ROWS][TOKENS]) {
    const char *weights = pass.weights, *x = pass.tokens;
    const int64_t whole = pass.columns / (2 * WIDTH) * 2 * WIDTH;
    int64_t until = pass.number; // lines, before some are prefetched
    for (const char *end = weights + 2 * whole; weights < end; weights += 4 * WIDTH, x += 4 * WIDTH) {
        if (!until--) {
            UNROLL for (int i = 0; i < ROWS; i++)
                __builtin_prefetch(weights + i * pass.apart_bytes + AHEAD, 0, NEAR);
            until = pass.passes - 1;
        }
        Words w[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++)
            w[i] = load<Words>(weights + i * pass.apart_bytes);
        add_bf16_line<ROWS, TOKENS>(w, x, total);
    }
    if (const int64_t left = pass.columns - whole) {
        Words w[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++)
            w[i] = load_some(weights + i * pass.apart_bytes, 2 * left);
        add_bf16_line<ROWS, TOKENS>(w, x, total);
    }
}

// Rows that share their passes: `apart` from each other.
struct Bf16Tile {
    const Rows &rows;
    int64_t row, apart;
    const Tokens &tokens;
    const Sums &sums;
    Floats *kept;   // [passes, ROWS, tokens of a pass] between blocks, then zeros
    int64_t passes; // of nearly equal size

    int64_t first_token(int64_t pass) const { return tokens.count * pass / passes; }
};

template <int ROWS, int TOKENS> INLINE void bf16_tokens(const Bf16Tile &tile, int64_t column, int64_t pass) {
    const int64_t columns = min(BF16_COLUMNS, tile.rows.columns - column), token = tile.first_token(pass);
    const int64_t place = column * tile.tokens.count + token * BF16_COLUMNS;
    Floats *kept = tile.kept + token * ROWS;
    Floats total[ROWS][TOKENS] = {};
    if (column)
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < TOKENS; j++)
                total[i][j] = kept[i * TOKENS + j];
    const char *weights = tile.rows.data + tile.row * tile.rows.row_bytes + 2 * column;
    const auto *x = reinterpret_cast<const char *>(tile.tokens.halves + place);
    bf16_pass<ROWS, TOKENS>({weights, tile.apart * tile.rows.row_bytes, x, columns, pass, tile.passes}, total);
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < TOKENS; j++)
            kept[i * TOKENS + j] = total[i][j];
}
template <int ROWS, int TOKENS>
INLINE void bf16_tokens_of(int64_t count, const Bf16Tile &tile, int64_t column, int64_t pass) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return bf16_tokens_of<ROWS, TOKENS - 1>(count, tile, column, pass);
    bf16_tokens<ROWS, TOKENS>(tile, column, pass);
}

// Sums of all lanes to where they belong.
template <int ROWS> INLINE void put_sums(const Bf16Tile &tile) {
    float each[ROWS * BF16_TOKENS + WIDTH];
    for (int64_t first = 0; first < ROWS * tile.tokens.count; first += WIDTH) {
        Floats some[WIDTH];
        UNROLL for (int i = 0; i < WIDTH; i++)
            some[i] = tile.kept[first + i];
        store(each + first, reduce_sums(some));
    }
    for (int64_t pass = 0; pass < tile.passes; pass++) {
        const int64_t first = tile.first_token(pass), count = tile.first_token(pass + 1) - first;
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t j = 0; j < count; j++)
                tile.sums.put(first + j, tile.row + i * tile.apart, each[first * ROWS + i * count + j]);
    }
}

// Whole tiles of ROWS rows from `row` on, far apart as those of float_tile; all tokens in passes of MOST at most. Returns the
// row after them.
template <int ROWS, int MOST> int64_t bf16_tiles(const Rows &rows, int64_t row, const Tokens &tokens, const Sums &sums) {
    const int64_t count = (rows.count - row) / ROWS, passes = (tokens.count + MOST - 1) / MOST;
    Floats kept[ROWS * BF16_TOKENS + WIDTH]; // used in part
    for (int i = 0; i < WIDTH; i++)
        kept[ROWS * tokens.count + i] = Floats{};
    for (int64_t first = row; first < row + count; first++) {
        const Bf16Tile tile{rows, first, count, tokens, sums, kept, passes};
        for (int64_t column = 0; column < rows.columns; column += BF16_COLUMNS)
            for (int64_t pass = 0; pass < passes; pass++)
                bf16_tokens_of<ROWS, MOST>(tile.first_token(pass + 1) - tile.first_token(pass), tile, column, pass);
        put_sums<ROWS>(tile);
    }
    return row + count * ROWS;
}

void linear_with_bf16(const Rows &rows, const Tokens &tokens, float *to, int64_t stride, bool add, bool streamed) {
    if (tokens.form != BF16)
        return linear_with_int8(rows, tokens, to, stride, add, streamed);
    const Sums sums{to, stride, add};
    const auto room = [&](int64_t size) { return (tokens.count + size - 1) / size * size; };
    const bool six = tokens.count > 16 || room(6) <= room(4);
    const int64_t row = tokens.count <= 3 ? bf16_tiles<8, 3>(rows, 0, tokens, sums)
                        : six             ? bf16_tiles<4, 6>(rows, 0, tokens, sums)
                                          : bf16_tiles<6, 4>(rows, 0, tokens, sums);
    bf16_tiles<1, 6>(rows, row, tokens, sums);
}
