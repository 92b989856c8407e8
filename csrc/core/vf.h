// What a vf is: a vector of float on a CPU, one float in a GPU's thread. Maths written with it serves both.
#pragma once
#ifdef SBHAL_GPU
#include "gpu/lane.h"
#else
#include "simd.h"
#endif
