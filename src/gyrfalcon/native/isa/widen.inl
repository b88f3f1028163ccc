// ---- any kind of number to float32 ----

template <class Kind> void widen_as(const char *from, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH)
        store(to + i, Kind::at(from, i));
    if (i < count) {
        Floats rest = load_partial<Kind>(from, i, count - i);
        memcpy(to + i, &rest, static_cast<size_t>(4 * (count - i)));
    }
}
void widen(const void *from, int kind, int64_t count, float *to) {
    const char *bytes = static_cast<const char *>(from);
    switch (kind) {
    case GF_F32:
        return widen_as<F32>(bytes, count, to);
    case GF_BF16:
        return widen_as<Bf16>(bytes, count, to);
    case GF_F16:
        return widen_as<F16>(bytes, count, to);
    default:
        return widen_as<I8>(bytes, count, to);
    }
}

// Dequantises int4 rows, for activations that are not quantised.
void widen_int4(const Rows &rows, float *to, int64_t stride) {
    for (int64_t row = 0; row < rows.count; row++) {
        const auto *words = reinterpret_cast<const uint8_t *>(int4_words(rows, row));
        const char *scales = int4_scales(rows, row);
        for (int64_t column = 0; column < rows.columns; column++) {
            const uint8_t both = words[column / 64 * INT4_BLOCK_BYTES + column % 32 / 4 * 4 * INT4_ROWS + column % 4];
            const int value = (column & 32 ? both >> 4 : both & 15) - 8;
            uint16_t scale;
            memcpy(&scale, scales + 2 * INT4_ROWS * (column / rows.group), 2);
            const uint32_t bits = static_cast<uint32_t>(scale) << 16;
            float factor;
            memcpy(&factor, &bits, 4);
            to[row * stride + column] = static_cast<float>(value) * factor;
        }
    }
}
