// ---- packing tiles of tokens: [words of 4 bytes, SIZE tokens] ----

template <int SIZE> INLINE void pack_tokens_of(const char *from, int64_t apart, int64_t count, int64_t bytes, char *to) {
    for (int64_t byte = 0; byte < bytes; byte += 4 * WIDTH) {
        const int64_t left = bytes - byte;
        UNROLL for (int first = 0; first < SIZE; first += WIDTH) {
            constexpr int MOST = SIZE < WIDTH ? SIZE : WIDTH;
            const int tokens = SIZE - first < MOST ? SIZE - first : MOST;
            Floats square[WIDTH] = {}; // of any bits
            for (int i = 0; i < tokens; i++) {
                const char *place = from + min(first + i, count - 1) * apart + byte;
                square[i] = (Floats)(left >= 4 * WIDTH ? load<Words>(place) : load_some(place, left));
            }
            transpose(square);
            char *place = to + byte * SIZE + 4 * first;
            for (int i = 0; i < WIDTH && 4 * i < left; i++)
                tokens == MOST ? memcpy(place + i * 4 * SIZE, &square[i], 4 * MOST)
                               : memcpy(place + i * 4 * SIZE, &square[i], 4 * (SIZE % MOST));
        }
    }
}
void pack_tokens(const char *from, int64_t apart, int64_t count, int64_t bytes, int64_t size, char *to) {
    if (size == NR)
        pack_tokens_of<NR>(from, apart, count, bytes, to);
    else if (size == NR_INT16)
        pack_tokens_of<NR_INT16>(from, apart, count, bytes, to);
    else
        pack_tokens_of<NR_INT8>(from, apart, count, bytes, to);
}
