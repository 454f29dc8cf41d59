// SPDX-License-Identifier: Apache-2.0
//
// test_routing_file.c: the routing table's file: its form, byte by byte; round trips; every changed
// byte and every cut; images made by hand that are sealed but wrong; other shapes; saving where it
// cannot be done. A file that is refused must leave the table as it was. And that ids which were
// never seen cost no memory, even when a file is written and read.
#include "tests/unit/routing_support.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void write_image(const uint8_t *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static uint8_t *read_image(size_t *n)
{
    char *data = NULL;
    struct error err = {0};
    if (cfg_read_file(path, 1 << 20, &data, n, &err)) fail_msg("%s", err.message);
    return (uint8_t *)data;
}

/* What a small table says about every token. */
struct answers {
    int n[16];
    struct routing_load loads[16][MAX_ENTRIES];
};

static void ask(const struct routing_table *t, int vocab, struct answers *a)
{
    memset(a, 0, sizeof(*a));
    for (int32_t id = 0; id < vocab; id++) a->n[id] = routing_table_expect(t, id, a->loads[id]);
}

static void same_answers(const struct routing_table *t, int vocab, const struct answers *expected)
{
    struct answers now;
    ask(t, vocab, &now);
    assert_memory_equal(&now, expected, sizeof now);
}

static void refused(struct routing_table *t, const char *named)
{
    struct error err = {0};
    int rc = routing_table_load(t, path, &err);
    if (rc != CFG_EINVAL || !strstr(err.message, path) || !strstr(err.message, named))
        fail_msg("%d \"%s\", not \"%s\"", rc, err.message, named);
}

/* An image made by hand, in the form that routing_table.c describes. */
struct image {
    uint8_t data[512];
    size_t n;
};

static void add(struct image *m, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) m->data[m->n++] = (uint8_t)(value >> (8 * i));
}

static void seal(struct image *m)
{
    struct cfg_sip sip = cfg_sip_start((const uint64_t[2]){0, 0});
    cfg_sip_bytes(&sip, m->data, m->n);
    add(m, cfg_sip_end(&sip), 8);
}

static void begin(struct image *m, uint32_t version, uint32_t slots, uint32_t count)
{
    const uint32_t fields[7] = {version, 2, 8, 2, 10, slots, count};
    m->n = 8;
    memcpy(m->data, "OMROUTES", 8);
    for (int i = 0; i < 7; i++) add(m, fields[i], 4);
}

/* layer_0, layer_1: ROUTING_SLOTS pairs (expert, weight) each */
static void record(struct image *m, uint32_t id, const char *layer_0, const char *layer_1)
{
    add(m, id, 4);
    memcpy(m->data + m->n, layer_0, 8);
    memcpy(m->data + m->n + 8, layer_1, 8);
    m->n += 16;
}

#define SOUND_0 "\5\xff\1\x20\2\x20\0\1"
#define SOUND_1 "\7\1\0\0\0\0\0\0"

/* The form of the file, both ways: what is made by hand is read, and written again byte by byte. */
static void the_form_of_the_file(void **state)
{
    (void)state;
    struct image m;
    begin(&m, 1, 4, 3);
    record(&m, 0, SOUND_0, SOUND_1);
    record(&m, 7, "\0\1\1\1\2\1\3\1", "\3\x90\4\x80\0\0\0\0");
    record(&m, 9, SOUND_0, SOUND_1);
    seal(&m);
    write_image(m.data, m.n);
    struct routing_table *t = open_table(2, 8, 2, 10);
    int32_t experts[ROUTING_SLOTS];
    load(t);
    assert_int_equal(routing_table_predict(t, 0, 9, 4, experts), 4);
    assert_memory_equal(experts, ((const int32_t[4]){5, 1, 2, 0}), sizeof experts);
    assert_int_equal(routing_table_predict(t, 1, 9, 4, experts), 1);
    assert_int_equal(experts[0], 7);
    assert_int_equal(routing_table_predict(t, 1, 7, 4, experts), 2);
    assert_int_equal(routing_table_predict(t, 0, 8, 4, experts), 0);
    /* One known and two to be picked: the other is made up. */
    assert_int_equal(load_of(t, 9, 8 + 7), ROUTING_ONE);
    save(t);
    size_t n;
    uint8_t *again = read_image(&n);
    assert_int_equal(n, m.n);
    assert_memory_equal(again, m.data, n);
    free(again);
    routing_table_close(t);
}

