// SPDX-License-Identifier: Apache-2.0
//
// hash.c: SipHash-1-3. Keyed, because callers choose what is hashed (tokens, salts) and could
// otherwise make keys meet. Any thread; the state is the caller's.
#include <string.h>

#include "config/config.h"

static uint64_t rotl(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void mix(struct cfg_sip *s)
{
    s->a += s->b;
    s->b = rotl(s->b, 13) ^ s->a;
    s->a = rotl(s->a, 32);
    s->c += s->d;
    s->d = rotl(s->d, 16) ^ s->c;
    s->a += s->d;
    s->d = rotl(s->d, 21) ^ s->a;
    s->c += s->b;
    s->b = rotl(s->b, 17) ^ s->c;
    s->c = rotl(s->c, 32);
}

struct cfg_sip cfg_sip_start(const uint64_t secret[2])
{
    return (struct cfg_sip){secret[0] ^ 0x736f6d6570736575u, secret[1] ^ 0x646f72616e646f6du,
                            secret[0] ^ 0x6c7967656e657261u, secret[1] ^ 0x7465646279746573u};
}

void cfg_sip_word(struct cfg_sip *s, uint64_t word)
{
    s->d ^= word;
    mix(s);
    s->a ^= word;
}

void cfg_sip_bytes(struct cfg_sip *s, const void *data, size_t n)
{
    const unsigned char *p = data;
    uint64_t last = (uint64_t)n << 56;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word = 0;
        for (int i = 0; i < 8; i++) word |= (uint64_t)p[i] << (8 * i);
        cfg_sip_word(s, word);
    }
    for (size_t i = 0; i < n; i++) last |= (uint64_t)p[i] << (8 * i);
    cfg_sip_word(s, last);
}

uint64_t cfg_sip_end(struct cfg_sip *s)
{
    s->c ^= 0xff;
    for (int i = 0; i < 3; i++) mix(s);
    return s->a ^ s->b ^ s->c ^ s->d;
}
