// SPDX-License-Identifier: Apache-2.0
//
// unpickle.c: a small machine for one kind of pickle. Values are plain data: nothing in the file
// can name a function of ours, and the two functions it may "call" only check their arguments and
// keep them. Values live in one arena, are never walked recursively and may be shared, so neither
// deep nesting nor cycles cost more than their own bytes. One machine per call; no global state.
#include "engine/unpickle.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PICKLE ((size_t)16 << 20) /* a tensor takes about 150 bytes */
#define MAX_STACK  65536              /* a pickler empties its stack every 1000 entries */
#define MAX_MARKS  16
#define MAX_DEPTH  8 /* tuples in tuples; real files reach 2 */

/* Protocol 2 to 5 opcodes; the names are those of Python's pickletools. */
enum opcode {
    OP_MARK = '(',
    OP_STOP = '.',
    OP_NONE = 'N',
    OP_PROTO = 0x80,
    OP_FRAME = 0x95,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_LONG1 = 0x8a,
    OP_BINUNICODE = 'X',
    OP_SHORT_BINUNICODE = 0x8c,
    OP_BINUNICODE8 = 0x8d,
    OP_EMPTY_TUPLE = ')',
    OP_TUPLE = 't',
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_EMPTY_DICT = '}',
    OP_SETITEM = 's',
    OP_SETITEMS = 'u',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_MEMOIZE = 0x94,
    OP_GLOBAL = 'c',
    OP_STACK_GLOBAL = 0x93,
    OP_REDUCE = 'R',
    OP_BUILD = 'b',
    OP_BINPERSID = 'Q',
};

enum kind { V_NONE, V_BOOL, V_INT, V_STRING, V_GLOBAL, V_TUPLE, V_DICT, V_STORAGE, V_TENSOR };

enum role { ROLE_DICT, ROLE_TENSOR, ROLE_PARAMETER, ROLE_STORAGE };

struct global {
    const char *module, *name;
    enum role role;
    int type; /* of a storage: enum tensor_type, or -1: known, but of no use here */
};

