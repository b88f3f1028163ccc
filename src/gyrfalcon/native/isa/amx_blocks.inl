// ---- many tokens: 32 rows of weights are packed, some steps at a time, for all tokens ----

INLINE void load_sums(const float *sums, int64_t stride) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + 16, bytes);
    _tile_loadd(2, sums + 16 * stride, bytes);
    _tile_loadd(3, sums + 16 * stride + 16, bytes);
}

// Some steps of 32 rows with a group of tokens.
struct Block {
    Sides sides; // tokens, weights
    int64_t steps;
    Later later;
    const float *token_scales; // of int8: [16 tokens]
    const float *row_scales;   // of int8: [32 rows]
    float *sums;               // [tokens, stride]
    int64_t stride;
    bool add; // else sums start from zero
};

void multiply_block(const Block &block, Bf16Weights) {
    block.add ? load_sums(block.sums, block.stride) : zero_sums();
    MULTIPLY_STEPS(true, block.sides, block.steps, block.later, _tile_dpbf16ps, _tile_dpbf16ps, _tile_dpbf16ps,
                   _tile_dpbf16ps);
    store_sums(block.sums, block.stride);
}
void multiply_block(const Block &block, I8Weights) {
    alignas(64) int32_t bytes[2][UNIT_TOKENS][SIDE]; // upper and lower ones
    zero_sums();
    MULTIPLY_STEPS(true, block.sides, block.steps, block.later, _tile_dpbssd, _tile_dpbssd, _tile_dpbusd, _tile_dpbusd);
    store_sums(bytes[0][0], SIDE);
    finish_writes();
    for (int64_t half = 0; half < SIDE; half += WIDTH) {
        const Floats row_scales = load<Floats>(block.row_scales + half);
        UNROLL for (int64_t i = 0; i < UNIT_TOKENS; i++) {
            const Floats sum = sum_of_bytes(bytes[0][i] + half, bytes[1][i] + half);
            float *place = block.sums + i * block.stride + half;
            const Floats before = block.add ? load<Floats>(place) : Floats{}; // always a fused multiply-add follows
            store(place, before + sum * (block.token_scales[i] * row_scales));
        }
    }
}

// A group's tokens and a block's weights of UNIT_STEPS lie in the first-level cache side by side; all tokens' of so many
// steps stay in the second, with the sums of some rows.
template <class Kind> struct Blocks {
    const Rows &rows;
    const Tokens &tokens;
    float *sums;
    int64_t stride;
    bool add;
    char *packed; // [UNIT_STEPS, 2 tiles]
    int64_t steps = unit_steps(rows.row_bytes);
    int64_t groups = (tokens.count + Kind::tokens - 1) / Kind::tokens;

    // Some steps of the 32 rows from `row` on, with all tokens, each group of which takes its share of prefetching.
    void multiply(int64_t row, int64_t first, const char *later) const {
        const int64_t count = min(UNIT_STEPS, steps - first), share = (SIDE + groups - 1) / groups;
        const RowScales scales(rows, row);
        for (int64_t half = 0; half < 2; half++)
            for (int64_t step = 0; step < count; step++)
                transpose_tile({rows.data, rows.row_bytes, rows.count, (first + step) * ROW_BYTES}, row + 16 * half,
                               packed + step * STEP_BYTES + half * TILE_BYTES);
        finish_writes();
        for (int64_t group = 0; group < groups; group++, later += share * rows.row_bytes) {
            const int64_t number = tokens.first / Kind::tokens + group; // among all groups
            const char *from = tokens.tiles + step_place(first, steps, number, tokens.stride);
            const int64_t scale = (group * int16_blocks(rows.columns) + first / UNIT_STEPS) * UNIT_TOKENS;
            multiply_block({{{from, ROW_BYTES, STEP_BYTES}, packed}, count, {later, rows.row_bytes, share},
                            tokens.scales ? tokens.scales + scale : nullptr, scales.each,
                            sums + group * Kind::tokens * stride + row, stride, add || first > 0},
                           Kind{});
        }
    }
    void multiply() const {
        for (int64_t first = 0; first < steps; first += UNIT_STEPS)
            for (int64_t row = 0; row < rows.count; row += SIDE) {
                const bool last = row + SIDE >= rows.count;
                const int64_t next_row = last ? 0 : row + SIDE, next = last ? first + UNIT_STEPS : first;
                multiply(row, first, rows.data + next_row * rows.row_bytes + next * ROW_BYTES);
            }
    }
};
