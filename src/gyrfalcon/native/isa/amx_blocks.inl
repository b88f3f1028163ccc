// ---- linears by tiles, weights of bf16 and int8: 32 rows at a time, 2 × 2 tiles of sums ----
//
//                 tokens          sums [16 rows, 16 tokens]
//                 6    7          weights [16 rows, 64 bytes]
//   rows 0…15   4  0    1         tokens [16 × 4 bytes, 16 tokens, 4 bytes]
//   rows 16…31  5  2    3
//
// bf16: 32 tokens, summed in float32. int8: 16 tokens of int16, as everywhere, in two bytes: 6 are the upper ones, 7 the
// lower ones, unsigned. Their sums are integers, exact for INT16_COLUMNS.

constexpr int64_t BLOCK_SUMS = 4 * TILE_SUMS;
constexpr int64_t STEP_BYTES = 32 * ROW_BYTES; // of a block's weights, and of its tokens
static_assert(STEP_BYTES == UNIT_STEP_BYTES);
// Packed weights of so many steps stay in L1 for all tokens.
constexpr int64_t STEPS_AT_ONCE = TRANSPOSED_STEPS, INT8_STEPS = INT16_COLUMNS / 64;
constexpr int64_t AHEAD_STEPS = 8; // that streamed weights are prefetched

// A thread's scratch; the blocks' sums follow it, [row blocks, token groups, 4 tiles].
struct Memory {
    alignas(64) char weights[STEPS_AT_ONCE * STEP_BYTES];
};

// The last bytes of a row, padded with zeros.
template <int64_t BYTES> struct Filled {
    char bytes[BYTES] = {};
    INLINE_MEMBER Filled(const char *from, int64_t left) { memcpy(bytes, from, static_cast<size_t>(left)); }
};

// ---- transposing tokens in groups of 4 bytes, as tiles are laid out ----

// 64 bytes of each of 16 rows.
INLINE void transpose_tile(const char *rows, int64_t row_bytes, int64_t first, int64_t count, int64_t place, char *to) {
    Floats square[WIDTH];                   // of any bits
    UNROLL for (int i = 0; i < WIDTH; i++) { // padded with the last token, whose extra sums are unused
        const char *from = rows + min(first + i, count - 1) * row_bytes + place;
        const int64_t left = row_bytes - place;
        square[i] = left >= ROW_BYTES ? load<Floats>(from) : load<Floats>(Filled<ROW_BYTES>(from, left).bytes);
    }
    transpose(square);
    UNROLL for (int i = 0; i < WIDTH; i++)
        store(to + i * ROW_BYTES, square[i]);
}
// Where a step of a group's tokens begins, of `steps` in all and STEPS in a block.
template <int64_t STEPS> INLINE int64_t step_place(int64_t step, int64_t steps, int64_t group, int64_t groups) {
    const int64_t first = step / STEPS * STEPS;
    return (first * groups + group * min(STEPS, steps - first) + step - first) * STEP_BYTES;
}

