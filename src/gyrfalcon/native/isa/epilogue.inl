// ---- epilogue of a linear: bias, activation, conversion ----

template <class Kind>
void epilogue_as(const float *sums, const char *bias, int64_t start, int64_t count, int activation, char *y) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        int64_t left = count - i;
        Floats x =
            left >= WIDTH ? load<Floats>(sums + i) : load_partial<F32>(reinterpret_cast<const char *>(sums), i, left);
        if (bias)
            x += left >= WIDTH ? Kind::at(bias, start + i) : load_partial<Kind>(bias, start + i, left);
        x = activate(x, activation);
        if (left >= WIDTH)
            Kind::put(y, i, x);
        else
            store_partial<Kind>(y, i, left, x);
    }
}
void epilogue(const float *sums, const void *bias, int64_t start, int64_t count, int activation, int kind, char *y) {
    const char *from = static_cast<const char *>(bias);
    switch (kind) {
    case GF_F32:
        return epilogue_as<F32>(sums, from, start, count, activation, y);
    case GF_BF16:
        return epilogue_as<Bf16>(sums, from, start, count, activation, y);
    default:
        return epilogue_as<F16>(sums, from, start, count, activation, y);
    }
}
