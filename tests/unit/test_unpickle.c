// SPDX-License-Identifier: Apache-2.0
//
// test_unpickle.c: the pickle inside a torch.save file: what is read from good ones, and what is
// refused by name without being run: unknown names and opcodes, counts that cannot be true, values
// of the wrong kind, stacks and nesting without end.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/unpickle.h"
#include "tests/unit/torchfile.h"

/* What the pickle reported: names joined by spaces, then the last tensor. */
struct seen {
    char names[64];
    struct unpickle_tensor last;
};

static int collect(void *user, const struct unpickle_tensor *t, struct error *err)
{
    struct seen *s = user;
    size_t at = strlen(s->names);
    (void)err;
    snprintf(s->names + at, sizeof s->names - at, "%.*s ", (int)t->name_n, t->name);
    s->last = *t;
    return CFG_OK;
}

static int unpickle(const char *p, size_t n, struct seen *s, struct error *err)
{
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    if (n) memcpy(copy, p, n);
    int rc = unpickle_tensors("f.bin", (const uint8_t *)copy, n, collect, s, err);
    free(copy);
    return rc;
}

static void refuse_pickle(const char *p, size_t n, const char *named)
{
    struct seen s = {0};
    struct error err = {0};
    if (unpickle(p, n, &s, &err) == CFG_OK) fail_msg("accepted; expected \"%s\"", named);
    if (!strstr(err.message, named) || !strstr(err.message, "f.bin"))
        fail_msg("says \"%s\", not \"%s\"", err.message, named);
}

static void accept_pickle(const struct cfg_buf *b, const char *names)
{
    struct seen s = {0};
    struct error err = {0};
    if (unpickle(b->data, b->len, &s, &err) != CFG_OK) fail_msg("%s", err.message);
    assert_string_equal(s.names, names);
}

/* nn.Module.state_dict() in protocol 2: an OrderedDict with _metadata, and a Parameter. */
static void test_state_dict(void **state)
{
    struct cfg_buf b = {0};
    (void)state;
    OP(&b, "\x80\x02"
           "ccollections\nOrderedDict\nq\0)Rq\1(");
    tensor(&b, &good[0]);
    text(&b, "p");
    OP(&b, "ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v2\n(");
    storage_id(&b, &good[1]);
    OP(&b, "K\1K\3\x85K\1\x85\x89h\0)RtR\x88h\0)RtRu}");
    text(&b, "_metadata");
    OP(&b, "h\0)R");
    text(&b, "");
    OP(&b, "}");
    text(&b, "version");
    OP(&b, "K\1sssb.");
    accept_pickle(&b, "w p ");
    cfg_buf_free(&b);
}

/* Calls whose arguments are of the right kinds, but not of the right number. */
static void test_argument_counts(void **state)
{
    static const struct {
        const char *bytes; /* after the storage, up to the end of the call */
        size_t n;
    } calls[] = {
#define CALL(literal) {literal, sizeof literal - 1}
        CALL("K\0K\2K\3\x86K\1\x85\x89}tR"), /* two sizes, one stride */
        CALL("K\0K\6\x85K\1\x85\x89tR"),     /* no hooks */
        CALL("K\0K\6\x85K\1\x85\x89}}tR"),   /* one more */
        CALL("K\0K\6\x85K\1\x85K\1}tR"),     /* a number for True */
        CALL("K\0K\6K\1\x85\x89}tR"),        /* sizes are no tuple */
        CALL("K\0N\x85K\1\x85\x89}tR"),      /* a size is no number */
        CALL("\x88K\6\x85K\1\x85\x89}tR"),   /* the offset is no number */
        CALL("K\0K\6\x85K\1\x85\x89)tR"),    /* hooks are no dict */
#undef CALL
    };
    (void)state;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        struct cfg_buf b = {0};
        OP(&b, "\x80\x02}");
        text(&b, "t");
        OP(&b, "ctorch._utils\n_rebuild_tensor_v2\n(");
        storage_id(&b, &good[0]);
        cfg_buf_append(&b, calls[i].bytes, calls[i].n);
        OP(&b, "s.");
        refuse_pickle(b.data, b.len, "_rebuild_tensor_v2 with");
        cfg_buf_free(&b);
    }

    struct cfg_buf b = {0};
    OP(&b, "\x80\x02}");
    text(&b, "p");
    OP(&b, "ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v2\n(");
    storage_id(&b, &good[0]);
    OP(&b, "K\0K\6\x85K\1\x85\x89}tR\x88tRs.");
    refuse_pickle(b.data, b.len, "_rebuild_parameter with");
    cfg_buf_free(&b);
}

/* The same kind in protocol 4: a frame, short and long strings, a memo that counts by itself, names
 * on the stack. */
