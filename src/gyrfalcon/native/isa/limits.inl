// ---- peak arithmetic and memory bandwidth ----

constexpr int CHAINS = 12; // independent multiply-adds

int64_t multiply_add(int64_t rounds) {
    Floats total[CHAINS] = {};
    Floats factor = broadcast(0.999f), step = broadcast(0.001f);
    asm volatile("" : "+m"(factor), "+m"(step)); // unknown to the compiler
    for (int64_t i = 0; i < rounds; i++)
        UNROLL for (int j = 0; j < CHAINS; j++)
            total[j] = total[j] * factor + step;
    for (auto &one : total)
        asm volatile("" : "+m"(one)); // not optimised away
    return rounds * CHAINS * WIDTH * 2;
}

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