static const struct global globals[] = {
    {"collections", "OrderedDict", ROLE_DICT, 0},
    {"torch._utils", "_rebuild_tensor_v2", ROLE_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", ROLE_PARAMETER, 0},
    {"torch", "FloatStorage", ROLE_STORAGE, TENSOR_F32},
    {"torch", "BFloat16Storage", ROLE_STORAGE, TENSOR_BF16},
    {"torch", "HalfStorage", ROLE_STORAGE, TENSOR_F16},
    {"torch", "DoubleStorage", ROLE_STORAGE, -1},
    {"torch", "LongStorage", ROLE_STORAGE, -1},
    {"torch", "IntStorage", ROLE_STORAGE, -1},
    {"torch", "ShortStorage", ROLE_STORAGE, -1},
    {"torch", "CharStorage", ROLE_STORAGE, -1},
    {"torch", "ByteStorage", ROLE_STORAGE, -1},
    {"torch", "BoolStorage", ROLE_STORAGE, -1},
    {"torch", "ComplexFloatStorage", ROLE_STORAGE, -1},
    {"torch", "ComplexDoubleStorage", ROLE_STORAGE, -1},
};

struct value {
    enum kind kind;
    union {
        int64_t i;
        const struct global *global;
        struct tuple *tuple; /* V_TUPLE; V_STORAGE: the persistent id; V_TENSOR: the arguments */
        struct dict *dict;
        struct {
            const char *s; /* inside the pickle */
            size_t n;
        } str;
    };
};

struct tuple {
    size_t n;
    int depth;
    struct value items[]; /* [n] */
};

struct pair {
    struct value key, value;
    struct pair *next;
};

/* An insertion-ordered list is all that is needed: nothing is ever looked up in it. */
struct dict {
    struct pair *first, *last;
};

struct machine {
    const char *file;
    const uint8_t *data;
    size_t n, at;
    size_t op_at; /* where the current opcode stands */
    struct cfg_arena *arena;
    struct value *stack; /* [MAX_STACK], grown on demand */
    size_t n_stack, stack_capacity;
    struct value *memo;
    size_t n_memo, memo_capacity;
    size_t marks[MAX_MARKS];
    int n_marks;
    bool stopped;
    struct error *err;
};

/* ---- errors, bytes, stack -------------------------------------------------------------------- */

static int bad(struct machine *m, const char *what)
{
    return cfg_fail(m->err, CFG_EINVAL, "%s: pickle, byte %zu: %s", m->file, m->op_at, what);
}

/* Takes k bytes of the pickle. */
static int take(struct machine *m, size_t k, const uint8_t **out)
{
    if (k > m->n - m->at) return bad(m, "it ends in the middle of an opcode");
    *out = m->data + m->at;
    m->at += k;
    return CFG_OK;
}

/* Takes a little-endian unsigned number of k <= 8 bytes. */
static int take_uint(struct machine *m, size_t k, uint64_t *out)
{
    const uint8_t *p = NULL;
    int rc = take(m, k, &p);
    if (rc != CFG_OK) return rc;
    *out = 0;
    while (k-- > 0) *out = *out << 8 | p[k];
    return CFG_OK;
}

/* Doubles an array of values until it holds one more. */
static int grow(struct machine *m, struct value **items, size_t n, size_t *capacity)
{
    if (n < *capacity) return CFG_OK;
    size_t wanted = *capacity ? 2 * *capacity : 256;
    struct value *grown = realloc(*items, wanted * sizeof *grown);
    if (!grown) return cfg_fail(m->err, CFG_ENOMEM, "%s: no memory for its pickle", m->file);
    *items = grown;
    *capacity = wanted;
    return CFG_OK;
}

static void *alloc(struct machine *m, size_t bytes)
{
    void *p = cfg_arena_alloc(m->arena, bytes);
    if (!p) (void)cfg_fail(m->err, CFG_ENOMEM, "%s: no memory for its pickle", m->file);
    return p;
}

static int push(struct machine *m, struct value v)
{
    if (m->n_stack == MAX_STACK) return bad(m, "too many values on the stack");
    int rc = grow(m, &m->stack, m->n_stack, &m->stack_capacity);
    if (rc != CFG_OK) return rc;
    m->stack[m->n_stack++] = v;
    return CFG_OK;
}

/* Values below the last mark are out of reach. */
static size_t floor_of(const struct machine *m)
{
    return m->n_marks ? m->marks[m->n_marks - 1] : 0;
}

static int pop(struct machine *m, struct value *out)
{
    if (m->n_stack == floor_of(m)) return bad(m, "an opcode finds no value on the stack");
    *out = m->stack[--m->n_stack];
    return CFG_OK;
}

static bool string_is(const struct value *v, const char *s)
{
    return v->kind == V_STRING && v->str.n == strlen(s) && memcmp(v->str.s, s, v->str.n) == 0;
}

/* ---- opcodes that make plain values ---------------------------------------------------------- */

static int op_int(struct machine *m, int op)
{
    uint64_t u = 0, k = op == OP_BININT ? 4 : op == OP_BININT2 ? 2 : 1;
    int64_t i = 0;
    int rc = CFG_OK;
    if (op == OP_LONG1) rc = take_uint(m, 1, &k);
    if (rc == CFG_OK && k > 8) return bad(m, "a whole number of more than 8 bytes");
    if (rc == CFG_OK) rc = take_uint(m, (size_t)k, &u);
    if (rc != CFG_OK) return rc;
    memcpy(&i, &u, sizeof i);
    if ((op == OP_BININT || op == OP_LONG1) && k > 0 && k < 8 && u >> (8 * k - 1))
        i -= (int64_t)1 << (8 * k); /* two's complement of k bytes */
    return push(m, (struct value){.kind = V_INT, .i = i});
}

static int op_string(struct machine *m, int op)
{
    uint64_t n = 0;
    const uint8_t *p = NULL;
    int rc = take_uint(m, op == OP_SHORT_BINUNICODE ? 1 : op == OP_BINUNICODE ? 4 : 8, &n);
    if (rc == CFG_OK) rc = take(m, (size_t)n, &p);
    if (rc != CFG_OK) return rc;
    return push(m, (struct value){.kind = V_STRING, .str = {(const char *)p, (size_t)n}});
}

/* Pops everything above `from` into a tuple. */
static int make_tuple(struct machine *m, size_t from)
{
    size_t n = m->n_stack - from;
    struct tuple *t = alloc(m, sizeof *t + n * sizeof t->items[0]);
    if (!t) return CFG_ENOMEM;
    t->n = n;
    t->depth = 1;
    for (size_t i = 0; i < n; i++) {
        t->items[i] = m->stack[from + i];
        if (t->items[i].kind == V_TUPLE && t->items[i].tuple->depth >= t->depth)
            t->depth = t->items[i].tuple->depth + 1;
    }
    if (t->depth > MAX_DEPTH) return bad(m, "tuples are nested too deep");
    m->n_stack = from;
    return push(m, (struct value){.kind = V_TUPLE, .tuple = t});
}

static int op_tuple(struct machine *m, int op)
{
    if (op == OP_EMPTY_TUPLE) return make_tuple(m, m->n_stack);
    if (op == OP_TUPLE) {
        if (m->n_marks == 0) return bad(m, "a tuple without its mark");
        return make_tuple(m, m->marks[--m->n_marks]);
    }
    size_t n = (size_t)(op - OP_TUPLE1) + 1;
    if (m->n_stack - floor_of(m) < n) return bad(m, "an opcode finds no value on the stack");
    return make_tuple(m, m->n_stack - n);
}

static int op_mark(struct machine *m)
{
    if (m->n_marks == MAX_MARKS) return bad(m, "marks are nested too deep");
    m->marks[m->n_marks++] = m->n_stack;
    return CFG_OK;
}

/* ---- memo ------------------------------------------------------------------------------------ */

/* Picklers number their memo from 0 without gaps, so a larger number is not believed: it would
 * be an allocation of the file's choosing. */
static int op_put(struct machine *m, int op)
{
    uint64_t i = m->n_memo;
    int rc = CFG_OK;
    if (op != OP_MEMOIZE) rc = take_uint(m, op == OP_BINPUT ? 1 : 4, &i);
    if (rc != CFG_OK) return rc;
    if (i > m->n_memo) return bad(m, "a memo number out of order");
    if (m->n_stack == floor_of(m)) return bad(m, "an opcode finds no value on the stack");
    if (i == m->n_memo) {
        rc = grow(m, &m->memo, m->n_memo, &m->memo_capacity);
        if (rc != CFG_OK) return rc;
        m->n_memo++;
    }
    m->memo[i] = m->stack[m->n_stack - 1];
    return CFG_OK;
}

static int op_get(struct machine *m, int op)
{
    uint64_t i = 0;
    int rc = take_uint(m, op == OP_BINGET ? 1 : 4, &i);
    if (rc != CFG_OK) return rc;
    if (i >= m->n_memo) return bad(m, "a memo number that was never stored");
    return push(m, m->memo[i]);
}

/* ---- dicts ----------------------------------------------------------------------------------- */

static int new_dict(struct machine *m)
{
    struct dict *d = alloc(m, sizeof *d);
    if (!d) return CFG_ENOMEM;
    return push(m, (struct value){.kind = V_DICT, .dict = d});
}

/* Adds the values above `from`, pairs of key and value, to the dict below them. */
static int set_items(struct machine *m, size_t from)
{
    if (from == floor_of(m) || m->stack[from - 1].kind != V_DICT)
        return bad(m, "items are set on something that is no dict");
    if ((m->n_stack - from) % 2) return bad(m, "a key without a value");
    struct dict *d = m->stack[from - 1].dict;
    for (size_t i = from; i < m->n_stack; i += 2) {
        struct pair *p = alloc(m, sizeof *p);
        if (!p) return CFG_ENOMEM;
        if (m->stack[i].kind != V_STRING) return bad(m, "a key is no string");
        p->key = m->stack[i];
        p->value = m->stack[i + 1];
        if (d->last)
            d->last->next = p;
        else
            d->first = p;
        d->last = p;
    }
    m->n_stack = from;
    return CFG_OK;
}

static int op_set(struct machine *m, int op)
{
    if (op == OP_SETITEM) {
        if (m->n_stack - floor_of(m) < 2) return bad(m, "an opcode finds no value on the stack");
        return set_items(m, m->n_stack - 2);
    }
    if (m->n_marks == 0) return bad(m, "items without their mark");
    size_t from = m->marks[--m->n_marks];
    return set_items(m, from);
}

/* ---- names, and what may be made with them --------------------------------------------------- */

/* Shows at most 80 bytes of a name from the file, and only letters one can read. */
static int refuse_global(struct machine *m, const char *module, size_t module_n, const char *name,
                         size_t name_n)
{
    char text[168];
    size_t n = 0;
    const char *parts[2] = {module, name};
    size_t sizes[2] = {module_n, name_n};
    for (int p = 0; p < 2; p++) {
        if (p == 1) text[n++] = '.';
        for (size_t i = 0; i < sizes[p] && i < 80; i++)
            text[n++] = parts[p][i] > 0x20 && parts[p][i] < 0x7f ? parts[p][i] : '?';
    }
    text[n] = '\0';
    return cfg_fail(m->err, CFG_EUNSUPPORTED,
                    "%s: pickle, byte %zu: it asks for %s, which a file of weights does not need: "
                    "refused, nothing was run",
                    m->file, m->op_at, text);
}

static bool same(const char *s, size_t n, const char *known)
{
    return n == strlen(known) && memcmp(s, known, n) == 0;
}

static int push_global(struct machine *m, const char *module, size_t module_n, const char *name,
                       size_t name_n)
{
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (same(module, module_n, globals[i].module) && same(name, name_n, globals[i].name))
            return push(m, (struct value){.kind = V_GLOBAL, .global = &globals[i]});
    }
    return refuse_global(m, module, module_n, name, name_n);
}

