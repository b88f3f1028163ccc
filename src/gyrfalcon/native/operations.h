// How every operation of the interface is entered.
#pragma once
#include "pool.h"

#include <new>

namespace gyrfalcon {

// Runs `operation` while no other runs: 0, or -1 where memory ran out.
template <class Operation> int one_at_a_time(const Operation &operation) {
    std::lock_guard<std::mutex> alone(caller());
    try {
        operation();
    } catch (const std::bad_alloc &) {
        return -1;
    }
    return 0;
}

} // namespace gyrfalcon
