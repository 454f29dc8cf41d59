// SPDX-License-Identifier: Apache-2.0
//
// test_limits.c: which addresses count as one, that counts go up and down with connections, and
// that nothing is left behind.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include "server/limits.h"

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un un;
};

static union address at(const char *text, int port)
{
    union address a = {.v6 = {0}};
    if (inet_pton(AF_INET, text, &a.v4.sin_addr) == 1) {
        a.v4.sin_family = AF_INET;
        a.v4.sin_port = htons((uint16_t)port);
    } else {
        memset(&a, 0, sizeof a);
        assert_int_equal(inet_pton(AF_INET6, text, &a.v6.sin6_addr), 1);
        a.v6.sin6_family = AF_INET6;
        a.v6.sin6_port = htons((uint16_t)port);
    }
    return a;
}

static struct limits_peer *add(struct limits *l, const char *text, int port)
{
    const union address a = at(text, port);
    return limits_add(l, &a.any);
}

static int count(struct limits *l, const char *text)
{
    const union address a = at(text, 1);
    return limits_count(l, &a.any);
}

static size_t entries(const struct limits *l)
{
    size_t n = 0;
    for (size_t i = 0; i < LIMITS_BUCKETS; i++)
        for (const struct limits_peer *p = l->buckets[i]; p != NULL; p = p->next) n++;
    return n;
}

static void connections_of_one_address_are_counted(void **state)
{
    (void)state;
    static struct limits l = {.secret = {1, 2}};
    struct limits_peer *p = add(&l, "192.0.2.1", 1000);
    assert_int_equal(p->connections, 1);
    assert_ptr_equal(add(&l, "192.0.2.1", 1001), p);
    assert_ptr_equal(add(&l, "::ffff:192.0.2.1", 1002), p);
    assert_int_equal(p->connections, 3);
    struct limits_peer *q = add(&l, "192.0.2.2", 1000);
    assert_ptr_not_equal(p, q);
    assert_int_equal(q->connections, 1);
    limits_remove(&l, p);
    limits_remove(&l, p);
    assert_int_equal(p->connections, 1);
    assert_int_equal(entries(&l), 2);
    assert_int_equal(count(&l, "::ffff:192.0.2.1"), 1);
    assert_int_equal(count(&l, "192.0.2.3"), 0);
    assert_int_equal(entries(&l), 2); /* asking makes no entry */
    limits_remove(&l, p);
    limits_remove(&l, q);
    limits_remove(&l, NULL);
    assert_int_equal(entries(&l), 0);
}

static void an_ipv6_network_is_one_address(void **state)
{
    (void)state;
    static struct limits l;
    struct limits_peer *p = add(&l, "2001:db8:0:1::1", 1);
    assert_ptr_equal(add(&l, "2001:db8:0:1:ffff:ffff:ffff:ffff", 2), p);
    struct limits_peer *q = add(&l, "2001:db8:0:2::1", 3);
    assert_ptr_not_equal(p, q);
    limits_remove(&l, p);
    limits_remove(&l, p);
    limits_remove(&l, q);
    assert_int_equal(entries(&l), 0);
}

/* More than there are buckets, given back in another order. */
static void many_addresses(void **state)
{
    (void)state;
    enum { MANY = 5000 };
    static struct limits l = {.secret = {3, 4}};
    static struct limits_peer *p[MANY];
    for (uint32_t i = 0; i < MANY; i++) {
        union address a = at("10.0.0.0", 1);
        a.v4.sin_addr.s_addr = htonl(0x0A000000 + i);
        p[i] = limits_add(&l, &a.any);
        assert_int_equal(p[i]->connections, 1);
    }
    assert_int_equal(entries(&l), MANY);
    for (size_t i = 0; i < MANY; i++) limits_remove(&l, p[i * 1999 % MANY]);
    assert_int_equal(entries(&l), 0);
}

static void other_families_are_not_counted(void **state)
{
    (void)state;
    static struct limits l;
    const union address a = {.un = {.sun_family = AF_UNIX}};
    assert_null(limits_add(&l, &a.any));
    assert_int_equal(limits_count(&l, &a.any), 0);
    assert_int_equal(entries(&l), 0);
}

static void texts(void **state)
{
    (void)state;
    char text[LIMITS_TEXT];
    union address a = at("192.0.2.1", 65535);
    limits_text(&a.any, text);
    assert_string_equal(text, "192.0.2.1:65535");
    a = at("2001:db8:1111:2222:3333:4444:5555:6666", 65535);
    limits_text(&a.any, text);
    assert_string_equal(text, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535");
    a = at("::ffff:255.255.255.255", 65535);
    limits_text(&a.any, text);
    assert_string_equal(text, "[::ffff:255.255.255.255]:65535");
    const union address un = {.un = {.sun_family = AF_UNIX}};
    limits_text(&un.any, text);
    assert_string_equal(text, "unix");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(connections_of_one_address_are_counted),
        cmocka_unit_test(an_ipv6_network_is_one_address),
        cmocka_unit_test(many_addresses),
        cmocka_unit_test(other_families_are_not_counted),
        cmocka_unit_test(texts),
    };
    return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