static int take_line(struct machine *m, const char **out, size_t *n)
{
    const uint8_t *start = m->data + m->at, *end = memchr(start, '\n', m->n - m->at);
    if (!end) return bad(m, "it ends in the middle of an opcode");
    *out = (const char *)start;
    *n = (size_t)(end - start);
    m->at += *n + 1;
    return CFG_OK;
}

static int op_global(struct machine *m, int op)
{
    if (op == OP_STACK_GLOBAL) {
        struct value name = {0}, module = {0};
        int rc = pop(m, &name);
        if (rc == CFG_OK) rc = pop(m, &module);
        if (rc != CFG_OK) return rc;
        if (name.kind != V_STRING || module.kind != V_STRING)
            return bad(m, "a name that is no string");
        return push_global(m, module.str.s, module.str.n, name.str.s, name.str.n);
    }
    const char *module = NULL, *name = NULL;
    size_t module_n = 0, name_n = 0;
    int rc = take_line(m, &module, &module_n);
    if (rc == CFG_OK) rc = take_line(m, &name, &name_n);
    return rc == CFG_OK ? push_global(m, module, module_n, name, name_n) : rc;
}

static bool all_ints(const struct value *v)
{
    if (v->kind != V_TUPLE) return false;
    for (size_t i = 0; i < v->tuple->n; i++) {
        if (v->tuple->items[i].kind != V_INT) return false;
    }
    return true;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks) */
