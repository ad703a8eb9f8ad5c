// A counter, which both files of this module use.
#pragma once
#include <ringfence.h>

class Counter {
public:
    // Counts one more, and returns the new count.
    int64_t count();

private:
    int64_t counted = 0;
};
