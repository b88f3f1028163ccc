// ---- few tokens: 32 rows of weights at a time, from end to end, as they are stored ----

// Sums of all tokens.
struct StreamSums {
    alignas(64) float sums[SIDE][SIDE] = {}; // [rows, tokens]
};

template <class Kind> struct Streams {
    const Rows &rows;
    const Tokens &tokens;
    float *sums;
    int64_t stride;
    bool add;
    char *packed; // [UNIT_STEPS, 32 lines]
    int64_t steps = unit_steps(rows.row_bytes);
    int64_t groups = (tokens.count + Kind::tokens - 1) / Kind::tokens;

    // Where tiles are loaded from: lines that are not whole, or missing, are copied.
    Left lines(int64_t row, int64_t first, int64_t count) const {
        if (row + SIDE <= rows.count && rows.row_bytes % ROW_BYTES == 0)
            return {rows.data + row * rows.row_bytes + first * ROW_BYTES, rows.row_bytes, ROW_BYTES};
        for (int64_t step = 0; step < count; step++) {
            const Lines from{rows.data, rows.row_bytes, rows.count, (first + step) * ROW_BYTES};
            for (int64_t i = 0; i < SIDE; i++)
                store(packed + step * STEP_BYTES + i * ROW_BYTES, from[row + i]);
        }
        finish_writes();
        return {packed, ROW_BYTES, STEP_BYTES};
    }
    // While some steps are multiplied as many are fetched, each group's share.
    Later later(int64_t row, int64_t first, int64_t group) const {
        const bool last = first + UNIT_STEPS >= steps;
        const int64_t share = SIDE / groups, next = last ? 0 : first + UNIT_STEPS;
        const int64_t next_row = (last ? row + SIDE : row) + group * share;
        return {rows.data + next_row * rows.row_bytes + next * ROW_BYTES, rows.row_bytes, share};
    }
    const char *tokens_at(int64_t first, int64_t group) const {
        return tokens.tiles + step_place(first, steps, group, groups);
    }

    void multiply(int64_t row, StreamSums &to, Bf16Weights) const {
        zero_sums();
        for (int64_t first = 0; first < steps; first += UNIT_STEPS) {
            const int64_t count = min(UNIT_STEPS, steps - first);
            const Sides sides{lines(row, first, count), tokens_at(first, 0)};
            const Later next = later(row, first, 0);
            MULTIPLY_STEPS(false, sides, count, next, _tile_dpbf16ps, _tile_dpbf16ps, _tile_dpbf16ps, _tile_dpbf16ps);
        }
        store_sums(to.sums[0], SIDE);
    }
    void multiply(int64_t row, StreamSums &to, I8Weights) const {
        const RowScales row_scales(rows, row);
        for (int64_t first = 0; first < steps; first += UNIT_STEPS) {
            const int64_t count = min(UNIT_STEPS, steps - first);
            const Left left = lines(row, first, count);
            for (int64_t group = 0; group < groups; group++) {
                alignas(64) int32_t bytes[SIDE][SIDE]; // [rows, 16 upper and 16 lower ones]
                const Sides sides{left, tokens_at(first, group)};
                const Later next = later(row, first, group);
                zero_sums();
                MULTIPLY_STEPS(false, sides, count, next, _tile_dpbssd, _tile_dpbsud, _tile_dpbssd, _tile_dpbsud);
                store_sums(bytes[0], SIDE);
                finish_writes();
                const int64_t scale = (group * int16_blocks(rows.columns) + first / UNIT_STEPS) * UNIT_TOKENS;
                const Floats scales = load<Floats>(tokens.scales + scale);
                UNROLL for (int64_t i = 0; i < SIDE; i++) {
                    float *place = to.sums[i] + group * UNIT_TOKENS;
                    const Floats sum = sum_of_bytes(bytes[i], bytes[i] + UNIT_TOKENS);
                    store(place, load<Floats>(place) + sum * (scales * row_scales.each[i]));
                }
            }
        }
    }
    // 16 rows × 16 tokens, transposed, stored or added to sums[token × stride + row].
    void deliver(const StreamSums &from, int64_t row, int64_t half, int64_t first) const {
        Floats square[WIDTH];
        UNROLL for (int i = 0; i < WIDTH; i++)
            square[i] = load<Floats>(from.sums[half + i] + first);
        transpose(square);
        UNROLL for (int i = 0; i < WIDTH; i++) {
            float *to = sums + (first + i) * stride + row + half;
            store(to, add ? load<Floats>(to) + square[i] : square[i]);
        }
    }
    void multiply() const {
        for (int64_t row = 0; row < rows.count; row += SIDE) {
            StreamSums all;
            multiply(row, all, Kind{});
            finish_writes();
            for (int64_t half = 0; half < SIDE; half += 16)
                for (int64_t first = 0; first < tokens.count; first += 16)
                    deliver(all, row, half, first);
        }
    }
};
