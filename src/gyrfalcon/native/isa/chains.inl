// ---- arithmetic in registers, to be timed ----

constexpr int CHAINS = 12; // independent sums

// Zeros, as the compiler cannot tell.
template <class Vector> INLINE Vector hidden_zeros() {
    Vector zeros = {};
    asm volatile("" : "+m"(zeros));
    return zeros;
}

// Adds products to CHAINS sums, `rounds` times; returns the operations, with `products` a vector.
template <class Vector, class Add> INLINE int64_t run_chains(int64_t rounds, int64_t products, const Add &add) {
    Vector total[CHAINS];
    for (auto &one : total)
        one = hidden_zeros<Vector>(); // or the compiler finds that one chain suffices
    for (int64_t i = 0; i < rounds; i++)
        UNROLL for (int j = 0; j < CHAINS; j++)
            total[j] = add(total[j]);
    for (auto &one : total)
        asm volatile("" : "+m"(one)); // not optimised away
    return rounds * CHAINS * products * 2;
}
