// Common includes of the instruction sets' files.
#pragma once
#include "kernels.h"
#include <math.h>
#include <string.h>
#include <utility>

#define INLINE_MEMBER inline __attribute__((always_inline))
