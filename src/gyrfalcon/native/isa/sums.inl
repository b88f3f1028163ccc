// Where the sums of a linear go: [tokens, rows], `stride` from token to token.
struct Sums {
    float *first;
    int64_t stride;
    bool add;
    INLINE_MEMBER void put(int64_t token, int64_t row, float value) const {
        float *place = first + token * stride + row;
        *place = add ? *place + value : value;
    }
    INLINE_MEMBER void put_vector(int64_t token, int64_t row, Floats value) const {
        float *place = first + token * stride + row;
        store(place, add ? load<Floats>(place) + value : value);
    }
};
