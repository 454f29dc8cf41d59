// SPDX-License-Identifier: Apache-2.0
//
// api_error.c: the error envelope. Messages and names may quote what a client sent, so they are cut
// at a character boundary here and escaped when they are written. Any thread; owns nothing.
#include "server/api.h"

#include <stdio.h>
#include <string.h>

static const char *type_of(int status)
{
    if (status >= 500) return "server_error";
    if (status == 429) return "rate_limit_error";
    return "invalid_request_error";
}

int api_fail(struct api_error *err, int status, const char *code, const char *param,
             const char *fmt, ...)
{
    err->status = status;
    err->type = type_of(status);
    err->code = code;

    // A name or message that was cut may end inside a character.
    snprintf(err->param, sizeof err->param, "%s", param ? param : "");
    err->param[cfg_utf8_complete(err->param, strlen(err->param))] = '\0';

    va_list args;
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    err->message[cfg_utf8_complete(err->message, strlen(err->message))] = '\0';
    return -1;
}

void api_error_body(const struct api_error *err, struct cfg_buf *out)
{
    cfg_buf_puts(out, "{\"error\":{\"message\":");
    cfg_buf_json_string(out, err->message, strlen(err->message));
    cfg_buf_printf(out, ",\"type\":\"%s\",\"param\":", err->type);
    if (err->param[0])
        cfg_buf_json_string(out, err->param, strlen(err->param));
    else
        cfg_buf_puts(out, "null");
    if (err->code)
        cfg_buf_printf(out, ",\"code\":\"%s\"}}", err->code);
    else
        cfg_buf_puts(out, ",\"code\":null}}");
}

void api_error_event(const struct api_error *err, struct cfg_buf *out)
{
    cfg_buf_puts(out, "data: ");
    api_error_body(err, out);
    cfg_buf_puts(out, "\n\n");
}
