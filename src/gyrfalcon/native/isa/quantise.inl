// ---- float32 to other kinds of numbers, and quantising tokens ----

template <class Kind> void narrow_as(const float *from, int64_t count, char *to) {
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        Kind::put(to, i, load<Floats>(from + i));
    if (i < count)
        store_partial<Kind>(to, i, count - i, load_partial<F32>(reinterpret_cast<const char *>(from), i, count - i));
}
void narrow(const float *from, int64_t count, int kind, void *to) {
    char *bytes = static_cast<char *>(to);
    switch (kind) {
    case GF_F32:
        return narrow_as<F32>(from, count, bytes);
    case GF_BF16:
        return narrow_as<Bf16>(from, count, bytes);
    default:
        return narrow_as<F16>(from, count, bytes);
    }
}

// Of each two whole vectors: even places, then odd ones.
void deinterleave(float *floats, int64_t columns) {
    float copy[2 * WIDTH];
    for (; columns >= 2 * WIDTH; columns -= 2 * WIDTH, floats += 2 * WIDTH) {
        memcpy(copy, floats, sizeof copy);
        for (int i = 0; i < WIDTH; i++) {
            floats[i] = copy[2 * i];
            floats[WIDTH + i] = copy[2 * i + 1];
        }
    }
}

// Of whole vectors. NaN if there is one: compared as integers, its bits are the largest.
INLINE float largest_magnitude(const float *x, int64_t count) {
    Ints top = {};
    for (int64_t i = 0; i < count; i += WIDTH) {
        Ints size = load<Ints>(x + i) & 0x7fffffff;
        top = size > top ? size : top;
    }
    const int32_t best = reduce_max(top);
    float size;
    memcpy(&size, &best, sizeof size);
    return size;
}

// 1 / scale. 0 for a denormal scale, whose inverse may overflow: a block of numbers up to 1.5e-36 (3.8e-34 with int16)
// becomes zeros.
INLINE float inverse_of(float scale) { return scale >= 0x1p-126f ? 1.0f / scale : 0.0f; }

// Each INT16_COLUMNS are scaled to ±LARGEST_INT16 by their largest magnitude. `from` is padded with zeros to a whole
// vector.
void quantise_int16(const float *from, int64_t columns, int16_t *to, float *scales) {
    const int64_t padded_columns = padded_int16(columns);
    for (int64_t first = 0; first < columns; first += INT16_COLUMNS) {
        const int64_t end = min(first + INT16_COLUMNS, padded(columns));
        const float scale = largest_magnitude(from + first, end - first) / LARGEST_INT16;
        const float inverse = inverse_of(scale);
        *scales++ = scale;
        for (int64_t i = first; i < end; i += WIDTH)
            store(to + i,
                  narrow_to_int16(__builtin_convertvector(round_to_nearest(load<Floats>(from + i) * inverse), Ints)));
    }
    for (int64_t i = padded(columns); i < padded_columns; i++)
        to[i] = 0;
}

// Each 64 columns are scaled to ±127 by their largest magnitude.
void quantise_int8(const float *from, int64_t blocks, int8_t *rounded_to, float *scales, int32_t *sums) {
    for (int64_t block = 0; block < blocks; block++) {
        const float *x = from + block * 64;
        const float scale = largest_magnitude(x, 64) / 127.0f, inverse = inverse_of(scale);
        scales[block] = scale;
        const bool finite = scale - scale == 0; // else the numbers mean nothing, and the scale says so
        UNROLL for (int half = 0; half < 2; half++) {
            Ints total = {};
            UNROLL for (int i = 32 * half; i < 32 * half + 32; i += WIDTH) {
                Floats whole = round_to_nearest(load<Floats>(x + i) * inverse);
                const Ints numbers = __builtin_convertvector(finite ? whole : Floats{}, Ints);
                store(rounded_to + block * 64 + i, narrow(numbers));
                total += numbers;
            }
            if (sums)
                sums[2 * block + half] = reduce_sum(total);
        }
    }
}
