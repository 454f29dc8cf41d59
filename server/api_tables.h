// SPDX-License-Identifier: Apache-2.0
//
// api_tables.h (private to server/api_*.c): what each kind of object in a request may have, one
// table for each. They are constant, and server/openapi.json says the same: a test holds the two
// against each other.
#ifndef OPENMOED_API_TABLES_H
#define OPENMOED_API_TABLES_H

#include "server/api_fields.h"

extern const struct api_field api_shared_fields[]; /* of chats and completions */
extern const struct api_field api_chat_fields[];
extern const struct api_field api_completion_fields[];
extern const struct api_field api_stream_option_fields[];
extern const struct api_field api_message_fields[];
extern const struct api_field api_text_part_fields[];
extern const struct api_field api_refusal_part_fields[];
extern const struct api_field api_output_fields[]; /* structured_outputs */
extern const struct api_field api_response_fields[];
extern const struct api_field api_tokenize_fields[];
extern const struct api_field api_detokenize_fields[];

#endif
