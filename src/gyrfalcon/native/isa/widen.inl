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
