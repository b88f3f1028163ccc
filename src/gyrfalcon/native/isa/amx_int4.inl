// ---- linears by tiles, int4 weights ----
//
// Tokens [tokens, 64 columns] are the left side, as they are; weights the right one, in the order in which they are
// stored: [16 groups of 4 columns, 16 rows, 4]. Since tokens have a scale for each 64 columns, sums leave the tiles that
// often; such a part has 32 columns where rows have a scale for each 32. Lanes are rows, as in linear.inl.

constexpr int64_t INT4_BLOCKS = 16;       // of 64 columns of 16 rows at once, with few tokens
constexpr int64_t INT4_SQUARE_BLOCKS = 8; // with many: two panels and a group's tokens fit L1 together

struct Int4Panel {
    alignas(64) char values[INT4_BLOCKS * TILE_BYTES]; // × 16
    float scales[2 * INT4_BLOCKS][INT4_ROWS];          // ÷ 16, of each part
};

// A stored nibble is value + 8; with its upper bit flipped, in a byte's upper half, it is 16 × value.
INLINE void unpack_int4_block(const char *words, char *to) {
    UNROLL for (int word = 0; word < 8; word++) {
        const Words packed = load<Words>(words + word * ROW_BYTES);
        store(to + word * ROW_BYTES, (packed << 4 & 0xf0f0f0f0) ^ 0x80808080);
        store(to + (8 + word) * ROW_BYTES, (packed & 0xf0f0f0f0) ^ 0x80808080);
    }
}
// 16 rows from `row` on, some blocks of their columns.
template <int PARTS> void unpack_int4(const Rows &rows, int64_t row, int64_t first, int64_t blocks, Int4Panel &to) {
    const char *words = rows.data + row * rows.row_bytes + first * INT4_BLOCK_BYTES;
    const char *scales = rows.scales + row * int4_scale_bytes(rows);
    for (int64_t block = 0; block < blocks; block++)
        unpack_int4_block(words + block * INT4_BLOCK_BYTES, to.values + block * TILE_BYTES);
    for (int64_t part = 0; part < blocks * PARTS; part++) {
        const int64_t group = (first * PARTS + part) * (64 / PARTS) / rows.group;
        store(to.scales[part], Bf16::at(scales, group * INT4_ROWS) * 0.0625f);
    }
}

struct Int4Tokens {
    const int8_t *bytes;
    const float *scales; // [blocks, UNIT_TOKENS]
    int64_t stride;      // from one token to the next
};

// ---- few tokens: 16 rows × up to 16 tokens ----

template <int TOKENS>
INLINE void add_part(const int32_t *integers, Floats row_scales, const float *scales, Floats (&total)[TOKENS]) {
    UNROLL for (int i = 0; i < TOKENS; i++)
        total[i] += scales[i] * (__builtin_convertvector(load<Ints>(integers + i * 16), Floats) * row_scales);
}

// A part of this batch, if there is one: tile numbers have to be literals.
#define MULTIPLY_PART(number, left, right)                                                                             \
    if (number < left_over) {                                                                                          \
        _tile_zero(number);                                                                                            \
        _tile_loadd(left, tokens + number * DEPTH, x.stride);                                                          \
        _tile_loadd(right, weights + number * DEPTH * 16, ROW_BYTES);                                                  \
        _tile_dpbssd(number, left, right);                                                                             \
    }
#define STORE_PART(number)                                                                                             \
    if (number < left_over)                                                                                            \
        _tile_stored(number, to[number], ROW_BYTES);

