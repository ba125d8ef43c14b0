//! One picture per rule. The language: `picture.rs`. Sharing and copying have their own: `pictures_of_sharing.rs`.

use crate::picture::picture;

#[test]
fn two_prompts_share_a_small_pool() {
    picture(
        "pages 4 of 4 tokens, budget 8
         add a prompt 6
         add b prompt 9 new 4
         step    a+6@0,1  b+2@2        # the budget is shared: b is cut
         step    a+1@0,1  b+6@2,3      # one page short: b is cut at the page
         step    a+1@0,1               # b waits for a page, nobody is preempted
         stop    a                     # pages 0 and 1 go back, their prefix stays known
         step    b+1@2,3,1             # the later page of a finished prefix is reused first",
    );
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_the_decodes() {
    picture(
        "pages 9 of 4 tokens, budget 4
         add a prompt 2
         step a+2@0 -> a.prefilled(0) a.token
         add b prompt 9
         step a+1@0 b+3@1 -> a.token
         step a+1@0 b+3@1,2 -> a.token
         step a+1@0,3 b+3@1,2,4 -> a.token b.prefilled(0) b.token
         step a+1@0,3 b+1@1,2,4 -> a.token b.token",
    );
}

#[test]
fn decodes_are_never_cut_and_the_oldest_prefill_never_starves() {
    picture(
        "pages 9 of 4 tokens, budget 2
         add a prompt 1
         add b prompt 1
         step a+1@0 b+1@1
         add c prompt 3
         add d prompt 3
         step a+1@0 b+1@1 c+1@2
         step a+1@0 b+1@1 c+1@2         # one more token than the budget, for the oldest prefill only
         step a+1@0 b+1@1 c+1@2 d+1@3   # c's last prompt token counts as a decode
         step a+1@0,4 b+1@1,5 c+1@2 d+1@3",
    );
}

#[test]
fn the_next_step_is_planned_before_the_last_is_back() {
    picture(
        "pages 4 of 4 tokens, budget 8, flight 2
         add a prompt 3 new 4
         send a+3@0
         send a+1@0                     # its input is the token that the first step samples
         nothing                        # two steps are in flight
         back -> a.prefilled(0) a.token
         send a+1@0,1
         back -> a.token
         send a+1@0,1                   # the fourth token is the last that may come …
         back -> a.token
         nothing                        # … which is known: no step is wasted
         back -> a.token a.length
         stats running 0, used 0, rows 0",
    );
}

#[test]
fn one_new_token_needs_one_step() {
    picture(
        "pages 2 of 4 tokens
         add a prompt 8 new 1
         send a+8@0,1
         nothing
         back -> a.prefilled(0) a.token a.length
         stats used 0",
    );
}

#[test]
fn an_end_of_sequence_costs_one_row_step_whose_answer_is_dropped() {
    picture(
        "pages 3 of 4 tokens, rows 1, flight 2
         add a prompt 4 new 9
         add b prompt 4 new 9
         eos  a
         send a+4@0
         send a+1@0,1
         back -> a.prefilled(0) a.token a.eos
         stats rows 1, used 2          # a step in flight still touches them
         nothing                       # so b cannot have the row yet
         back ->
         stats rows 0, used 0, cached 1
         step b+4@1 -> b.prefilled(0) b.token",
    );
}

#[test]
fn on_the_last_allowed_token_length_wins() {
    picture(
        "pages 3 of 4 tokens
         add a prompt 4 new 1
         eos a
         step a+4@0 -> a.prefilled(0) a.token a.length",
    );
}

#[test]
fn a_cancelled_sequence_ends_at_once_and_its_pages_later() {
    picture(
        "pages 3 of 4 tokens
         add a prompt 6 new 4
         send a+6@0,1
         cancel a
         gone a                        # only once
         stats running 0, used 2, rows 1
         back ->
         stats free 2, cached 1, rows 0
         add b prompt 4 new 4
         cancel b                      # never started
         nothing",
    );
}

#[test]
fn a_stop_string_ends_a_sequence_between_steps() {
    picture(
        "pages 3 of 4 tokens
         add a prompt 4 new 4
         send a+4@0
         send a+1@0,1
         back -> a.prefilled(0) a.token
         stop a
         gone a
         back ->
         stats used 0",
    );
}

#[test]
fn the_newest_is_preempted_and_resumes_from_what_is_still_cached() {
    picture(
        "pages 4 of 2 tokens, flight 1
         add a prompt 3 new 5
         add b prompt 3 new 5
         step a+3@0,1 b+3@2,3
         step a+1@0,1 b+1@2,3
         step a+1@0,1,3                # b goes: its later page is taken first
         stats running 1, preempted 1, preemptions 1, cached 1
         step a+1@0,1,3 -> a.token
         step a+1@0,1,3,2 -> a.token a.length
         step b+5@2,3,1 -> b.token     # nothing of b was left; all it had said is kept
         step b+1@2,3,1 -> b.token
         step b+1@2,3,1,0 -> b.token b.length",
    );
}

#[test]
fn a_preempted_sequence_finds_its_first_pages_again() {
    picture(
        "pages 6 of 2 tokens, flight 1
         add a prompt 3 new 3
         add b prompt 7 new 4
         step a+3@0,1 b+7@2,3,4,5
         step a+1@0,1 b+1@2,3,4,5
         step a+1@0,1,5 -> a.token a.length
         stats running 0, preempted 1
         step b:6+3@2,3,4,5,1 -> b.token",
    );
}

#[test]
fn a_preempted_sequence_resumes_when_all_it_knows_fits() {
    picture(
        "pages 6 of 2 tokens, flight 1, no cache
         add a prompt 3 new 4
         add b prompt 7 new 4
         step a+3@0,1 b+7@2,3,4,5
         step a+1@0,1 b+1@2,3,4,5
         step a+1@0,1,2                # three pages are free, b needs five
         step a+1@0,1,2 -> a.token a.length
         step b+9@0,1,2,3,4 -> b.token",
    );
}

#[test]
fn tokens_in_flight_of_a_preempted_sequence_still_count() {
    picture(
        "pages 4 of 2 tokens, flight 2
         add a prompt 3 new 6
         add b prompt 3 new 4
         send a+3@0,1 b+3@2,3
         send a+1@0,1 b+1@2,3
         back -> a.prefilled(0) a.token b.prefilled(0) b.token
         nothing                       # a needs a page: b is preempted, but its pages are still in flight
         stats running 1, preempted 1
         back -> a.token b.token
         send a+1@0,1,3                # b has no room to come back
         cancel a
         nothing                       # a's pages are still in flight
         back ->
         send b:2+3@2,3,1 -> b.token   # from what was cached, with all that it had said
         back -> b.token",
    );
}

#[test]
fn nobody_is_preempted_for_pages_that_are_about_to_come_back() {
    picture(
        "pages 5 of 2 tokens, flight 2
         add a prompt 3 new 4
         add b prompt 1 new 4
         add c prompt 3 new 4
         send a+3@0,1 b+1@2 c+3@3,4
         send a+1@0,1 b+1@2 c+1@3,4
         back
         cancel b                      # page 2 comes back with the second step
         nothing                       # a and c wait for it
         stats preempted 0
         back
         send a+1@0,1,2                # c waits for the next
         stats preempted 0",
    );
}

#[test]
fn preempted_sequences_resume_before_anybody_new_joins() {
    picture(
        "pages 4 of 2 tokens, flight 1
         add a prompt 3 new 4
         add b prompt 3 new 4
         step a+3@0,1 b+3@2,3
         step a+1@0,1 b+1@2,3
         step a+1@0,1,3
         add c prompt 1 new 2          # would fit, but b was here before
         step a+1@0,1,3 -> a.token a.length
         step b:2+3@2,3,1 c+1@0",
    );
}

#[test]
fn the_gate_opens_for_enough_of_those_who_wait() {
    picture(
        "pages 20 of 4 tokens, ratio 2, patience 100
         add a prompt 2 new 50
         step a+2@0                    # when nothing runs everybody may join
         add b prompt 2
         step a+1@0
         step a+1@0
         add c prompt 2
         step a+1@0,1 b+2@2 c+2@3      # two for one",
    );
}

#[test]
fn who_waits_when_the_gate_opens_comes_in_over_as_many_steps_as_it_takes() {
    picture(
        "pages 20 of 4 tokens, budget 4, ratio 1, patience 100
         add a prompt 3 new 50
         add b prompt 3 new 50
         add c prompt 3 new 50
         step a+3@0 b+1@1
         step a+1@0 b+2@1 c+1@2        # one for two, but it was there
         add d prompt 2                # later
         step a+1@0,3 b+1@1 c+2@2
         step a+1@0,3 b+1@1,4 c+1@2",
    );
}

#[test]
fn the_gate_opens_after_enough_steps() {
    picture(
        "pages 20 of 4 tokens, ratio 100, patience 2
         add a prompt 2 new 50
         step a+2@0
         add b prompt 2
         step a+1@0
         step a+1@0
         step a+1@0,1 b+2@2
         add c prompt 2                # and closes again
         step a+1@0,1 b+1@2
         step a+1@0,1 b+1@2
         step a+1@0,1 b+1@2,3 c+2@4",
    );
}

#[test]
fn rows_bound_those_that_run() {
    picture(
        "pages 20 of 4 tokens, rows 2
         add a prompt 2
         add b prompt 2
         add c prompt 2
         step a+2@0 b+2@1
         stats running 2, waiting 1, rows 2, reserved 24
         step a+1@0 b+1@1
         stop b
         step a+1@0 c+2@1",
    );
}

#[test]
fn lost_workers_cost_nobody_a_token() {
    picture(
        "pages 6 of 4 tokens, flight 2
         add a prompt 6 new 4
         add b prompt 3 new 3
         send a+6@0,1 b+3@2
         send a+1@0,1 b+1@2
         back -> a.prefilled(0) a.token b.prefilled(0) b.token
         lose                          # the second step is lost: its tokens are sampled again
         stats running 0, preempted 2, rows 0, used 0, cached 0
         send a+7@0,1 b+4@2
         back -> a.token b.token       # prefilled is not told twice
         send a+1@0,1 b+1@2,3
         back -> a.token b.token b.length
         step a+1@0,1,3 -> a.token a.length",
    );
}

#[test]
fn who_was_there_when_the_workers_died_twice_is_replayed_alone() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a prompt 6
         add b prompt 3
         send a+6@0,1 b+3@2
         lose
         send a+6@0,1 b+3@2
         lose
         add c prompt 3
         send a+6@0,1                  # a or b may have been the reason; c has to wait
         send a+1@0,1
         back -> a.prefilled(0) a.token
         nothing                       # that cleared a, which makes room for b
         back -> a.token
         send b+3@1                    # b alone
         back -> b.prefilled(0) b.token
         step b+1@1 a:4+4@0,2 c+3@3 -> b.token a.token c.prefilled(0) c.token",
    );
}