static void a_round_trip(void **state)
{
    (void)state;
    struct routing_table *t = open_table(2, 8, 2, 10), *other = open_table(2, 8, 2, 10);
    struct answers before;
    save(t); /* an empty one */
    load(other);
    ask(t, 10, &before);
    same_answers(other, 10, &before);

    unsigned rng = 3;
    for (int i = 0; i < 500; i++) {
        int a = rand_r(&rng) % 8, b = rand_r(&rng) % 8;
        const int32_t picks[4] = {a, (a + 1) % 8, b, (b + 3) % 8};
        routing_table_learn(t, 2 * (rand_r(&rng) % 5), picks, 2);
        routing_table_learn(other, rand_r(&rng) % 10, picks + 1, 1);
    }
    struct routing_score scores[2], later[2];
    routing_table_score(other, scores);
    const mode_t mask = umask(0);
    save(t); /* over the empty one */
    umask(mask);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    load(other); /* takes the place of all it knew, odd ids too; its scores are its own */
    ask(t, 10, &before);
    assert_true(before.n[4] > 0 && before.n[5] == 0);
    same_answers(other, 10, &before);
    routing_table_score(other, later);
    assert_memory_equal(scores, later, sizeof scores);
    /* They go on alike, so weights and order came along. */
    for (int i = 0; i < 100; i++) {
        const int32_t picks[4] = {i % 8, (i + 5) % 8, i % 3, 3 + i % 5};
        routing_table_learn(t, i % 10, picks, 2);
        routing_table_learn(other, i % 10, picks, 2);
    }
    ask(t, 10, &before);
    same_answers(other, 10, &before);
    routing_table_close(t);
    routing_table_close(other);
}

/* Every value of every byte, and every length, shorter or longer. */
static void damage_is_refused(void **state)
{
    (void)state;
    struct image m = {0};
    begin(&m, 1, 4, 1);
    record(&m, 7, SOUND_0, SOUND_1);
    seal(&m);
    struct routing_table *t = open_table(2, 8, 2, 10);
    static const int32_t picks[4] = {3, 1, 0, 2};
    for (int32_t id = 5; id < 9; id++) routing_table_learn(t, id, picks, 2);
    struct answers before;
    ask(t, 10, &before);
    for (size_t at = 0; at < m.n; at++) {
        for (unsigned value = 1; value < 256; value++) {
            m.data[at] ^= (uint8_t)value;
            write_image(m.data, m.n);
            refused(t, "");
            m.data[at] ^= (uint8_t)value;
        }
        same_answers(t, 10, &before);
    }
    for (size_t n = 0; n < sizeof m.data; n++) {
        if (n == m.n) continue;
        write_image(m.data, n);
        refused(t, "");
        same_answers(t, 10, &before);
    }
    write_image(m.data, m.n);
    load(t); /* undamaged again */
    int32_t expert;
    assert_int_equal(routing_table_predict(t, 0, 7, 1, &expert), 1);
    assert_int_equal(expert, 5);
    routing_table_close(t);
}

