// A counter, which two files of this module share.
#pragma once
#include <ringfence.h>

class Counter {
public:
    // Counts one more, and says how many those are.
    int64_t count();

private:
    int64_t counted = 0;
};