// Four parts at a time, for sums take long to leave a tile; they are added with the next four, so that tiles and vectors
// work at the same time. Prefetches as many blocks from `ahead` on, if not null.
template <int TOKENS, int PARTS>
void multiply_int4(const Int4Panel &panel, int64_t blocks, const Int4Tokens &x, const char *ahead, float *sums,
                   int64_t stride, bool add) {
    constexpr int64_t DEPTH = 64 / PARTS, BATCH = 4;
    alignas(64) int32_t integers[2][BATCH][TILE_SUMS];
    const int64_t parts = blocks * PARTS;
    Floats total[TOKENS] = {};
    if (add)
        UNROLL for (int i = 0; i < TOKENS; i++)
            total[i] = load<Floats>(sums + i * stride);
    for (int64_t part = 0; part < parts + BATCH; part += BATCH) {
        const int64_t left_over = parts - part, done = part - BATCH;
        const char *weights = panel.values + part * DEPTH * 16;
        const int8_t *tokens = x.bytes + part * DEPTH;
        int32_t(*to)[TILE_SUMS] = integers[part / BATCH % 2], (*from)[TILE_SUMS] = integers[1 - part / BATCH % 2];
        MULTIPLY_PART(0, 4, 6)
        MULTIPLY_PART(1, 5, 7)
        MULTIPLY_PART(2, 4, 6)
        MULTIPLY_PART(3, 5, 7)
        STORE_PART(0)
        STORE_PART(1)
        STORE_PART(2)
        STORE_PART(3)
        finish_writes();
        if (ahead)
            UNROLL for (int64_t line = 0; line < BATCH * INT4_BLOCK_BYTES / PARTS; line += 64)
                __builtin_prefetch(ahead + part * INT4_BLOCK_BYTES / PARTS + line, 0, 2);
        if (done >= 0 && left_over >= 0)
            UNROLL for (int i = 0; i < BATCH; i++)
                add_part<TOKENS>(from[i], load<Floats>(panel.scales[done + i]),
                                 x.scales + (done + i) / PARTS * UNIT_TOKENS, total);
        else if (done >= 0)
            for (int64_t i = 0; i < BATCH + left_over; i++)
                add_part<TOKENS>(from[i], load<Floats>(panel.scales[done + i]),
                                 x.scales + (done + i) / PARTS * UNIT_TOKENS, total);
    }
    UNROLL for (int i = 0; i < TOKENS; i++)
        store(sums + i * stride, total[i]);
}
template <int PARTS, int TOKENS = 16>
void multiply_int4_of(int64_t count, const Int4Panel &panel, int64_t blocks, const Int4Tokens &x, const char *ahead,
                      float *sums, int64_t stride, bool add) {
    if constexpr (TOKENS > 1)
        if (count < TOKENS)
            return multiply_int4_of<PARTS, TOKENS - 1>(count, panel, blocks, x, ahead, sums, stride, add);
    multiply_int4<TOKENS, PARTS>(panel, blocks, x, ahead, sums, stride, add);
}

// Some blocks of 16 rows' columns with all tokens.
template <int PARTS>
void int4_panel(const Rows &rows, int64_t row, int64_t first, const Tokens &tokens, float *sums, int64_t stride, bool add,
                Int4Panel &panel) {
    const int64_t all = rows.columns / 64, blocks = min(INT4_BLOCKS, all - first);
    unpack_int4<PARTS>(rows, row, first, blocks, panel);
    finish_writes();
    const char *next = rows.data + row * rows.row_bytes + (first + blocks) * INT4_BLOCK_BYTES; // the next panel's
    for (int64_t token = 0; token < tokens.count; token += 16) {
        const Int4Tokens x{tokens.bytes + token * tokens.stride + first * 64,
                           tokens.scales + token * all + first * UNIT_TOKENS, tokens.stride};
        const bool last = token + 16 >= tokens.count;
        multiply_int4_of<PARTS>(tokens.count - token, panel, blocks, x, last ? next : nullptr,
                                sums + token * stride + row, stride, add || first);
    }
}
// ---- many tokens: 32 rows × 32 tokens ----

