// ---- attention with online softmax over blocks of keys (Milakov and Gimelshein 2018) ----

// The positions of WIDTH keys from `first` on.
INLINE Ints key_numbers(int64_t first) {
    Ints number;
    UNROLL for (int i = 0; i < WIDTH; i++)
        number[i] = i;
    return number + static_cast<int32_t>(first);
}

// Slope, position and product rounded to bfloat16, as Falcon was trained (reference.alibi_bias).
INLINE Floats alibi_bias(float slope, Floats position) {
    return from_bf16(to_bf16(from_bf16(to_bf16(broadcast(slope))) * from_bf16(to_bf16(position))));
}

// `count` keys from `first` on, which are looked at together, and where they and their values lie in the cache.
struct KeyBlock {
    int64_t first, count;
    int64_t places[KEYS_AT_ONCE]; // in bytes
};
INLINE void find_keys(const AttentionWork &work, int64_t first, KeyBlock &found) {
    found.first = first;
    found.count = first < work.last ? min(KEYS_AT_ONCE, work.last - first) : 0;
    int64_t block = first / work.block_size, place = first % work.block_size;
    for (int64_t i = 0; i < found.count; i++) {
        found.places[i] = (work.table[block] * work.block_size + place) * work.token_bytes;
        if (++place == work.block_size)
            place = 0, block++;
    }
}

// Prefetches some keys and values of a block: rows are too far apart for hardware prefetchers.
INLINE void prefetch_keys(const AttentionWork &work, const KeyBlock &block, int64_t first, int64_t last) {
    const int64_t bytes = work.dim * bytes_of(work.kind);
    for (int64_t i = first; i < last; i++)
        for (int64_t place = block.places[i]; place < block.places[i] + bytes; place += 64) {
            __builtin_prefetch(work.keys + place, 0, NEAR);
            __builtin_prefetch(work.values + place, 0, NEAR);
        }
}

// A row and a block of keys.
struct OneRow {
    float *scores;
    const float *bias; // or null
    int64_t seen;      // keys of the block, up to which the row sees
    float *out;
    float &top, &total; // of earlier keys
};

// Scores become weights e^(scale × (score - top)), as Products takes them, and earlier sums are rescaled to the new
// top. WHOLE: the row sees KEYS_AT_ONCE keys.
template <class Products, bool WHOLE> INLINE void online_softmax(const AttentionWork &work, const OneRow &row) {
    Floats each[KEYS_AT_ONCE / WIDTH], best = broadcast(row.top);
    UNROLL for (int i = 0; i < KEYS_AT_ONCE / WIDTH; i++) {
        each[i] = load<Floats>(row.scores + i * WIDTH);
        if (row.bias)
            each[i] += load<Floats>(row.bias + i * WIDTH);
        if (!WHOLE)
            each[i] = select(key_numbers(i * WIDTH) < static_cast<int32_t>(row.seen), each[i], broadcast(-INFINITY));
        best = max(each[i], best);
    }
    const float new_top = reduce_max(best);
    if (!WHOLE && row.seen <= 0 && new_top == -INFINITY) { // it sees none of these keys, nor any before
        memset(row.scores, 0, KEYS_AT_ONCE * 4);
        return;
    }
    const float shift = new_top * work.scale;
    UNROLL for (int i = 0; i < KEYS_AT_ONCE / WIDTH; i++)
        each[i] = exponential(each[i] * work.scale - shift);
    const float added = reduce_sum(Products::put_weights(each, row.scores));
    if (new_top > row.top) {
        const Floats factor = exponential(broadcast(row.top * work.scale - shift));
        for (int64_t i = 0; i < work.dim; i += WIDTH)
            store(row.out + i, load<Floats>(row.out + i) * factor);
        row.total *= factor[0];
        row.top = new_top;
    }
    row.total += added;
}