static bool is_tensor_call(const struct tuple *a)
{
    return a->n == 6 && a->items[0].kind == V_STORAGE && a->items[1].kind == V_INT &&
           all_ints(&a->items[2]) && all_ints(&a->items[3]) &&
           a->items[2].tuple->n == a->items[3].tuple->n && a->items[4].kind == V_BOOL &&
           a->items[5].kind == V_DICT;
}

static int op_reduce(struct machine *m)
{
    struct value args = {.kind = V_NONE}, f = {.kind = V_NONE};
    int rc = pop(m, &args);
    if (rc == CFG_OK) rc = pop(m, &f);
    if (rc != CFG_OK) return rc;
    if (f.kind != V_GLOBAL || args.kind != V_TUPLE) return bad(m, "a call of something else");
    const struct tuple *a = args.tuple;
    switch (f.global->role) {
    case ROLE_DICT:
        if (a->n != 0) return bad(m, "OrderedDict with arguments");
        return new_dict(m);
    case ROLE_TENSOR:
        if (!is_tensor_call(a)) return bad(m, "_rebuild_tensor_v2 with arguments of another kind");
        return push(m, (struct value){.kind = V_TENSOR, .tuple = args.tuple});
    case ROLE_PARAMETER: /* (tensor, requires_grad, backward_hooks): the tensor itself */
        if (a->n != 3 || a->items[0].kind != V_TENSOR)
            return bad(m, "_rebuild_parameter with arguments of another kind");
        return push(m, a->items[0]);
    case ROLE_STORAGE:
        break;
    }
    return bad(m, "a storage class is called");
}