/* Sealed with the right checksum, and wrong all the same. */
static void sealed_but_wrong(void **state)
{
    (void)state;
    static const struct {
        uint32_t version, slots, count, ids[2];
        const char *layer_0, *layer_1, *named;
    } cases[] = {
        {2, 4, 2, {1, 2}, SOUND_0, SOUND_1, "version 2"},
        {0, 4, 2, {1, 2}, SOUND_0, SOUND_1, "version 0"},
        {1, 3, 2, {1, 2}, SOUND_0, SOUND_1, "another model"},
        {1, 4, 1, {1, 2}, SOUND_0, SOUND_1, "cut"},
        {1, 4, 3, {1, 2}, SOUND_0, SOUND_1, "cut"},
        {1, 4, 0, {1, 2}, SOUND_0, SOUND_1, "cut"},
        {1, 4, 11, {1, 2}, SOUND_0, SOUND_1, "cut"},
        {1, 4, 0xffffffff, {1, 2}, SOUND_0, SOUND_1, "cut"},
        /* ids: twice, falling, outside the vocabulary */
        {1, 4, 2, {2, 2}, SOUND_0, SOUND_1, "impossible"},
        {1, 4, 2, {3, 2}, SOUND_0, SOUND_1, "impossible"},
        {1, 4, 2, {1, 10}, SOUND_0, SOUND_1, "impossible"},
        {1, 4, 2, {1, 0xffffffff}, SOUND_0, SOUND_1, "impossible"},
        {1, 4, 2, {1, 0x80000002}, SOUND_0, SOUND_1, "impossible"},
        /* a layer with no slot in use, the first or another */
        {1, 4, 2, {1, 2}, "\0\0\0\0\0\0\0\0", SOUND_1, "impossible"},
        {1, 4, 2, {1, 2}, SOUND_0, "\0\0\0\0\0\0\0\0", "impossible"},
        /* no such expert; an expert without weight; growing weights; an expert twice; a gap */
        {1, 4, 2, {1, 2}, SOUND_0, "\x8\1\0\0\0\0\0\0", "impossible"},
        {1, 4, 2, {1, 2}, SOUND_0, "\7\2\6\1\5\0\0\0", "impossible"},
        {1, 4, 2, {1, 2}, SOUND_0, "\7\1\6\2\0\0\0\0", "impossible"},
        {1, 4, 2, {1, 2}, SOUND_0, "\7\2\6\1\7\1\0\0", "impossible"},
        {1, 4, 2, {1, 2}, SOUND_0, "\7\1\0\0\0\1\0\0", "impossible"},
    };
    struct routing_table *t = open_table(2, 8, 2, 10);
    static const int32_t picks[4] = {3, 1, 0, 2};
    routing_table_learn(t, 2, picks, 2);
    struct answers before;
    ask(t, 10, &before);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct image m;
        begin(&m, cases[i].version, cases[i].slots, cases[i].count);
        record(&m, cases[i].ids[0], cases[i].layer_0, cases[i].layer_1);
        record(&m, cases[i].ids[1], cases[i].layer_0, cases[i].layer_1);
        seal(&m);
        write_image(m.data, m.n);
        refused(t, cases[i].named);
        same_answers(t, 10, &before);
    }
    routing_table_close(t);
}

static void other_shapes_are_refused(void **state)
{
    (void)state;
    static const struct routing_shape shapes[] = {{1, 8, 2, 10}, {3, 8, 2, 10}, {2, 9, 2, 10},
                                                  {2, 8, 1, 10}, {2, 8, 2, 9},  {2, 8, 2, 11}};
    static const int32_t picks[6] = {3, 1, 0, 2, 4, 5};
    struct routing_table *t = open_table(2, 8, 2, 10);
    routing_table_learn(t, 2, picks, 2);
    save(t);
    routing_table_close(t);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct routing_shape *s = &shapes[i];
        t = open_table(s->layers, s->experts, s->topk, s->vocab);
        routing_table_learn(t, 1, picks, (size_t)s->topk);
        struct answers before;
        ask(t, s->vocab, &before);
        refused(t, "another model");
        same_answers(t, s->vocab, &before);
        routing_table_close(t);
    }
}

static void what_is_no_table(void **state)
{
    (void)state;
    struct routing_table *t = open_table(1, 8, 2, 4);
    struct error err = {0};
    assert_int_equal(routing_table_load(t, path, &err), CFG_ENOTFOUND);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(routing_table_load(t, folder, &err), CFG_EINVAL);
    write_image((const uint8_t *)"", 0);
    refused(t, "not a routing table");
    static const char text[] = "{\"kind\": \"a text as long as the header of a table\"}";
    write_image((const uint8_t *)text, strlen(text));
    refused(t, "not a routing table");
    routing_table_close(t);
}

