// SPDX-License-Identifier: Apache-2.0
//
// server/openapi.json against the tables that requests are checked with, both ways: every field of
// a table is a property of its schema and the other way round, and a field that is refused can have
// no other value there than here. The document is the one that the binary carries.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "server/api_tables.h"
#include "server/embedded.h"

static cJSON *document;

static int open_document(void **state)
{
    (void)state;
    const struct embedded *f = server_embedded;
    while (f->name && strcmp(f->name, "openapi.json") != 0) f++;
    const struct cfg_json_limits limits = {f->size, 100000, 64};
    struct error err = {0};
    if (f->name && cfg_json_parse(&document, f->data, f->size, &limits, &err) == CFG_OK) return 0;
    print_error("openapi.json: %s\n", f->name ? err.message : "not in the binary");
    return -1;
}

static int close_document(void **state)
{
    (void)state;
    cJSON_Delete(document);
    return 0;
}

static const cJSON *child(const cJSON *o, const char *name)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, name);
    if (!v) fail_msg("openapi.json has no %s", name);
    return v;
}

static const cJSON *schema_of(const char *name)
{
    return child(child(child(document, "components"), "schemas"), name);
}

static const struct api_field *find(const struct api_field *table, const char *name)
{
    for (; table && table->name; table++)
        if (!strcmp(table->name, name)) return table;
    return NULL;
}

static bool is_type(const cJSON *property, const char *type)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(property, "type");
    return cJSON_IsString(v) && !strcmp(v->valuestring, type);
}

/* The type beside null of a field that is accepted without effect. */
static void has_type(const char *where, const char *name, const cJSON *property, const char *type)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(property, "type");
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 2 ||
        strcmp(list->child->valuestring, type) != 0 ||
        strcmp(list->child->next->valuestring, "null") != 0)
        fail_msg("%s.%s: the type is not %s or null", where, name, type);
}

/* A field that is refused unless it asks for nothing: that value and null, nothing else. */
static void only_takes(const char *where, const struct api_field *f, const cJSON *property)
{
    if (f->rule == API_FIELD_REPLACED || !f->harmless) {
        if (!is_type(property, "null")) fail_msg("%s.%s is refused, not taken", where, f->name);
        return;
    }
    const cJSON *values = cJSON_GetObjectItemCaseSensitive(property, "enum");
    cJSON *harmless = cJSON_Parse(f->harmless);
    if (cJSON_GetArraySize(values) != 2 || !cJSON_Compare(values->child, harmless, true) ||
        !cJSON_IsNull(values->child->next))
        fail_msg("%s.%s takes only %s and null", where, f->name, f->harmless);
    cJSON_Delete(harmless);
}

static void check_property(const char *where, const struct api_field *f, const cJSON *property)
{
    switch (f->rule) {
    case API_FIELD_STRING:
        has_type(where, f->name, property, "string");
        return;
    case API_FIELD_BOOL:
        has_type(where, f->name, property, "boolean");
        return;
    case API_FIELD_OBJECT:
        has_type(where, f->name, property, "object");
        return;
    case API_FIELD_UNSUPPORTED:
    case API_FIELD_REPLACED:
        only_takes(where, f, property);
        return;
    case API_FIELD_READ:
        if (is_type(property, "null")) fail_msg("%s.%s is read, not refused", where, f->name);
        return;
    }
}

static void same_fields(const char *name, const struct api_field *a, const struct api_field *b)
{
    const cJSON *schema = schema_of(name), *properties = child(schema, "properties"), *v = NULL;
    // Others are refused by name, unless they are null, which is as good as absent.
    if (!is_type(child(schema, "additionalProperties"), "null"))
        fail_msg("%s takes any field", name);
    cJSON_ArrayForEach(v, properties)
    {
        const struct api_field *f = find(a, v->string);
        if (!f) f = find(b, v->string);
        if (!f) fail_msg("%s.%s is no field", name, v->string);
        check_property(name, f, v);
    }
    for (int i = 0; i < 2; i++)
        for (const struct api_field *f = i ? b : a; f && f->name; f++)
            if (!cJSON_GetObjectItemCaseSensitive(properties, f->name))
                fail_msg("%s has no %s", name, f->name);
}

static void test_requests(void **state)
{
    (void)state;
    same_fields("ChatRequest", api_chat_fields, api_shared_fields);
    same_fields("CompletionRequest", api_completion_fields, api_shared_fields);
    same_fields("ResponseRequest", api_response_fields, NULL);
    same_fields("TokenizeRequest", api_tokenize_fields, NULL);
    same_fields("DetokenizeRequest", api_detokenize_fields, NULL);
}

static void test_parts(void **state)
{
    (void)state;
    same_fields("StreamOptions", api_stream_option_fields, NULL);
    same_fields("Message", api_message_fields, NULL);
    same_fields("TextPart", api_text_part_fields, NULL);
    same_fields("RefusalPart", api_refusal_part_fields, NULL);
    same_fields("StructuredOutputs", api_output_fields, NULL);
}

static void test_version(void **state)
{
    (void)state;
    assert_string_equal(child(child(document, "info"), "version")->valuestring, OPENMOED_VERSION);
}

/* Every reference leads to something. */
static void follow(const cJSON *v)
{
    const cJSON *item = NULL;
    cJSON_ArrayForEach(item, v)
    {
        if (item->string && !strcmp(item->string, "$ref")) {
            char path[128];
            const cJSON *at = document;
            assert_true(cJSON_IsString(item) && strlen(item->valuestring) < sizeof path);
            strcpy(path, item->valuestring);
            assert_int_equal(strncmp(path, "#/", 2), 0);
            for (char *part = strtok(path + 2, "/"); part; part = strtok(NULL, "/"))
                at = child(at, part);
        }
        follow(item);
    }
}

static void test_references(void **state)
{
    (void)state;
    follow(document);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_references),
    };
    return cmocka_run_group_tests(tests, open_document, close_document);
}
