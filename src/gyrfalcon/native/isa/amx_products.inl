// ---- products by tiles, weights of bf16 and int8: 2 × 2 tiles of sums at a time ----
//
//              right
//              6    7
//   left   4   0    1
//          5   2    3
//
// Left are 16 lines of 64 bytes each; right are as many columns, [16 × 4 bytes, 16 columns, 4 bytes]. Many tokens are on the
// left as they are, and weights on the right, so that sums come out in their order (amx_blocks.inl). Few tokens are on the
// right, and weights on the left as they are stored, read once from memory (amx_streams.inl).
//
// bf16: 32 rows and 32 tokens, summed in float32. int8: 32 rows and 16 tokens of int16, as everywhere, in two tiles: their
// upper bytes, and the lower ones, unsigned. Their sums are integers, exact for INT16_COLUMNS.

constexpr int64_t STEP_BYTES = 2 * TILE_BYTES; // of a block's weights, and of its tokens, for 64 bytes of a row
static_assert(STEP_BYTES == UNIT_STEP_BYTES);
static_assert(UNIT_STEPS == INT16_COLUMNS / 64); // an int16 token's scale is of so many columns

// Few tokens: at most 32.
struct Bf16Weights {
    static constexpr int64_t tokens = 32; // at once
    static bool few(int64_t groups) { return groups == 1; }
};
struct I8Weights {
    static constexpr int64_t tokens = UNIT_TOKENS;
    static bool few(int64_t groups) { return groups <= 2; }
};

// ---- lines and squares of them ----

// The last bytes of a line, padded with zeros.
template <int64_t BYTES> struct Filled {
    char bytes[BYTES] = {};
    INLINE_MEMBER Filled(const char *from, int64_t left) { memcpy(bytes, from, static_cast<size_t>(left)); }
};
// 64 bytes of any kind, padded with zeros where fewer are left.
INLINE Floats line_of(const char *from, int64_t left) {
    return left >= ROW_BYTES ? load<Floats>(from) : load<Floats>(Filled<ROW_BYTES>(from, left).bytes);
}

// Rows of weights or tokens, from a byte on. Missing ones are the last one again: their sums are unused.
struct Lines {
    const char *data;
    int64_t row_bytes;
    int64_t count;
    int64_t byte;

    INLINE_MEMBER Floats operator[](int64_t row) const {
        return line_of(data + min(row, count - 1) * row_bytes + byte, row_bytes - byte);
    }
};
// 16 lines from `first` on become a tile for the right side.
INLINE void transpose_tile(const Lines &lines, int64_t first, char *to) {
    Floats square[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i++)
        square[i] = lines[first + i];
    transpose(square);
    UNROLL for (int i = 0; i < WIDTH; i++)
        store(to + i * ROW_BYTES, square[i]);
}

// Of 32 rows of int8 weights.
struct RowScales {
    alignas(64) float each[SIDE] = {};
    RowScales(const Rows &rows, int64_t row) {
        for (int64_t i = 0; rows.kind == GF_I8 && i < SIDE; i++)
            each[i] = load<float>(rows.scales + 4 * min(row + i, rows.count - 1));
    }
};

// ---- tokens ----

// Where a step of a group's tokens begins, of `steps` in all.
INLINE int64_t step_place(int64_t step, int64_t steps, int64_t group, int64_t groups) {
    const int64_t first = step / UNIT_STEPS * UNIT_STEPS;
    return (first * groups + group * min(UNIT_STEPS, steps - first) + step - first) * STEP_BYTES;
}

void gather_tokens(const char *tokens, int64_t row_bytes, int64_t count, int64_t block, int64_t group, int64_t groups,
                   char *to) {
    const int64_t steps = unit_steps(row_bytes), first = block * UNIT_STEPS;
    for (int64_t step = first; step < min(steps, first + UNIT_STEPS); step++) {
        const Lines lines{tokens, row_bytes, count, step * ROW_BYTES};
        char *place = to + step_place(step, steps, group, groups);
        if (Bf16Weights::few(groups)) {
            transpose_tile(lines, 0, place);
            transpose_tile(lines, 16, place + TILE_BYTES);
        } else {
            for (int64_t i = 0; i < SIDE; i++)
                store(place + i * ROW_BYTES, lines[i]);
        }
    }
}