/* Attributes of an OrderedDict: PyTorch hangs its version numbers there (_metadata). Not needed. */
static int op_build(struct machine *m)
{
    struct value state = {.kind = V_NONE};
    int rc = pop(m, &state);
    if (rc != CFG_OK) return rc;
    if (state.kind != V_DICT || m->n_stack == floor_of(m) ||
        m->stack[m->n_stack - 1].kind != V_DICT)
        return bad(m, "attributes are set on something that is no dict");
    return CFG_OK;
}

/* The tuple ('storage', class, key, device, numel) stands for bytes beside the pickle. */
static int op_persid(struct machine *m)
{
    struct value v = {.kind = V_NONE};
    int rc = pop(m, &v);
    if (rc != CFG_OK) return rc;
    const struct value *i = v.kind == V_TUPLE ? v.tuple->items : NULL;
    if (!i || v.tuple->n != 5 || !string_is(&i[0], "storage") || i[1].kind != V_GLOBAL ||
        i[1].global->role != ROLE_STORAGE || i[2].kind != V_STRING || i[3].kind != V_STRING ||
        i[4].kind != V_INT || i[4].i < 0)
        return bad(m, "a persistent id that is no storage");
    return push(m, (struct value){.kind = V_STORAGE, .tuple = v.tuple});
}

/* ---- the loop -------------------------------------------------------------------------------- */

static int op_header(struct machine *m, int op)
{
    uint64_t v = 0;
    int rc = take_uint(m, op == OP_PROTO ? 1 : 8, &v);
    if (rc != CFG_OK) return rc;
    if (op == OP_FRAME) return v <= m->n - m->at ? CFG_OK : bad(m, "a frame longer than the rest");
    if (v < 2 || v > 5)
        return cfg_fail(m->err, CFG_EUNSUPPORTED, "%s: pickle protocol %u: only 2 to 5 are read",
                        m->file, (unsigned)v);
    return CFG_OK;
}

static int step(struct machine *m)
{
    m->op_at = m->at;
    if (m->at == m->n) return bad(m, "it ends before its STOP");
    int op = m->data[m->at++];
    switch (op) {
    case OP_PROTO:
    case OP_FRAME:
        return op_header(m, op);
    case OP_MARK:
        return op_mark(m);
    case OP_NONE:
        return push(m, (struct value){.kind = V_NONE});
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        return push(m, (struct value){.kind = V_BOOL, .i = op == OP_NEWTRUE});
    case OP_BININT:
    case OP_BININT1:
    case OP_BININT2:
    case OP_LONG1:
        return op_int(m, op);
    case OP_BINUNICODE:
    case OP_SHORT_BINUNICODE:
    case OP_BINUNICODE8:
        return op_string(m, op);
    case OP_EMPTY_TUPLE:
    case OP_TUPLE:
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return op_tuple(m, op);
    case OP_EMPTY_DICT:
        return new_dict(m);
    case OP_SETITEM:
    case OP_SETITEMS:
        return op_set(m, op);
    case OP_BINGET:
    case OP_LONG_BINGET:
        return op_get(m, op);
    case OP_BINPUT:
    case OP_LONG_BINPUT:
    case OP_MEMOIZE:
        return op_put(m, op);
    case OP_GLOBAL:
    case OP_STACK_GLOBAL:
        return op_global(m, op);
    case OP_REDUCE:
        return op_reduce(m);
    case OP_BUILD:
        return op_build(m);
    case OP_BINPERSID:
        return op_persid(m);
    case OP_STOP:
        m->stopped = true;
        return CFG_OK;
    default:
        return cfg_fail(m->err, CFG_EUNSUPPORTED,
                        "%s: pickle, byte %zu: opcode 0x%02x is none that tensors need", m->file,
                        m->op_at, (unsigned)op);
    }
}

