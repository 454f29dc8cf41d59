// SPDX-License-Identifier: Apache-2.0
//
// fuzz_json.c: any bytes through cfg_json_parse. Beyond not crashing: the scan and cJSON agree (no
// other outcome than taken or CFG_EINVAL), a refusal has its words, limits hold on the tree that is
// handed out, and a taken text printed by cJSON is taken again and equal. The first byte chooses
// the limits.
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "tests/fuzz/must.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void measure(const cJSON *value, int depth, size_t *values, int *deepest)
{
    for (; value; value = value->next) {
        ++*values;
        bool container = cJSON_IsArray(value) || cJSON_IsObject(value);
        if (container && depth + 1 > *deepest) *deepest = depth + 1;
        if (cJSON_IsString(value))
            MUST(cfg_utf8_valid(value->valuestring, strlen(value->valuestring)));
        if (value->string) MUST(cfg_utf8_valid(value->string, strlen(value->string)));
        if (cJSON_IsNumber(value))
            MUST(value->valuedouble - value->valuedouble == 0.0); /* finite */
        measure(value->child, depth + 1, values, deepest);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const struct cfg_json_limits choices[] = {
        {1 << 20, 1 << 20, 900}, {1 << 20, 1 << 20, 5000}, {64, 8, 3}, {1 << 20, 40, 12}};
    if (n == 0) return 0;
    const struct cfg_json_limits *limits = &choices[data[0] & 3];
    const char *text = (const char *)data + 1;
    n--;

    cJSON *tree;
    struct error err = {0};
    int rc = cfg_json_parse(&tree, text, n, limits, &err);
    if (rc != CFG_OK) {
        MUST(rc == CFG_EINVAL && err.code == rc && tree == NULL);
        MUST(strncmp(err.message, "invalid JSON: ", 14) == 0);
        MUST(cfg_utf8_valid(err.message, strlen(err.message)));
        return 0;
    }
    size_t values = 0;
    int deepest = 0;
    measure(tree, 0, &values, &deepest);
    MUST(n <= limits->max_bytes && values <= limits->max_values);
    MUST(deepest <= limits->max_depth && deepest <= 900);

    char *printed = cJSON_PrintUnformatted(tree);
    MUST(printed);
    static const struct cfg_json_limits wide = {1 << 24, 1 << 20, 900};
    cJSON *again;
    rc = cfg_json_parse(&again, printed, strlen(printed), &wide, &err);
    if (rc != CFG_OK) fprintf(stderr, "%s: %s\n", printed, err.message);
    MUST(rc == CFG_OK);
    MUST(cJSON_Compare(tree, again, 1));
    cJSON_Delete(again);
    cJSON_free(printed);
    cJSON_Delete(tree);
    return 0;
}
