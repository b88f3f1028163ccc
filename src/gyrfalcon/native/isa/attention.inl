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

// One row's scores become weights e^(score - top), and earlier sums are rescaled to the new top.
INLINE void online_softmax(const AttentionWork &work, int64_t row, int64_t first, float *scores, float *out,
                           int64_t stride, float *top, float *total) {
    // Keys of this block that the row sees.
    const Ints count = broadcast_int(static_cast<int32_t>(min(work.limits[row] - first, KEYS_AT_ONCE)));
    Floats best = broadcast(*top);
    for (int64_t i = 0; i < KEYS_AT_ONCE; i += WIDTH) {
        Floats score = load<Floats>(scores + i) * work.scale;
        if (work.slopes)
            score += alibi_bias(work.slopes[row], __builtin_convertvector(key_numbers(first + i), Floats)) *
                     work.scale;
        score = select(key_numbers(i) < count, score, broadcast(-INFINITY));
        best = max(score, best);
        store(scores + i, score);
    }
    const float new_top = reduce_max(best);
    if (work.limits[row] <= first && new_top == -INFINITY) { // the row sees none of these keys, nor any before
        memset(scores, 0, KEYS_AT_ONCE * 4);
        return;
    }
    Floats added = {};
    for (int64_t i = 0; i < KEYS_AT_ONCE; i += WIDTH) {
        Floats weight = exponential(load<Floats>(scores + i) - new_top);
        added += weight;
        store(scores + i, weight);
    }
    if (new_top > *top) {
        Floats factor = exponential(broadcast(*top - new_top));
        for (int64_t i = 0; i < stride; i += WIDTH)
            store(out + i, load<Floats>(out + i) * factor);
        *total *= factor[0];
        *top = new_top;
    }
    *total += reduce_sum(added);
}

// out[row] += Σ weights[row][key] × values[key] over `keys` keys.
template <int ROWS, int PARTS>
INLINE void accumulate_tile(const float *weights, const float *values, int64_t keys, int64_t stride, float *out) {
    Floats total[ROWS][PARTS];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++)
            total[i][j] = load<Floats>(out + i * stride + j * WIDTH);
    for (int64_t key = 0; key < keys; key++) {
        Floats value[PARTS];
        UNROLL for (int j = 0; j < PARTS; j++)
            value[j] = load<Floats>(values + key * stride + j * WIDTH);
        UNROLL for (int i = 0; i < ROWS; i++) {
            float weight = weights[i * KEYS_AT_ONCE + key];
            UNROLL for (int j = 0; j < PARTS; j++)
                total[i][j] += weight * value[j];
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < PARTS; j++)
            store(out + i * stride + j * WIDTH, total[i][j]);
}
template <int ROWS>
INLINE void accumulate_rows(const float *weights, const float *values, int64_t keys, int64_t stride, float *out) {
    int64_t place = 0;
    for (; place + 2 * WIDTH <= stride; place += 2 * WIDTH)
        accumulate_tile<ROWS, 2>(weights, values + place, keys, stride, out + place);
    for (; place < stride; place += WIDTH)
        accumulate_tile<ROWS, 1>(weights, values + place, keys, stride, out + place);
}
// Two rows' sums would be one dependency chain, so eight rows are done as four and four.
void accumulate(const float *weights, const float *values, int64_t rows, int64_t keys, int64_t stride, float *out) {
    int64_t row = 0;
    for (; row + 6 <= rows && row + 8 != rows; row += 6)
        accumulate_rows<6>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    for (; row + 4 <= rows; row += 4)
        accumulate_rows<4>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    for (; row + 2 <= rows; row += 2)
        accumulate_rows<2>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
    if (row < rows)
        accumulate_rows<1>(weights + row * KEYS_AT_ONCE, values, keys, stride, out + row * stride);
}

// From this many queries on, keys and queries are packed for the micro-kernel: faster than dot products.
constexpr int64_t PACKED_QUERIES = 4;

template <class Kind> void pack_keys_as(const char *const *keys, int64_t count, int64_t dim, float *to) {
    const int64_t whole = (count + MR - 1) / MR * MR;
    for (int64_t first = 0; first < whole; first += WIDTH)
        for (int64_t place = 0; place < dim; place += WIDTH) {
            const int64_t left = dim - place;
            Floats block[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; i++) { // padded with the last key, whose extra scores are unused
                const char *key = keys[min(first + i, count - 1)];
                block[i] = left >= WIDTH ? Kind::at(key, place) : load_partial<Kind>(key, place, left);
            }
            transpose(block);
            float *place_to = to + (first / MR * dim + place) * MR + first % MR;
            UNROLL for (int i = 0; i < WIDTH; i++)
                if (i < left)
                    store(place_to + i * MR, block[i]);
        }
}
// The offset of a key, or of its value, in the cache.
INLINE int64_t place_of(const AttentionWork &work, int64_t key) {
    return (work.table[key / work.block_size] * work.block_size + key % work.block_size) * work.token_bytes;
}

// Prefetches the next keys or values: rows are too far apart for hardware prefetchers.
INLINE void prefetch_next(const AttentionWork &work, const char *from, int64_t first) {
    const int64_t bytes = work.dim * bytes_of(work.kind);
    for (int64_t key = first; key < min(first + KEYS_AT_ONCE, work.last); key++) {
        const char *row = from + place_of(work, key);
        for (int64_t place = 0; place < bytes; place += 64)
            __builtin_prefetch(row + place);
    }
}

// Scores::pack_queries(work, own), and Scores::score(work, places, count, own) of all queries with `count` keys to
// own.scores[row × KEYS_AT_ONCE + key].
template <class Scores>
INLINE void attend_by(const AttentionWork &work, const AttentionScratch &own, float *out, float *top, float *total) {
    const int64_t stride = padded(work.dim);
    memset(out, 0, static_cast<size_t>(4 * work.rows * stride));
    for (int64_t row = 0; row < work.rows; row++) {
        top[row] = -INFINITY;
        total[row] = 0;
    }
    Scores::pack_queries(work, own);
    for (int64_t first = work.first; first < work.last; first += KEYS_AT_ONCE) {
        const int64_t count = min(KEYS_AT_ONCE, work.last - first);
        const char *places[KEYS_AT_ONCE];
        for (int64_t i = 0; i < count; i++)
            places[i] = work.keys + place_of(work, first + i);
        prefetch_next(work, work.values, first);
        Scores::score(work, places, count, own);
        for (int64_t row = 0; row < work.rows; row++)
            online_softmax(work, row, first, own.scores + row * KEYS_AT_ONCE, out + row * stride, stride, top + row,
                           total + row);
        prefetch_next(work, work.keys, first + KEYS_AT_ONCE);
        for (int64_t i = 0; i < count; i++) {
            memset(own.values + i * stride + work.dim, 0, static_cast<size_t>(4 * (stride - work.dim)));
            widen(work.values + place_of(work, first + i), work.kind, work.dim, own.values + i * stride);
        }
        accumulate(own.scores, own.values, work.rows, count, stride, out);
    }
}