static void test_protocol_4(void **state)
{
    struct cfg_buf b = {0};
    struct seen s = {0};
    struct error err = {0};
    (void)state;
    OP(&b, "\x80\x04\x95\0\0\0\0\0\0\0\0}\x94\x8c\1a\x94\x8c\x0ctorch._utils\x94"
           "\x8c\x12_rebuild_tensor_v2\x94\x93\x94((\x8c\7storage\x94\x8c\5torch\x94");
    OP(&b, "\x8c\x0c"
           "FloatStorage\x94\x93\x94\x8d\1\0\0\0\0\0\0\0"
           "0\x94\x8c\3cpu\x94J\0\0\1\0t\x94Q");
    OP(&b, "M\0\1M\xff\1K\2\x86\x94K\2K\1\x86\x94\x89\x8c\x0b"
           "collections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94t\x94R\x94s.");
    b.data[3] = (char)(b.len - 11); /* the frame's length */
    if (unpickle(b.data, b.len, &s, &err) != CFG_OK) fail_msg("%s", err.message);
    assert_string_equal(s.names, "a ");
    assert_int_equal(s.last.type, TENSOR_F32);
    assert_int_equal(s.last.key_n, 1);
    assert_int_equal(s.last.numel, 65536);
    assert_int_equal(s.last.offset, 256);
    assert_int_equal(s.last.n_dims, 2);
    assert_int_equal(s.last.dims[0], 511);
    assert_int_equal(s.last.dims[1], 2);
    assert_int_equal(s.last.strides[0], 2);
    assert_int_equal(s.last.strides[1], 1);
    cfg_buf_free(&b);
}

