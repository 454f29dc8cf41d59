// SPDX-License-Identifier: Apache-2.0
//
// test_plan.c: the make-up of a step (scheduler/plan.h), by hand-made states
// and by small simulations that run whole prompts to their end without an
// engine.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <stdlib.h>

#include "scheduler/plan.h"

static void admits_by_seats_and_blocks(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 2, .max_step_tokens = 8};
  assert_true(plan_admits(&lim, 1, 0, 5, 5));
  assert_false(plan_admits(&lim, 2, 0, 5, 5));
  assert_false(plan_admits(&lim, 0, 0, 4, 5));
  /* a block stays for each that may grow, unless it would be alone */
  assert_true(plan_admits(&lim, 1, 2, 7, 5));
  assert_false(plan_admits(&lim, 1, 2, 6, 5));
  assert_true(plan_admits(&lim, 0, 1, 5, 5));
}

static void decodes_come_first(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 4, .max_step_tokens = 10};
  struct plan_seq seqs[4] = {{.order = 1, .prompt_left = 1000},
                             {.order = 2},
                             {.order = 3},
                             {.order = 4, .prompt_left = 3}};
  struct plan_turn turn = {.order = 4};
  assert_int_equal(plan_step(&lim, seqs, 4, &turn), 10);
  assert_int_equal(seqs[0].rows, 5);
  assert_int_equal(seqs[1].rows, 1);
  assert_int_equal(seqs[2].rows, 1);
  assert_int_equal(seqs[3].rows, 3);
  /* The long prompt has had 5 rows of a turn that goes on with the next step.
   */
  assert_int_equal(turn.order, 1);
  assert_int_equal(turn.used, 5);
}

static void an_empty_plan_has_no_rows(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 4, .max_step_tokens = 10};
  struct plan_seq decoding[2] = {{.order = 7}, {.order = 9}};
  struct plan_turn turn = {.order = 5};
  assert_int_equal(plan_step(&lim, decoding, 0, &turn), 0);
  assert_int_equal(plan_step(&lim, decoding, 2, &turn), 2);
  assert_int_equal(turn.order, 5);
}

/* A budget below the quantum serves one prompt a step until its turn is used
 * up, then the next, also past a gap in the orders. */
static void turns_go_on_where_they_stopped(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 3, .max_step_tokens = PLAN_QUANTUM / 2};
  struct plan_seq seqs[3] = {{.order = 3, .prompt_left = 999},
                             {.order = 5, .prompt_left = 999},
                             {.order = 20, .prompt_left = 999}};
  static const int served[8] = {0, 0, 1, 1, 2, 2, 0, 0};
  struct plan_turn turn = {0};
  for (int step = 0; step < 8; step++) {
    assert_int_equal(plan_step(&lim, seqs, 3, &turn), PLAN_QUANTUM / 2);
    for (int i = 0; i < 3; i++)
      assert_int_equal(seqs[i].rows, i == served[step] ? PLAN_QUANTUM / 2 : 0);
  }
}

/* The one whose turn was cut short has gone: the next in order has a whole
 * turn. */
static void a_turn_left_behind_is_not_inherited(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 3,
                            .max_step_tokens = PLAN_QUANTUM + 11};
  struct plan_seq seqs[3] = {{.order = 3, .prompt_left = 999},
                             {.order = 5},
                             {.order = 20, .prompt_left = 999}};
  struct plan_turn turn = {.order = 4, .used = 60};
  assert_int_equal(plan_step(&lim, seqs, 3, &turn), PLAN_QUANTUM + 11);
  assert_int_equal(seqs[0].rows, 10);
  assert_int_equal(seqs[1].rows, 1);
  assert_int_equal(seqs[2].rows, PLAN_QUANTUM);
  assert_int_equal(turn.order, 3);
  assert_int_equal(turn.used, 10);
}