// One part's integers of 16 tokens, added to sums[token × stride + lane].
INLINE void add_tile(const int32_t *integers, Floats row_scales, const float *scales, float *sums, int64_t stride) {
    UNROLL for (int64_t i = 0; i < UNIT_TOKENS; i++) {
        float *to = sums + i * stride;
        const Floats scaled = __builtin_convertvector(load<Ints>(integers + i * 16), Floats) * row_scales;
        store(to, load<Floats>(to) + scales[i] * scaled);
    }
}
// 32 tokens: the second 16's scales are `apart` floats after the first's. A part's sums are added after the next part's
// products.
template <int PARTS>
void multiply_int4_square(const Int4Panel (&panels)[2], int64_t blocks, const Int4Tokens &x, int64_t apart, float *sums,
                          int64_t stride, bool add) {
    constexpr int64_t DEPTH = 64 / PARTS;
    alignas(64) int32_t integers[4][TILE_SUMS];
    const int64_t parts = blocks * PARTS;
    for (int64_t i = 0; !add && i < SIDE; i++) {
        store(sums + i * stride, Floats{});
        store(sums + i * stride + 16, Floats{});
    }
    for (int64_t part = 0; part <= parts; part++) {
        if (part < parts) {
            const int8_t *tokens = x.bytes + part * DEPTH;
            zero_sums();
            _tile_loadd(4, tokens, x.stride);
            _tile_loadd(6, panels[0].values + part * DEPTH * 16, ROW_BYTES);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(7, panels[1].values + part * DEPTH * 16, ROW_BYTES);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, tokens + 16 * x.stride, x.stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
            UNROLL for (int64_t i = 0; i < SIDE; i++)
                __builtin_prefetch(tokens + DEPTH + i * x.stride);
        }
        const int64_t done = part - 1;
        for (int64_t tile = 0; part && tile < 4; tile++)
            add_tile(integers[tile], load<Floats>(panels[tile % 2].scales[done]),
                     x.scales + tile / 2 * apart + done / PARTS * UNIT_TOKENS, sums + tile / 2 * 16 * stride + tile % 2 * 16,
                     stride);
        if (part < parts) {
            _tile_stored(0, integers[0], ROW_BYTES);
            _tile_stored(1, integers[1], ROW_BYTES);
            _tile_stored(2, integers[2], ROW_BYTES);
            _tile_stored(3, integers[3], ROW_BYTES);
            finish_writes();
        }
    }
}
template <int PARTS>
void int4_squares(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, Int4Panel (&panels)[2]) {
    const int64_t all = rows.columns / 64;
    for (int64_t first = 0; first < all; first += INT4_SQUARE_BLOCKS)
        for (int64_t row = 0; row < rows.count; row += SIDE) {
            const int64_t blocks = min(INT4_SQUARE_BLOCKS, all - first);
            unpack_int4<PARTS>(rows, row, first, blocks, panels[0]);
            unpack_int4<PARTS>(rows, row + 16 < rows.count ? row + 16 : row, first, blocks, panels[1]);
            finish_writes();
            for (int64_t token = 0; token < tokens.count; token += SIDE) {
                const Int4Tokens x{tokens.bytes + token * tokens.stride + first * 64,
                                   tokens.scales + token * all + first * UNIT_TOKENS, tokens.stride};
                multiply_int4_square<PARTS>(panels, blocks, x, UNIT_TOKENS * all, sums + token * stride + row, stride,
                                            add || first);
            }
        }
}

// ---- all rows with all tokens ----

template <int PARTS>
void int4_rows(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, Int4Panel (&panels)[2]) {
    const int64_t blocks = rows.columns / 64;
    if (tokens.count > SIDE) {
        configure(16, 64 / PARTS);
        return int4_squares<PARTS>(rows, tokens, sums, stride, add, panels);
    }
    configure(static_cast<int>(min(16, tokens.count)), 64 / PARTS);
    for (int64_t row = 0; row < rows.count; row += INT4_ROWS) // each tile of rows from end to end, as it is stored
        for (int64_t first = 0; first < blocks; first += INT4_BLOCKS)
            int4_panel<PARTS>(rows, row, first, tokens, sums, stride, add, panels[0]);
}