// out[row] += Σ weights[row][step] × values[step], whose words are numbers of one key or of two, as Products has them.
template <class Products, int ROWS, int PARTS>
INLINE void accumulate_tile(const float *weights, const float *values, int64_t steps, int64_t stride, float *out) {
    Floats total[ROWS][PARTS];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++)
            total[i][j] = load<Floats>(out + i * stride + j * WIDTH);
    for (int64_t step = 0; step < steps; step++) {
        Floats value[PARTS];
        UNROLL for (int j = 0; j < PARTS; j++)
            value[j] = load<Floats>(values + step * stride + j * WIDTH);
        UNROLL for (int i = 0; i < ROWS; i++) {
            const auto weight = Products::weight(weights + i * KEYS_AT_ONCE + step);
            UNROLL for (int j = 0; j < PARTS; j++)
                total[i][j] = Products::add(total[i][j], weight, value[j]);
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++)
            store(out + i * stride + j * WIDTH, total[i][j]);
}
template <class Products, int ROWS>
INLINE void accumulate_rows(const float *weights, const float *values, int64_t steps, int64_t stride, float *out) {
    int64_t place = 0;
    for (; place + 2 * WIDTH <= stride; place += 2 * WIDTH)
        accumulate_tile<Products, ROWS, 2>(weights, values + place, steps, stride, out + place);
    for (; place < stride; place += WIDTH)
        accumulate_tile<Products, ROWS, 1>(weights, values + place, steps, stride, out + place);
}
template <class Products, int ROWS>
INLINE void accumulate_rows_of(int64_t rows, const float *weights, const float *values, int64_t steps, int64_t stride,
                               float *out) {
    if constexpr (ROWS > 1)
        if (rows < ROWS)
            return accumulate_rows_of<Products, ROWS - 1>(rows, weights, values, steps, stride, out);
    accumulate_rows<Products, ROWS>(weights, values, steps, stride, out);
}
// In passes of nearly as many rows: few of them would be short of sums to add to while others are not ready.
template <class Products>
INLINE void accumulate(const float *weights, const float *values, int64_t rows, int64_t steps, int64_t stride,
                       float *out) {
    constexpr int MOST = 6;
    for (int64_t row = 0, left = rows, some; left; left -= some, row += some) {
        const int64_t passes = (left + MOST - 1) / MOST;
        some = left / passes;
        accumulate_rows_of<Products, MOST>(some, weights + row * KEYS_AT_ONCE, values, steps, stride,
                                           out + row * stride);
    }
}

// From this many queries on, keys and queries are packed for the micro-kernel: faster than dot products.
constexpr int64_t PACKED_QUERIES = 4;

template <class Kind> void pack_keys_as(const char *keys, const KeyBlock &block, int64_t dim, float *to) {
    const int64_t whole = (block.count + MR - 1) / MR * MR;
    for (int64_t first = 0; first < whole; first += WIDTH)
        for (int64_t place = 0; place < dim; place += WIDTH) {
            const int64_t left = dim - place;
            Floats some[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; i++) { // padded with the last key, whose extra scores are unused
                const char *key = keys + block.places[min(first + i, block.count - 1)];
                some[i] = left >= WIDTH ? Kind::at(key, place) : load_partial<Kind>(key, place, left);
            }
            transpose(some);
            float *place_to = to + (first / MR * dim + place) * MR + first % MR;
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < left)
                    store(place_to + i * MR, some[i]);
        }
}

// ALiBi's biases of a block's keys for one row, the same as for the row before where that has the same slope.
INLINE void find_bias(const AttentionWork &work, int64_t row, int64_t first, float *bias) {
    if (row == 0 || work.slopes[row] != work.slopes[row - 1])
        for (int64_t i = 0; i < KEYS_AT_ONCE; i += WIDTH)
            store(bias + i,
                  alibi_bias(work.slopes[row], __builtin_convertvector(key_numbers(first + i), Floats)));
}

// Products packs queries, and keys and values of a block; makes the scores of some queries with the block's keys at
// own.scores[query × KEYS_AT_ONCE + key]; and puts weights over them, to be multiplied with values.
template <class Products>
INLINE void attend_by(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total) {
    const int64_t stride = padded(work.dim);
    memset(out, 0, static_cast<size_t>(4 * work.rows * stride));
    for (int64_t row = 0; row < work.rows; row++) {
        top[row] = -INFINITY;
        total[row] = 0;
    }
    float bias[KEYS_AT_ONCE];
    KeyBlock blocks[2], *block = &blocks[0], *next = &blocks[1];
    find_keys(work, work.first, *next);
    prefetch_keys(work, *next, 0, next->count);
    Products::pack_queries(work, own);
    while (next->count) {
        std::swap(block, next);
        find_keys(work, block->first + KEYS_AT_ONCE, *next);
        const int64_t ahead = (next->count + work.rows - 1) / work.rows; // keys that are prefetched with a row
        Products::pack_keys(work, *block, own);
        Products::pack_values(work, *block, own);
        for (int64_t first = 0; first < work.rows; first += NR) {
            const int64_t rows = min(NR, work.rows - first);
            Products::score(work, *block, first, rows, own);
            for (int64_t i = 0; i < rows; i++) {
                const int64_t row = first + i;
                prefetch_keys(work, *next, row * ahead, min((row + 1) * ahead, next->count));
                if (work.slopes)
                    find_bias(work, row, block->first, bias);
                const OneRow one{own.scores + i * KEYS_AT_ONCE, work.slopes ? bias : nullptr,
                                 work.limits[row] - block->first, out + row * stride, top[row], total[row]};
                if (one.seen < KEYS_AT_ONCE)
                    online_softmax<Products, false>(work, one);
                else
                    online_softmax<Products, true>(work, one);
            }
            accumulate<Products>(own.scores, own.values, rows, Products::steps(block->count), stride,
                                 out + first * stride);
        }
    }
    for (int64_t row = 0; row < work.rows; row++)
        top[row] *= work.scale;
}
