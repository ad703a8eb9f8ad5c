#include "counter.hpp"

int64_t Counter::count()
{
    return ++counted;
}
