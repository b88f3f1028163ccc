// ---- memory bandwidth ----

void read_streams(const char *from, int64_t bytes) {
    constexpr int STREAMS = 8, LINE = 64;
    const int64_t length = bytes / STREAMS / LINE * LINE;
    Ints total[STREAMS] = {};
    for (int64_t place = 0; place < length; place += LINE)
        UNROLL for (int i = 0; i < STREAMS; i++) {
            const char *line = from + i * length + place;
            if (AHEAD)
                __builtin_prefetch(line + AHEAD, 0, NEAR);
            for (int j = 0; j < LINE; j += WIDTH * 4)
                total[i] ^= load<Ints>(line + j);
        }
    for (auto &one : total)
        asm volatile("" : "+m"(one));
}