static void any_state_is_planned_within_the_rules(void **state) {
  (void)state;
  unsigned seed = 5;
  for (int round = 0; round < 3000; round++) {
    struct plan_seq seqs[24];
    struct plan_limits lim = {.max_seqs = 24,
                              .max_step_tokens = 24 + rand_r(&seed) % 400};
    int n = rand_r(&seed) % 25;
    uint64_t order = 0;
    struct plan_turn turn = {.order = (uint64_t)(rand_r(&seed) % 60)};
    int wanted = 0;
    for (int i = 0; i < n; i++) {
      order += 1 + (uint64_t)(rand_r(&seed) % 3);
      int left = rand_r(&seed) % 3 == 0 ? 0 : 1 + rand_r(&seed) % 200;
      seqs[i] =
          (struct plan_seq){.order = order, .prompt_left = left, .rows = -77};
      wanted += left > 0 ? left : 1;
    }
    int rows = plan_step(&lim, seqs, n, &turn), sum = 0;
    for (int i = 0; i < n; i++) {
      sum += seqs[i].rows;
      if (seqs[i].prompt_left == 0)
        assert_int_equal(seqs[i].rows, 1);
      else
        assert_in_range(seqs[i].rows, 0, seqs[i].prompt_left);
    }
    assert_int_equal(sum, rows);
    /* No row is left idle while a prompt wants it. */
    assert_int_equal(rows, wanted < lim.max_step_tokens ? wanted
                                                        : lim.max_step_tokens);
  }
}

/* Runs one step of a simulation: prefilled rows are done. */
static void simulate(const struct plan_limits *lim, struct plan_seq *seqs,
                     int n, struct plan_turn *turn) {
  (void)plan_step(lim, seqs, n, turn);
  for (int i = 0; i < n; i++)
    if (seqs[i].prompt_left > 0)
      seqs[i].prompt_left -= seqs[i].rows;
}

static void long_prompts_advance_together(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 8, .max_step_tokens = 150};
  struct plan_seq seqs[5] = {{.order = 1},
                             {.order = 2, .prompt_left = 3000},
                             {.order = 3, .prompt_left = 3000},
                             {.order = 4},
                             {.order = 5, .prompt_left = 3000}};
  struct plan_turn turn = {0};
  for (int step = 0; step < 55; step++) {
    simulate(&lim, seqs, 5, &turn);
    int least = seqs[1].prompt_left, most = least;
    for (int i = 2; i < 5; i += i == 2 ? 2 : 1) {
      if (seqs[i].prompt_left < least)
        least = seqs[i].prompt_left;
      if (seqs[i].prompt_left > most)
        most = seqs[i].prompt_left;
    }
    assert_true(least > 0);
    assert_in_range(most - least, 0,
                    PLAN_QUANTUM); /* nobody is more than a turn ahead */
  }
}

static void a_short_prompt_overtakes_long_ones(void **state) {
  (void)state;
  struct plan_limits lim = {.max_seqs = 8, .max_step_tokens = PLAN_QUANTUM};
  struct plan_seq seqs[4] = {{.order = 1, .prompt_left = 5000},
                             {.order = 2, .prompt_left = 5000},
                             {.order = 3, .prompt_left = 5000},
                             {.order = 4, .prompt_left = PLAN_QUANTUM}};
  struct plan_turn turn = {0};
  int steps = 0;
  for (; seqs[3].prompt_left > 0; steps++)
    simulate(&lim, seqs, 4, &turn);
  assert_int_equal(steps, 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(admits_by_seats_and_blocks),
      cmocka_unit_test(decodes_come_first),
      cmocka_unit_test(an_empty_plan_has_no_rows),
      cmocka_unit_test(turns_go_on_where_they_stopped),
      cmocka_unit_test(a_turn_left_behind_is_not_inherited),
      cmocka_unit_test(any_state_is_planned_within_the_rules),
      cmocka_unit_test(long_prompts_advance_together),
      cmocka_unit_test(a_short_prompt_overtakes_long_ones),
  };
  return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