static const struct {
    const char *bytes;
    size_t n;
    const char *named;
} pickles[] = {
#define P(literal, named)                                                                          \
    {                                                                                              \
        literal, sizeof literal - 1, named                                                         \
    }
    /* what must never be run */
    P("\x80\x02"
      "cos\nsystem\nX\x10\0\0\0touch /tmp/pwned\x85R.",
      "asks for os.system"),
    P("\x80\x02"
      "cposix\nsystem\nX\2\0\0\0id\x85R.",
      "asks for posix.system"),
    P("\x80\x04\x8c\2os\x8c\6system\x93\x8c\2id\x85R.", "asks for os.system"),
    P("\x80\x02"
      "cbuiltins\neval\nX\1\0\0\0"
      "1\x85R.",
      "asks for builtins.eval"),
    P("\x80\x02"
      "c__builtin__\nexec\n.",
      "asks for __builtin__.exec"),
    P("\x80\x02"
      "ctorch.storage\n_load_from_bytes\n.",
      "asks for torch.storage._load_from_bytes"),
    P("\x80\x02"
      "ctorch\nload\n.",
      "asks for torch.load"),
    P("\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v3\n.",
      "torch._utils._rebuild_tensor_v3"),
    P("\x80\x02"
      "ccollections\nOrderedDict2\n.",
      "asks for collections.OrderedDict2"),
    P("\x80\x02"
      "ccollections\nOrdered\n.",
      "asks for collections.Ordered,"),
    P("\x80\x02"
      "c\x1b[31m\n\xff\0\n.",
      "asks for ?[31m.??"),
    P("\x80\x02"
      "c\n\n.",
      "asks for ."),
    P("\x80\x04K\1\x8c\6system\x93.", "no string"),
    P("\x80\x02"
      "(X\2\0\0\0idios\nsystem\n.",
      "opcode 0x69"), /* INST */
    /* not a pickle we read */
    P("", "no pickle"),
    P("\x80", "no pickle"),
    P("}.", "no pickle"),
    P("\x80\x01}.", "protocol 1"),
    P("\x80\x06}.", "protocol 6"),
    P("\x80\x02", "ends before its STOP"),
    P("\x80\x02}", "ends before its STOP"),
    P("\x80\x02}..", "bytes follow"),
    P("\x80\x02.", "other than one dict"),
    P("\x80\x02N.", "other than one dict"),
    P("\x80\x02}}.", "other than one dict"),
    P("\x80\x02}(.", "other than one dict"),
    P("\x80\x02"
      "ctorch\nFloatStorage\n.",
      "other than one dict"),
    P("\x80\x02"
      "cos",
      "ends in the middle"),
    P("\x80\x02"
      "cos\nsystem",
      "ends in the middle"),
    /* counts that cannot be true */
    P("\x80\x02X\xff\xff\xff\xff"
      "a.",
      "ends in the middle"),
    P("\x80\x02X\5\0\0\0abcd", "ends in the middle"),
    P("\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
      "a.",
      "ends in the middle"),
    P("\x80\x02\x8c\5abcd", "ends in the middle"),
    P("\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "frame longer"),
    P("\x80\x04\x95\3\0\0\0\0\0\0\0}.", "frame longer"),
    P("\x80\x02}r\xff\xff\xff\x7f.", "memo number out of order"),
    P("\x80\x02}q\1.", "memo number out of order"),
    P("\x80\x02q\0}.", "no value on the stack"),
    P("\x80\x02\x94}.", "no value on the stack"),
    P("\x80\x02h\0.", "never stored"),
    P("\x80\x02j\xff\xff\xff\xff.", "never stored"),
    P("\x80\x02\x8a\x09"
      "123456789.",
      "more than 8 bytes"),
    P("\x80\x02\x8a\xff", "more than 8 bytes"),
    P("\x80\x02\x8a\4abc", "ends in the middle"),
    P("\x80\x02K", "ends in the middle"),
    P("\x80\x02M\1", "ends in the middle"),
    P("\x80\x02J\1\2\3", "ends in the middle"),
    /* stack and marks */
    P("\x80\x02t.", "without its mark"),
    P("\x80\x02u.", "without their mark"),
    P("\x80\x02\x85.", "no value on the stack"),
    P("\x80\x02NN\x87.", "no value on the stack"),
    P("\x80\x02NN(N\x86.", "no value on the stack"), /* a mark shields what is below it */
    P("\x80\x02(((((((((((((((((.", "marks are nested too deep"),
    P("\x80\x02)\x85\x85\x85\x85\x85\x85\x85\x85.", "tuples are nested too deep"),
    /* dicts */
    P("\x80\x02s.", "no value on the stack"),
    P("\x80\x02X\1\0\0\0aNs.", "no dict"),
    P("\x80\x02NX\1\0\0\0aNs.", "no dict"),
    P("\x80\x02}(X\1\0\0\0au.", "key without a value"),
    P("\x80\x02}(K\1Nu.", "key is no string"),
    P("\x80\x02}(X\1\0\0\0aNu.", "entry a is no tensor"),
    P("\x80\x02}q\0X\4\0\0\0selfh\0s.", "entry self is no tensor"), /* a dict inside itself */
    P("\x80\x02}X\5\0\0\0model}s.", "entry model is no tensor"),
    P("\x80\x02(u.", "no dict"),
    P("\x80\x02}((X\1\0\0\0aNu.", "no dict"), /* the dict is below a mark */
    /* calls */
    P("\x80\x02R.", "no value on the stack"),
    P("\x80\x02N)R.", "call of something else"),
    P("\x80\x02"
      "ccollections\nOrderedDict\nNR.",
      "call of something else"),
    P("\x80\x02"
      "ccollections\nOrderedDict\nN\x85R.",
      "OrderedDict with arguments"),
    P("\x80\x02"
      "ctorch\nFloatStorage\n)R.",
      "storage class is called"),
    P("\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n)R.",
      "_rebuild_tensor_v2 with"),
    P("\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89}tR.",
      "_rebuild_tensor_v2 with"),
    P("\x80\x02"
      "ctorch._utils\n_rebuild_parameter\n(N\x88}tR.",
      "_rebuild_parameter with"),
    P("\x80\x02"
      "ctorch._utils\n_rebuild_parameter\n)R.",
      "_rebuild_parameter with"),
    P("\x80\x02}b.", "no dict"),
    P("\x80\x02}Nb.", "no dict"),
    P("\x80\x02N}b.", "no dict"),
    /* persistent ids */
    P("\x80\x02Q.", "no value on the stack"),
    P("\x80\x02NQ.", "no storage"),
    P("\x80\x02)Q.", "no storage"),
    P("\x80\x02(X\7\0\0\0storageNX\1\0\0\0"
      "0X\3\0\0\0cpuK\1tQ.",
      "no storage"),
    P("\x80\x02(X\7\0\0\0storageccollections\nOrderedDict\nX\1\0\0\0"
      "0X\3\0\0\0cpuK\1tQ.",
      "no storage"),
    P("\x80\x02(X\7\0\0\0Storagectorch\nFloatStorage\nX\1\0\0\0"
      "0X\3\0\0\0cpuK\1tQ.",
      "no storage"),
    P("\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nK\0X\3\0\0\0cpuK\1tQ.", "no storage"),
    P("\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
      "0X\3\0\0\0cpuNtQ.",
      "no storage"),
    P("\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
      "0X\3\0\0\0cpuJ\xff\xff\xff\xfftQ.",
      "no storage"),
#undef P
};

static void test_pickle_refusals(void **state)
{
    (void)state;
    assert_int_not_equal(access("/tmp/pwned", F_OK), 0);
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++)
        refuse_pickle(pickles[i].bytes, pickles[i].n, pickles[i].named);
    assert_int_not_equal(access("/tmp/pwned", F_OK), 0);
}

