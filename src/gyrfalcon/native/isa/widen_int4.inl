// ---- int4 to float32 ----

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
