// ---- layer norm ----

// One token: the sum is rounded to `Kind` before its mean and variance are taken.
template <class Kind>
void add_layer_norms_as(const char *x, const char *part, char *to, const gf_norm *norms, int num_norms, int64_t place,
                        int64_t hidden, float eps, float *floats) {
    const int64_t whole = hidden / WIDTH * WIDTH;
    Floats total = {};
    for (int64_t i = 0; i < hidden; i += WIDTH) {
        int64_t left = hidden - i;
        Floats value = i < whole ? Kind::at(x, i) : load_partial<Kind>(x, i, left);
        if (part) {
            value += i < whole ? Kind::at(part, i) : load_partial<Kind>(part, i, left);
            char copy[WIDTH * 4];
            Kind::put(copy, 0, value);
            value = Kind::at(copy, 0);
            if (i < whole)
                Kind::put(to, i, value);
            else
                store_partial<Kind>(to, i, left, value);
        }
        store(floats + i, value);
        total += value;
    }
    const float mean = reduce_sum(total) / static_cast<float>(hidden);
    Floats squares = {};
    for (int64_t i = 0; i < whole; i += WIDTH) {
        Floats off = load<Floats>(floats + i) - mean;
        squares += off * off;
    }
    float variance = reduce_sum(squares);
    for (int64_t i = whole; i < hidden; i++)
        variance += (floats[i] - mean) * (floats[i] - mean);
    const float inverse = 1.0f / __builtin_sqrtf(variance / static_cast<float>(hidden) + eps);
    for (int n = 0; n < num_norms; n++) {
        const char *weight = static_cast<const char *>(norms[n].weight);
        const char *bias = static_cast<const char *>(norms[n].bias);
        char *y = static_cast<char *>(norms[n].y) + place * hidden * Kind::size;
        for (int64_t i = 0; i < whole; i += WIDTH)
            Kind::put(y, i, (load<Floats>(floats + i) - mean) * inverse * Kind::at(weight, i) + Kind::at(bias, i));
        if (int64_t left = hidden - whole)
            store_partial<Kind>(y, whole, left,
                                (load<Floats>(floats + whole) - mean) * inverse *
                                        load_partial<Kind>(weight, whole, left) +
                                    load_partial<Kind>(bias, whole, left));
    }
}
void add_layer_norms(const char *x, const char *part, char *to, const gf_norm *norms, int num_norms, int64_t place,
                     int64_t hidden, float eps, int kind, float *floats) {
    switch (kind) {
    case GF_F32:
        return add_layer_norms_as<F32>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    case GF_BF16:
        return add_layer_norms_as<Bf16>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    default:
        return add_layer_norms_as<F16>(x, part, to, norms, num_norms, place, hidden, eps, floats);
    }
}