void transpose_tokens(const char *tokens, int64_t row_bytes, int64_t count, int64_t block, int64_t group, int64_t groups,
                      char *to) {
    const int64_t steps = unit_steps(row_bytes), first = block * TRANSPOSED_STEPS;
    for (int64_t step = first; step < min(steps, first + TRANSPOSED_STEPS); step++) {
        char *place = to + step_place<TRANSPOSED_STEPS>(step, steps, group, groups);
        transpose_tile(tokens, row_bytes, 0, count, step * ROW_BYTES, place);
        transpose_tile(tokens, row_bytes, 16, count, step * ROW_BYTES, place + TILE_BYTES);
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
    const int64_t steps = unit_steps(stride), first = block * INT8_STEPS;
    for (int64_t step = first; step < min(steps, first + INT8_STEPS); step++) {
        alignas(64) char bytes[2][16][64];
        for (int64_t i = 0; i < count; i++)
            split_columns(tokens + i * stride + step * 64, stride - step * 64, bytes[0][i], bytes[1][i]);
        char *place = to + step_place<INT8_STEPS>(step, steps, group, groups);
        transpose_tile(bytes[0][0], ROW_BYTES, 0, count, 0, place);
        transpose_tile(bytes[1][0], ROW_BYTES, 0, count, 0, place + TILE_BYTES);
    }
}

// ---- 32 rows × some tokens, some steps of them ----

// 32 rows of weights, as stored or packed to [steps, 32 rows, 64 bytes].
struct BlockWeights {
    const char *first;
    int64_t row_bytes;
    int64_t step_bytes;
};
// What a block fetches for later ones: 64 bytes of some rows with each step.
struct Ahead {
    const char *first;
    int64_t row_bytes;
    int64_t rows;
    int64_t turn; // the step that goes on in the next rows
    int64_t skip; // bytes to them
};
struct Block {
    BlockWeights weights;
    Ahead ahead;
    const char *tokens;  // [steps, 2 tiles]
    const float *scales; // of int8: [16 tokens]
    int64_t steps;
    bool add;    // else sums start from zero
    float *sums; // [4 tiles, 16 rows, 16 tokens], of int8 [2 tiles, ...]
};

INLINE void load_sums(const float *sums) {
    _tile_loadd(0, sums, ROW_BYTES);
    _tile_loadd(1, sums + TILE_SUMS, ROW_BYTES);
    _tile_loadd(2, sums + 2 * TILE_SUMS, ROW_BYTES);
    _tile_loadd(3, sums + 3 * TILE_SUMS, ROW_BYTES);
}
template <class Number> INLINE void store_sums(Number *sums) {
    _tile_stored(0, sums, ROW_BYTES);
    _tile_stored(1, sums + TILE_SUMS, ROW_BYTES);
    _tile_stored(2, sums + 2 * TILE_SUMS, ROW_BYTES);
    _tile_stored(3, sums + 3 * TILE_SUMS, ROW_BYTES);
}

INLINE void prefetch_step(const Ahead &ahead, int64_t step) {
    const char *from = ahead.first + step * ROW_BYTES + (step >= ahead.turn ? ahead.skip : 0);
    for (int64_t i = 0; i < ahead.rows; i++, from += ahead.row_bytes)
        __builtin_prefetch(from, 0, 2);
}

// The four products of a step, by the instructions `left` and `right`: tile numbers have to be literals.
#define MULTIPLY_STEPS(left, right)                                                                                    \
    do {                                                                                                               \
        const char *weights = block.weights.first, *tokens = block.tokens;                                             \
        const int64_t row_bytes = block.weights.row_bytes;                                                             \
        for (int64_t step = 0; step < block.steps; step++, weights += block.weights.step_bytes, tokens += PAIR_BYTES) { \
            prefetch_step(block.ahead, step);                                                                          \
            _tile_loadd(4, weights, row_bytes);                                                                        \
            _tile_loadd(6, tokens, ROW_BYTES);                                                                         \
            left(0, 4, 6);                                                                                             \
            _tile_loadd(7, tokens + TILE_BYTES, ROW_BYTES);                                                            \
            right(1, 4, 7);                                                                                            \
            _tile_loadd(5, weights + 16 * row_bytes, row_bytes);                                                       \
            left(2, 5, 6);                                                                                             \
            right(3, 5, 7);                                                                                            \
        }                                                                                                              \
    } while (0)

void multiply_bf16(const Block &block) {
    block.add ? load_sums(block.sums) : zero_sums();
    MULTIPLY_STEPS(_tile_dpbf16ps, _tile_dpbf16ps);
    store_sums(block.sums);
}

// Adds the sums of both bytes, scaled by the tokens' scales.
void multiply_int8(const Block &block) {
    alignas(64) int32_t bytes[BLOCK_SUMS];
    zero_sums();
    MULTIPLY_STEPS(_tile_dpbssd, _tile_dpbsud);
    store_sums(bytes);
    finish_writes();
    const Floats scales = load<Floats>(block.scales);
    for (int tile = 0; tile < 2; tile++)
        UNROLL for (int row = 0; row < 16; row++) {
            const int32_t *upper = bytes + 2 * tile * TILE_SUMS + row * 16;
            float *sums = block.sums + tile * TILE_SUMS + row * 16;
            const Ints both = (Ints)((load<Words>(upper) << 8) + load<Words>(upper + TILE_SUMS));
            const Floats scaled = __builtin_convertvector(both, Floats) * scales;
            store(sums, block.add ? load<Floats>(sums) + scaled : scaled);
        }
}

// ---- kinds of weights ----

struct Bf16Weights {
    static constexpr int64_t steps = STEPS_AT_ONCE, tokens = 32, tiles = 4; // at once; of sums
    static constexpr auto multiply = multiply_bf16;
    static int64_t streamed_steps(int64_t all) { return all; }
};
struct I8Weights {
    static constexpr int64_t steps = INT8_STEPS, tokens = 16, tiles = 2;
    static constexpr auto multiply = multiply_int8;
    static int64_t streamed_steps(int64_t) { return steps; }
};

// 32 rows from `row` on, padded with the last one, whose extra sums are unused.
void pack(const Rows &rows, int64_t row, int64_t first, int64_t steps, char *to) {
    for (int64_t i = 0; i < SIDE; i++) {
        const char *from = rows.data + min(row + i, rows.count - 1) * rows.row_bytes;
        for (int64_t step = 0; step < steps; step++) {
            const int64_t place = (first + step) * ROW_BYTES, left = rows.row_bytes - place;
            char *line = to + step * STEP_BYTES + i * ROW_BYTES;
            if (left >= ROW_BYTES)
                memcpy(line, from + place, ROW_BYTES);
            else
                store(line, load<Floats>(Filled<ROW_BYTES>(from + place, left).bytes));
        }
    }
}

// ---- all rows with all tokens ----

template <class Kind> struct Blocks {
    const Rows &rows;
    const Tokens &tokens;
    float *sums; // [row blocks, token groups, tiles]
    int64_t steps = unit_steps(rows.row_bytes);
    int64_t groups = (tokens.count + Kind::tokens - 1) / Kind::tokens;

    // Some steps of a block of rows with all tokens, each group of which takes its share of prefetching.
    void multiply(const BlockWeights &weights, Ahead ahead, int64_t block, int64_t first, int64_t count) const {
        ahead.rows = (SIDE + groups - 1) / groups;
        for (int64_t group = 0; group < groups; group++, ahead.first += ahead.rows * ahead.row_bytes) {
            const int64_t scale = (group * int16_blocks(rows.columns) + first / INT8_STEPS) * UNIT_TOKENS;
            const int64_t number = tokens.first / Kind::tokens + group; // among all groups
            const int64_t place = step_place<Kind::steps>(first, steps, number, tokens.stride);
            Kind::multiply({weights, ahead, tokens.tiles + place, tokens.scales ? tokens.scales + scale : nullptr, count,
                            first > 0, sums + (block * groups + group) * Kind::tiles * TILE_SUMS});
        }
    }
    // Few tokens: each block of rows from end to end, as stored.
    void stream(int64_t block) const {
        for (int64_t first = 0; first < steps; first += Kind::streamed_steps(steps)) {
            const char *from = rows.data + block * SIDE * rows.row_bytes + first * ROW_BYTES;
            const Ahead ahead{from + AHEAD_STEPS * ROW_BYTES, rows.row_bytes, SIDE, steps - first - AHEAD_STEPS,
                              (SIDE - 1) * rows.row_bytes};
            multiply({from, rows.row_bytes, ROW_BYTES}, ahead, block, first,
                     min(Kind::streamed_steps(steps), steps - first));
        }
    }
    void pack_and_multiply(int64_t block, int64_t first, int64_t first_packed, char *packed) const {
        const int64_t count = min(Kind::steps, steps - first);
        pack(rows, block * SIDE, first, count, packed);
        finish_writes();
        const bool last = (block + 1) * SIDE >= rows.count; // of the rows
        const char *next = rows.data + (last ? first_packed : block + 1) * SIDE * rows.row_bytes +
                           (first + (last ? count : 0)) * ROW_BYTES;
        multiply({packed, ROW_BYTES, STEP_BYTES}, {next, rows.row_bytes, SIDE, count, 0}, block, first, count);
    }
};

// Transposed, times the rows' scales if any, stored or added to sums[token × stride + row].
void deliver(const float *tile, const Rows &rows, int64_t row, int64_t tokens, float *sums, int64_t stride, bool add) {
    const auto *scales = rows.kind == GF_I8 ? reinterpret_cast<const float *>(rows.scales) : nullptr;
    Floats square[WIDTH];
    UNROLL for (int k = 0; k < WIDTH; k++)
        square[k] = load<Floats>(tile + k * 16) * (scales ? scales[min(row + k, rows.count - 1)] : 1.0f);
    transpose(square);
    UNROLL for (int k = 0; k < WIDTH; k++)
        if (k < tokens) {
            float *to = sums + k * stride + row;
            store(to, add ? load<Floats>(to) + square[k] : square[k]);
        }
}

template <class Kind>
void block_rows(const Rows &rows, const Tokens &tokens, float *sums, int64_t stride, bool add, void *memory) {
    auto *own = static_cast<Memory *>(memory);
    auto *tiles = reinterpret_cast<float *>(own + 1);
    const Blocks<Kind> all{rows, tokens, tiles};
    const bool few = tokens.stride * Kind::tokens <= SIDE && rows.row_bytes % ROW_BYTES == 0;
    const int64_t streamed = few ? rows.count / SIDE : 0;
    configure(16, ROW_BYTES);
    for (int64_t block = 0; block < streamed; block++)
        all.stream(block);
    for (int64_t first = 0; first < all.steps; first += Kind::steps)
        for (int64_t block = streamed; block < sides(rows.count); block++)
            all.pack_and_multiply(block, first, streamed, own->weights);
    finish_writes();
    for (int64_t block = 0; block < sides(rows.count); block++)
        for (int64_t group = 0; group < all.groups; group++)
            for (int64_t tile = 0; tile < Kind::tiles; tile++, tiles += TILE_SUMS) {
                const int64_t halves = Kind::tokens / 16;
                const int64_t token = group * Kind::tokens + tile % halves * 16;
                deliver(tiles, rows, block * SIDE + tile / halves * 16, tokens.count - token, sums + token * stride,
                        stride, add);
            }
}
