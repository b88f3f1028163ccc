// ---- peak arithmetic ----

#include "chains.inl"

int64_t multiply_floats(int64_t rounds) {
    Floats factor = broadcast(0.999f), step = broadcast(0.001f);
    asm volatile("" : "+m"(factor), "+m"(step)); // unknown to the compiler
    return run_chains<Floats>(rounds, WIDTH, [&](Floats sums) { return sums * factor + step; });
}
// Factors are new to the compiler for each sum, or it would multiply once and only add in the loop.
int64_t multiply_int16(int64_t rounds) {
    Words numbers = (Words)broadcast_int(0x12345a3c);
    asm volatile("" : "+m"(numbers));
    return run_chains<Ints>(rounds, 2 * WIDTH, [&](Ints sums) {
        numbers = keep_in_register(numbers);
        return add_pair_products(sums, (Shorts)numbers, (Shorts)numbers);
    });
}
int64_t multiply_int8(int64_t rounds) {
    Words numbers = (Words)broadcast_int(0x1e2d5a3c);
    asm volatile("" : "+m"(numbers));
    return run_chains<GroupSums>(rounds, 4 * WIDTH, [&](GroupSums sums) {
        numbers = keep_in_register(numbers);
        return add_group_products(sums, (NibbleGroups)numbers, (ByteGroups)numbers);
    });
}