/* ---- from values to tensors ------------------------------------------------------------------ */

/* Fills t, whose name is set, from the arguments of _rebuild_tensor_v2. */
static int describe(struct machine *m, const struct tuple *args, struct unpickle_tensor *t)
{
    const struct value *storage = args->items[0].tuple->items;
    const struct tuple *size = args->items[2].tuple, *stride = args->items[3].tuple;
    int shown = (int)(t->name_n < 256 ? t->name_n : 256);
    if (storage[1].global->type < 0)
        return cfg_fail(m->err, CFG_EUNSUPPORTED,
                        "%s: tensor %.*s is a torch.%s: only Float, BFloat16 and Half can be used",
                        m->file, shown, t->name, storage[1].global->name);
    if (size->n > TENSOR_MAX_DIMS)
        return cfg_fail(m->err, CFG_EINVAL, "%s: tensor %.*s has %zu dimensions, at most %d can be",
                        m->file, shown, t->name, size->n, TENSOR_MAX_DIMS);
    t->type = (enum tensor_type)storage[1].global->type;
    t->key = storage[2].str.s;
    t->key_n = storage[2].str.n;
    t->numel = storage[4].i;
    t->offset = args->items[1].i;
    t->n_dims = (int)size->n;
    bool negative = t->offset < 0;
    for (int i = 0; i < t->n_dims; i++) {
        t->dims[i] = size->items[i].i;
        t->strides[i] = stride->items[i].i;
        negative |= t->dims[i] < 0;
    }
    if (negative)
        return cfg_fail(m->err, CFG_EINVAL, "%s: tensor %.*s: a negative size or offset", m->file,
                        shown, t->name);
    return CFG_OK;
}

static int report(struct machine *m, const struct dict *d,
                  int (*found)(void *user, const struct unpickle_tensor *t, struct error *err),
                  void *user)
{
    for (const struct pair *p = d->first; p; p = p->next) {
        struct unpickle_tensor t = {.name = p->key.str.s, .name_n = p->key.str.n};
        if (p->value.kind != V_TENSOR)
            return cfg_fail(m->err, CFG_EINVAL,
                            "%s: entry %.*s is no tensor: a plain dict of tensors is needed",
                            m->file, (int)(t.name_n < 256 ? t.name_n : 256), t.name);
        int rc = describe(m, p->value.tuple, &t);
        if (rc == CFG_OK) rc = found(user, &t, m->err);
        if (rc != CFG_OK) return rc;
    }
    return CFG_OK;
}

/* *out is set only when the whole pickle was read and left one dict. */
static int run(struct machine *m, const struct dict **out)
{
    if (m->n < 2 || m->data[0] != OP_PROTO)
        return bad(m, "no pickle of protocol 2 or later, which torch.save writes");
    while (!m->stopped) {
        int rc = step(m);
        if (rc != CFG_OK) return rc;
    }
    if (m->at != m->n) return bad(m, "bytes follow its end");
    if (m->n_marks != 0 || m->n_stack != 1 || m->stack[0].kind != V_DICT)
        return bad(m, "it holds something other than one dict of tensors");
    *out = m->stack[0].dict;
    return CFG_OK;
}

int unpickle_tensors(const char *file, const uint8_t *data, size_t n,
                     int (*found)(void *user, const struct unpickle_tensor *t, struct error *err),
                     void *user, struct error *err)
{
    if (n > MAX_PICKLE)
        return cfg_fail(err, CFG_EINVAL, "%s: its pickle of %zu bytes is over the limit of %zu",
                        file, n, MAX_PICKLE);
    struct machine m = {.file = file, .data = data, .n = n, .err = err};
    /* One byte of pickle makes at most one value, and a value at most one pair or tuple. */
    m.arena = cfg_arena_new(96 * n + 65536);
    if (!m.arena) return cfg_fail(err, CFG_ENOMEM, "%s: no memory for its pickle", file);
    const struct dict *d = NULL;
    int rc = run(&m, &d);
    if (d) rc = report(&m, d, found, user);
    free(m.stack);
    free(m.memo);
    cfg_arena_free(m.arena);
    return rc;
}
