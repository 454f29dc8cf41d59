// SPDX-License-Identifier: Apache-2.0
//
// must.h: what has to hold in a fuzz target, whatever the input.
#ifndef OPENMOED_MUST_H
#define OPENMOED_MUST_H

#include <stdio.h>
#include <stdlib.h>

#define MUST(what)                                                                                 \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #what);                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
