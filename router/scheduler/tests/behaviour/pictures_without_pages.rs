//! Sequences whose state lies in their row: rows are all that can run out, nothing is shared, copied or kept.

use crate::picture::picture;

#[test]
fn rows_alone_decide_who_runs() {
    picture(
        "pages 0 of 0 tokens, budget 8, rows 2
         add a prompt 6 new 2
         add b prompt 900
         add c prompt 3
         step  a+6@ b+2@ -> a.prefilled(0) a.token
         step  a+1@ b+7@ -> a.token a.length
         step  b+8@                     # c takes part when tokens are left for it
         stop  b
         step  c+3@ -> c.prefilled(0) c.token
         stats rows 1, used 0, free 0, cached 0, reserved 13, preemptions 0",
    );
}

#[test]
fn a_budget_of_tokens_counts_what_may_come_of_all_that_run() {
    picture(
        "pages 0 of 0 tokens, budget 32, rows 4, total 40
         add  a prompt 6 new 10
         add  b prompt 6 new 18
         add  c prompt 3 new 1
         step a+6@ b+6@                 # 16 + 24 tokens; c has a row, but would be too much
         stats waiting 1, reserved 40
         stop a
         step b+1@ c+3@ -> b.token c.prefilled(0) c.token c.length",
    );
}

#[test]
fn what_a_step_in_flight_touches_is_held() {
    picture(
        "pages 0 of 0 tokens, budget 8, rows 1, flight 2
         add  a prompt 4
         add  b prompt 2
         send a+4@
         send a+1@                      # its input is the token that the first step samples
         eos  a
         back -> a.prefilled(0) a.token
         stop a
         nothing                        # the row is a's until its last step is back
         back ->
         step b+2@ -> b.prefilled(0) b.token",
    );
}

#[test]
fn a_group_computes_its_prompt_as_often_as_it_has_sequences() {
    picture(
        "pages 0 of 0 tokens, budget 16
         add   a b prompt 6 logprobs
         step  a+6@ b+6@ -> a.prefilled(0) a.logprobs a.token b.prefilled(0) b.logprobs b.token
         add   c prompt 6, like a       # and what was computed before is of no use to others
         step  a+1@ b+1@ c+6@ -> a.token b.token c.prefilled(0) c.token
         stats computed 18, hits 0",
    );
}

#[test]
fn workers_that_come_back_compute_from_the_first_token() {
    picture(
        "pages 0 of 0 tokens, budget 8, rows 2
         add   a prompt 4
         add   b prompt 2
         step  a+4@ b+2@
         step  a+1@ b+1@
         lose
         step  a+6@ b+2@ -> a.token     # all known tokens; nothing is sent twice
         step  a+1@ b+2@ -> a.token b.token
         capacity 0, rows 1 ->          # who has no row now waits for one
         step  a+8@ -> a.token
         stop  a
         step  b+5@ -> b.token",
    );
}

#[test]
fn only_the_sequence_that_failed_ends() {
    picture(
        "pages 0 of 0 tokens, budget 8, rows 4
         add  a prompt 3
         add  b prompt 3
         fail a
         step a+3@ b+3@ -> a.failed b.prefilled(0) b.token
         step b+1@ -> b.token",
    );
}