#[test]
fn a_step_that_fails_is_tried_in_halves_until_the_culprit_is_alone() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a prompt 3
         add b prompt 3
         add c prompt 3
         add d prompt 3
         poison c 3
         step a+3@0 b+3@1 c+3@2 d+3@3 -> a.prefilled(0) a.token b.prefilled(0) b.token c.prefilled(0) c.token d.prefilled(0) d.token
         step a+1@0 b+1@1 c+1@2 d+1@3 ->
         step a+4@3 b+4@2 -> a.token b.token
         step c+4@1 d+4@0 ->
         step c+4@0 -> c.failed
         step d+4@0 -> d.token
         step d+1@0,1 a:4+1@3,4 b:4+1@2,5",
    );
}

#[test]
fn a_step_without_memory_is_tried_smaller_and_grows_again_later() {
    picture(
        "pages 0 of 0 tokens, budget 64, rows 8, flight 2
         memory 6
         add a prompt 3
         add b prompt 3
         add c prompt 3
         add d prompt 3
         step a+3@ b+3@ c+3@ d+3@ ->
         stats short 1, tokens 16, sequences 2
         step a+3@ b+3@ -> a.prefilled(0) a.token b.prefilled(0) b.token
         step c+3@ d+3@ -> c.prefilled(0) c.token d.prefilled(0) d.token
         step c+1@ d+1@ -> c.token d.token",
    );
}