static int files_in_folder(void)
{
    DIR *d = opendir(folder);
    int n = 0;
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void save_refused(const struct routing_table *t, const char *to, const char *named)
{
    struct error err = {0};
    assert_int_equal(routing_table_save(t, to, &err), CFG_EIO);
    if (!strstr(err.message, to) || !strstr(err.message, named))
        fail_msg("\"%s\", not \"%s\"", err.message, named);
}

/* Where it can't be saved the error names path and reason, the old file stays, and nothing else is
 * left behind. */
static void saving_that_fails(void **state)
{
    (void)state;
    char to[160];
    struct routing_table *t = open_table(1, 8, 2, 4);
    learn(t, 2, 1, 5, 1);
    save(t);
    learn(t, 3, 1, 5, 1);
    snprintf(to, sizeof to, "%s/missing/table", folder);
    save_refused(t, to, "No such file or directory");
    snprintf(to, sizeof to, "%s/table/table", folder);
    save_refused(t, to, "Not a directory");
    snprintf(to, sizeof to, "%s/sub", folder);
    assert_int_equal(mkdir(to, 0700), 0);
    save_refused(t, to, "Is a directory");
    assert_int_equal(rmdir(to), 0);
    save_refused(t, "/proc/self/table", "");

    /* The disk is full, or nearly: here a limit says so. */
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    small = old;
    small.rlim_cur = 40;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    struct error err = {0};
    int rc = routing_table_save(t, path, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, CFG_EIO);
    assert_non_null(strstr(err.message, "File too large"));

    /* Root may write anywhere, so it must be somebody else for a moment. */
    const bool root = geteuid() == 0;
    assert_int_equal(root ? seteuid(65534) : chmod(folder, 0500), 0);
    save_refused(t, path, "Permission denied");
    assert_int_equal(root ? seteuid(0) : chmod(folder, 0700), 0);
    assert_int_equal(files_in_folder(), 1);
    struct answers first = {0};
    load(t);
    first.n[2] = routing_table_expect(t, 2, first.loads[2]);
    assert_int_equal(first.n[2], 2);
    same_answers(t, 4, &first); /* 3 was never saved */
    routing_table_close(t);
}

/* A name without a folder is one in the current folder. */
static void a_name_alone(void **state)
{
    (void)state;
    char was[4096];
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(chdir(folder), 0);
    struct routing_table *t = open_table(1, 8, 2, 4);
    struct error err = {0};
    int rc = routing_table_save(t, "table", &err);
    assert_int_equal(chdir(was), 0);
    assert_int_equal(rc, CFG_OK);
    load(t);
    routing_table_close(t);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static void ids_never_seen_take_no_memory(void **state)
{
    (void)state;
    printf("NOT CHECKED (sanitizers keep their own books): memory of ids that were never seen\n");
}
#else
static long resident_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*d %ld", &pages), 1);
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

/* A table of the published vocabulary and 64 layers would be 131 MB. Saving reads all of it, and
 * loading clears it; a page may be as large as 2 MB. */
static void ids_never_seen_take_no_memory(void **state)
{
    (void)state;
    int32_t picks[2 * 64], experts[2];
    for (int i = 0; i < 2 * 64; i++) picks[i] = i % 32;
    long before = resident_bytes();
    struct routing_table *t = open_table(64, 32, 2, 256384);
    static const int32_t ids[] = {0, 1000, 256383};
    for (int i = 0; i < 3; i++) routing_table_learn(t, ids[i], picks, 2);
    for (int32_t id = 0; id < 256384; id += 64)
        assert_int_equal(routing_table_predict(t, 63, id, 2, experts), id == 0 ? 2 : 0);
    save(t);
    load(t);
    assert_in_range(resident_bytes(), 0, before + (16 << 20));
    assert_int_equal(routing_table_predict(t, 63, 256383, 2, experts), 2);
    routing_table_close(t);
    size_t n;
    uint8_t *image = read_image(&n);
    assert_int_equal(n, 36 + 3 * (4 + 64 * 4 * 2) + 8);
    free(image);
}
#endif

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FOLDER(the_form_of_the_file),
        WITH_FOLDER(a_round_trip),
        WITH_FOLDER(damage_is_refused),
        WITH_FOLDER(sealed_but_wrong),
        WITH_FOLDER(other_shapes_are_refused),
        WITH_FOLDER(what_is_no_table),
        WITH_FOLDER(saving_that_fails),
        WITH_FOLDER(a_name_alone),
        WITH_FOLDER(ids_never_seen_take_no_memory),
    };
    return cmocka_run_group_tests_name("routing_file", tests, NULL, NULL);
}
