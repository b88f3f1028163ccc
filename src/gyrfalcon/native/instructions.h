// What every file of an instruction set begins with.
#pragma once
#include "kernels.h"
#include <math.h>
#include <string.h>
#include <utility>

#define INLINE_MEMBER inline __attribute__((always_inline))