#[test]
fn who_finds_no_memory_alone_fails_and_nobody_else_is_held_back() {
    let tries = "step b+9@ ->\n".repeat(31);
    picture(&format!(
        "pages 0 of 0 tokens, budget 64, rows 8
         add a prompt 9
         add b prompt 9
         huge b
         step a+9@ b+9@ ->
         stats short 1, tokens 16, sequences 1
         step a+9@ -> a.prefilled(0) a.token
         {tries}
         stats short 32, tokens 16, sequences 1
         step b+9@ -> b.failed
         stats short 33, tokens 64, sequences 8
         step a+10@ -> a.token",
    ));
}

#[test]
fn who_was_alone_when_the_workers_died_again_fails_and_nobody_else() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a prompt 6
         add b prompt 3
         send a+6@0,1 b+3@2
         lose
         send a+6@0,1 b+3@2
         lose
         send a+6@0,1
         capacity 9 -> a.failed
         send b+3@0
         back -> b.prefilled(0) b.token",
    );
}

#[test]
fn a_death_between_tokens_makes_nobody_suspect() {
    picture(
        "pages 9 of 4 tokens, flight 1
         add a prompt 6
         add b prompt 3
         step a+6@0,1 b+3@2
         send a+1@0,1 b+1@2
         lose
         step a+7@0,1 b+4@2
         send a+1@0,1 b+1@2,3
         lose
         step a+8@0,1 b+5@2,3",
    );
}

#[test]
fn after_a_loss_with_a_smaller_pool_only_what_cannot_fit_fails() {
    picture(
        "pages 6 of 4 tokens
         add a prompt 10 new 10
         add b prompt 3 new 3
         step a+10@0,1,2 b+3@3
         add c prompt 12 new 6
         capacity 2 -> a.failed c.failed
         step b+4@0 -> b.token",
    );
}

#[test]
fn a_failure_ends_its_sequence_and_no_other() {
    picture(
        "pages 6 of 4 tokens
         add a prompt 6
         add b prompt 6 new 2
         fail a
         send a+6@0,1 b+6@2,3
         send a+1@0,1 b+1@2,3
         back -> a.failed b.prefilled(0) b.token
         back -> b.token b.length
         stats used 0, cached 1        # of b; what a should have filled is not to be found",
    );
}
