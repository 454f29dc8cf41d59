// SPDX-License-Identifier: Apache-2.0
//
// sampler.h (private to engine/): from one row of logits to a token. Pure functions of the row and
// the sampler's state; rows of one step may be sampled by several threads at once, since each
// sampler belongs to one row.
#ifndef OPENMOED_SAMPLER_H
#define OPENMOED_SAMPLER_H

#include "engine/ops.h"

/* Picks a token from logits [vocab] (FP32; modified in place: penalties, bias and masks are applied
 * to it) and records it in the sampler. usable is engine_info.usable_vocab. */
void sampler_pick(struct engine_sampler *s, float *logits, int usable, struct engine_result *out);
/* Log-probability of `target` and the n_top likeliest ids; logits are left as they are. A target
 * outside [0, usable) scores -inf. */
void sampler_score(const float *logits, int usable, int32_t target, int n_top,
                   struct engine_result *out);

/* For backends that sample on their own: the sampler's state as they need it, borrowed until the
 * step's end, and what they chose, which sampler_pick notes itself. */
void sampler_view(struct engine_sampler *s, struct op_sample *out);
void sampler_note(struct engine_sampler *s, int32_t token);

#endif
