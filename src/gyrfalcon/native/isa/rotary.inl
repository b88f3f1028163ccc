// ---- rotary positions: dimensions i and i + dim / 2 rotate together ----

template <class Kind>
void rotate_as(const char *from, const float *cosines, const float *sines, int64_t half, char *to) {
    for (int64_t i = 0; i < half; i += WIDTH) {
        int64_t left = half - i;
        bool whole = left >= WIDTH;
        Floats a = whole ? Kind::at(from, i) : load_partial<Kind>(from, i, left);
        Floats b = whole ? Kind::at(from, half + i) : load_partial<Kind>(from, half + i, left);
        Floats cosine =
            whole ? load<Floats>(cosines + i) : load_partial<F32>(reinterpret_cast<const char *>(cosines), i, left);
        Floats sine =
            whole ? load<Floats>(sines + i) : load_partial<F32>(reinterpret_cast<const char *>(sines), i, left);
        Floats first = a * cosine - b * sine, second = b * cosine + a * sine;
        if (whole) {
            Kind::put(to, i, first);
            Kind::put(to, half + i, second);
        } else {
            store_partial<Kind>(to, i, left, first);
            store_partial<Kind>(to, half + i, left, second);
        }
    }
}
void rotate(const char *from, const float *cosines, const float *sines, int64_t dim, int kind, char *to) {
    if (!cosines) {
        memcpy(to, from, static_cast<size_t>(dim * bytes_of(kind)));
        return;
    }
    switch (kind) {
    case GF_F32:
        return rotate_as<F32>(from, cosines, sines, dim / 2, to);
    case GF_BF16:
        return rotate_as<Bf16>(from, cosines, sines, dim / 2, to);
    default:
        return rotate_as<F16>(from, cosines, sines, dim / 2, to);
    }
}