// The upper and the lower bytes of 64 columns, of which `left` exist.
INLINE void split_columns(const int16_t *from, int64_t left, char *upper, char *lower) {
    UNROLL for (int half = 0; half < 2; half++) {
        alignas(64) int16_t copy[32] = {};
        if (left >= 32 * (half + 1)) // a multiple of 32
            memcpy(copy, from + 32 * half, sizeof copy);
        const Shorts numbers = load<Shorts>(copy);
        store(upper + 32 * half, __builtin_convertvector(numbers >> 8, ManyBytes));
        store(lower + 32 * half, __builtin_convertvector(numbers, ManyBytes));
    }
}
// Of each 64 columns the upper bytes, then the lower ones.
void split_tokens(const int16_t *tokens, int64_t stride, int64_t count, int64_t block, int64_t group, int64_t groups,
                  char *to) {
    const int64_t steps = unit_steps(stride), first = block * UNIT_STEPS;
    for (int64_t step = first; step < min(steps, first + UNIT_STEPS); step++) {
        alignas(64) char bytes[2][UNIT_TOKENS][ROW_BYTES];
        char *place = to + step_place(step, steps, group, groups);
        const bool few = I8Weights::few(groups);
        char *upper = few ? bytes[0][0] : place, *lower = few ? bytes[1][0] : place + TILE_BYTES;
        for (int64_t i = 0; i < UNIT_TOKENS; i++)
            split_columns(tokens + min(i, count - 1) * stride + step * 64, stride - step * 64, upper + i * ROW_BYTES,
                          lower + i * ROW_BYTES);
        if (few) {
            transpose_tile({upper, ROW_BYTES, UNIT_TOKENS, 0}, 0, place);
            transpose_tile({lower, ROW_BYTES, UNIT_TOKENS, 0}, 0, place + TILE_BYTES);
        }
    }
}

// ---- some steps ----

// 32 lines, 16 of which are a tile.
struct Left {
    const char *first;
    int64_t row_bytes;
    int64_t step_bytes;
};
// What is fetched into the second-level cache for later ones: 64 bytes of some rows with each step.
struct Later {
    const char *first;
    int64_t row_bytes;
    int64_t rows;
};
INLINE void prefetch_later(const Later &later, int64_t step) {
    const char *from = later.first + step * ROW_BYTES;
    for (int64_t row = 0; row < later.rows; row++)
        __builtin_prefetch(from + row * later.row_bytes, 0, 2);
}
// A quarter of a step's tokens, into the first-level cache.
INLINE void prefetch_tokens(const char *tokens, int quarter) {
    UNROLL for (int line = 0; line < 8; line++)
        __builtin_prefetch(tokens + (8 * quarter + line) * ROW_BYTES);
}

// The four products of each step, by instructions, for tile numbers have to be literals. With MANY the next step's tokens
// are fetched, or the next group's.
#define MULTIPLY_STEPS(MANY, sides, steps, later, multiply_0, multiply_1, multiply_2, multiply_3)                      \
    do {                                                                                                               \
        const char *left = (sides).left.first, *right = (sides).right;                                                 \
        const int64_t row_bytes = (sides).left.row_bytes;                                                              \
        for (int64_t step = 0; step < (steps); step++, left += (sides).left.step_bytes, right += STEP_BYTES) {         \
            prefetch_later(later, step);                                                                               \
            _tile_loadd(6, right, ROW_BYTES);                                                                          \
            if (MANY)                                                                                                  \
                prefetch_tokens(left + STEP_BYTES, 0);                                                                 \
            _tile_loadd(4, left, row_bytes);                                                                           \
            multiply_0(0, 4, 6);                                                                                       \
            if (MANY)                                                                                                  \
                prefetch_tokens(left + STEP_BYTES, 1);                                                                 \
            _tile_loadd(7, right + TILE_BYTES, ROW_BYTES);                                                             \
            multiply_1(1, 4, 7);                                                                                       \
            if (MANY)                                                                                                  \
                prefetch_tokens(left + STEP_BYTES, 2);                                                                 \
            _tile_loadd(5, left + 16 * row_bytes, row_bytes);                                                          \
            multiply_2(2, 5, 6);                                                                                       \
            if (MANY)                                                                                                  \
                prefetch_tokens(left + STEP_BYTES, 3);                                                                 \
            multiply_3(3, 5, 7);                                                                                       \
        }                                                                                                              \
    } while (0)

struct Sides {
    Left left;
    const char *right;
};

template <class Number> INLINE void store_sums(Number *sums, int64_t stride) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(Number));
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + 16, bytes);
    _tile_stored(2, sums + 16 * stride, bytes);
    _tile_stored(3, sums + 16 * stride + 16, bytes);
}
// The sum of 256 times the upper bytes' and the lower bytes' products.
INLINE Floats sum_of_bytes(const int32_t *upper, const int32_t *lower) {
    return __builtin_convertvector((Ints)((load<Words>(upper) << 8) + load<Words>(lower)), Floats);
}