/* Exactly these opcodes are known; every other byte is refused as one that is not. */
static void test_unknown_opcodes(void **state)
{
    static const char known[] = "(.NJKMX)}suhjqrcRbQt\x80\x95\x88\x89\x8a\x8c\x8d\x85\x86\x87\x94"
                                "\x93";
    int refused = 0;
    (void)state;
    for (int code = 0; code < 256; code++) {
        char p[] = {'\x80', 2, (char)code, '.'}, named[32];
        if (memchr(known, (char)code, sizeof known - 1)) continue;
        snprintf(named, sizeof named, "byte 2: opcode 0x%02x", (unsigned)code);
        refuse_pickle(p, sizeof p, named);
        refused++;
    }
    assert_int_equal(refused, 256 - 32);
}

/* Many values are no more than their bytes; too many on the stack are refused. */
static void test_stack_is_bounded(void **state)
{
    size_t n = 200000;
    char *p = malloc(n);
    (void)state;
    assert_non_null(p);
    memset(p, 'N', n);
    memcpy(p, "\x80\x02", 2);
    refuse_pickle(p, n, "too many values on the stack");
    memset(p + 2, ')', n - 2);
    refuse_pickle(p, n, "too many values on the stack");
    memset(p + 2, '(', n - 2);
    refuse_pickle(p, n, "marks are nested too deep");
    free(p);
}

/* A pickler counts its memo upward and gets back what it put; storing again replaces. */
static void test_memo(void **state)
{
    struct cfg_buf b = {0};
    (void)state;
    OP(&b, "\x80\x02}q\0(");
    text(&b, "x");
    OP(&b, "q\1r\1\0\0\0");
    OP(&b, "ctorch._utils\n_rebuild_tensor_v2\n(");
    storage_id(&b, &good[0]);
    OP(&b, "K\0K\6\x85K\1\x85\x89}tRr\2\0\0\0");
    text(&b, "y");
    OP(&b, "q\1h\2h\1j\2\0\0\0u.");
    accept_pickle(&b, "x y y ");
    cfg_buf_free(&b);
}

/* Numbers in all their spellings, negative ones included. */
static void test_numbers(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        int64_t value; /* -1 stands for refused as negative */
    } cases[] = {
        {"K\xff", 2, 255},
        {"M\xff\xff", 3, 65535},
        {"J\xff\xff\xff\x7f", 5, INT32_MAX},
        {"J\xff\xff\xff\xff", 5, -1},
        {"\x8a\0", 2, 0},
        {"\x8a\1\xff", 3, -1},
        {"\x8a\1\x7f", 3, 127},
        {"\x8a\2\xff\0", 4, 255},
        {"\x8a\5\0\0\0\0\1", 7, 1LL << 32},
        {"\x8a\5\0\0\0\0\x80", 7, -1},
        {"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", 10, INT64_MAX},
        {"\x8a\x08\0\0\0\0\0\0\0\x80", 10, -1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cfg_buf b = {0};
        struct seen s = {0};
        struct error err = {0};
        OP(&b, "\x80\x02}");
        text(&b, "t");
        OP(&b, "ctorch._utils\n_rebuild_tensor_v2\n(");
        storage_id(&b, &good[0]);
        cfg_buf_append(&b, cases[i].bytes, cases[i].n); /* the offset */
        OP(&b, "))\x89}tRs.");
        int rc = unpickle(b.data, b.len, &s, &err);
        if (cases[i].value < 0) {
            assert_int_equal(rc, CFG_EINVAL);
            assert_non_null(strstr(err.message, "tensor t: a negative"));
        } else {
            assert_int_equal(rc, CFG_OK);
            assert_true(s.last.offset == cases[i].value);
            assert_int_equal(s.last.n_dims, 0);
        }
        cfg_buf_free(&b);
    }
}

/* A failure of the reader's own is passed on as it is. */
static int decline(void *user, const struct unpickle_tensor *t, struct error *err)
{
    (void)user;
    (void)t;
    return cfg_fail(err, CFG_EFULL, "declined");
}

static void test_callback_ends_it(void **state)
{
    struct cfg_buf b = {0};
    struct error err = {0};
    (void)state;
    OP(&b, "\x80\x02}(");
    tensor(&b, &good[0]);
    OP(&b, "u.");
    assert_int_equal(unpickle_tensors("f", (const uint8_t *)b.data, b.len, decline, NULL, &err),
                     CFG_EFULL);
    assert_string_equal(err.message, "declined");
    cfg_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_state_dict),
        cmocka_unit_test(test_argument_counts),
        cmocka_unit_test(test_protocol_4),
        cmocka_unit_test(test_pickle_refusals),
        cmocka_unit_test(test_unknown_opcodes),
        cmocka_unit_test(test_stack_is_bounded),
        cmocka_unit_test(test_memo),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_callback_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
