//! Pictures of pages that several sequences read: the prefix cache, promises, and copies within a group.

use crate::picture::picture;

#[test]
fn a_known_prefix_is_not_computed_again() {
    picture(
        "pages 8 of 4 tokens
         add a prompt 9 new 1
         step a+9@0,1,2 -> a.prefilled(0) a.token a.length
         add b prompt 9 like a new 1
         step b:8+1@0,1,2 -> b.prefilled(8) b.token b.length
         stats computed 10, hits 8",
    );
}

#[test]
fn at_least_one_token_is_always_computed() {
    picture(
        "pages 8 of 4 tokens
         add a prompt 8 new 1
         step a+8@0,1
         add b prompt 8 like a new 1
         step b:4+4@0,2",
    );
}

#[test]
fn prefixes_differ_by_content_and_by_namespace() {
    picture(
        "pages 9 of 4 tokens
         add a prompt 9 new 1
         step a+9@0,1,2
         add b prompt 9 like a:7 new 1
         add c prompt 9 like a new 1 space 1
         step b:4+5@0,2,3 c+9@4,5,6",
    );
}

#[test]
fn outputs_are_part_of_the_prefix() {
    picture(
        "pages 5 of 2 tokens, flight 1
         add a prompt 3 new 8
         step a+3@0,1
         step a+1@0,1
         step a+1@0,1,2
         stop a
         stats cached 2, free 3        # positions 0 to 3 of 5: prompt and output",
    );
}

#[test]
fn an_output_page_is_known_as_soon_as_its_tokens_are() {
    picture(
        "pages 5 of 2 tokens, flight 2
         add a prompt 1 new 9
         send a+1@0
         send a+1@0                    # fills page 0 with a token that nobody knows yet
         back
         cancel a                      # now it is known
         back
         stats cached 1",
    );
}

#[test]
fn without_the_cache_nothing_is_shared() {
    picture(
        "pages 8 of 4 tokens, no cache
         add a prompt 9 new 1
         step a+9@0,1,2
         stats cached 0
         add b prompt 9 like a new 2
         add c prompt 9 like a new 2
         step b+9@0,1,2 c+9@3,4,5",
    );
}

#[test]
fn the_least_recently_used_prefix_goes_first_and_leaves_before_roots() {
    picture(
        "pages 5 of 2 tokens, flight 1
         add a prompt 4 new 1
         add b prompt 4 new 1
         step a+4@0,1 b+4@2,3
         stats cached 4, free 1
         add c prompt 3 like a new 1   # uses a's first page again
         step c:2+1@0,4                # the page without content is taken first
         add d prompt 4 new 1
         step d+4@4,1                  # then a's leaf, the oldest
         add e prompt 4 like b new 1
         step e:2+2@2,3                # b's root is still there; its leaf is recomputed in its old page",
    );
}

#[test]
fn two_equal_prompts_at_the_same_time_are_computed_once() {
    picture(
        "pages 8 of 4 tokens, budget 6
         add a prompt 10 new 2
         add b prompt 10 like a new 2
         step a+6@0,1                  # b waits for what a has promised
         stats waiting 1, rows 1
         step a+4@0,1,2                # still: its pages count from the next plan on
         step a+1@0,1,2 b:8+2@0,1,3 -> a.token a.length b.prefilled(8) b.token
         stats computed 12, hits 8",
    );
}

#[test]
fn somebody_else_passes_one_that_waits_for_a_promise() {
    picture(
        "pages 8 of 4 tokens, budget 6
         add a prompt 10 new 2
         add b prompt 10 like a new 2
         add c prompt 3 new 2
         step a+6@0,1
         step a+4@0,1,2 c+2@3
         step a+1@0,1,2 c+1@3 b:8+2@0,1,4",
    );
}

#[test]
fn a_sequence_waits_only_for_the_part_it_shares() {
    picture(
        "pages 8 of 4 tokens, budget 6
         add a prompt 12 new 2
         add b prompt 10 like a:5 new 2
         step a+6@0,1
         step a+6@0,1,2
         step a+1@0,1,2,3 b:4+5@0,4,5",
    );
}

#[test]
fn a_promise_dies_with_who_made_it() {
    picture(
        "pages 8 of 4 tokens, budget 6
         add a prompt 10 new 2
         add b prompt 10 like a new 2
         step a+6@0,1
         cancel a
         step b:4+6@0,1,2              # one page was kept, the rest is b's to compute",
    );
}

#[test]
fn a_promise_dies_with_the_workers() {
    picture(
        "pages 8 of 4 tokens, budget 6
         add a prompt 10 new 2
         add b prompt 10 like a new 2
         send a+6@0,1
         lose
         step a+6@0,1
         step a+4@0,1,2
         step a+1@0,1,2 b:8+2@0,1,3",
    );
}

#[test]
fn prompt_logprobs_need_every_position_computed() {
    picture(
        "pages 9 of 4 tokens, budget 7
         add a prompt 9 new 1
         step a+7@0,1
         step a+2@0,1,2
         add b prompt 9 like a new 1 logprobs
         step b+7@2,3 -> 
         step b+2@2,3,4 -> b.prefilled(0) b.logprobs b.token b.length",
    );
}

#[test]
fn prompt_logprobs_survive_a_loss_in_the_middle() {
    picture(
        "pages 9 of 4 tokens, budget 4
         add a prompt 9 new 2 logprobs
         step a+4@0
         send a+4@0,1
         lose
         step a+4@0
         step a+4@0,1
         step a+1@0,1,2 -> a.prefilled(0) a.logprobs a.token
         lose
         step a+4@0
         step a+4@0,1
         step a+2@0,1,2 -> a.token a.length",
    );
}

#[test]
fn a_group_stores_its_prompt_once() {
    picture(
        "pages 9 of 4 tokens, budget 6
         add a b c prompt 10 new 3
         step a+6@0,1
         step a+4@0,1,2
         step a+1@0,1,2 b:9+1@0,1,3 c:9+1@0,1,4 2>3 2>4 -> a.token b.prefilled(9) b.token c.prefilled(9) c.token
         stats computed 12, used 5
         step a+1@0,1,2 b+1@0,1,3 c+1@0,1,4",
    );
}

#[test]
fn a_page_that_the_last_prompt_token_fills_is_copied_too() {
    picture(
        "pages 9 of 4 tokens
         add a b prompt 8 new 3
         step a+8@0,1
         step a+1@0,1,2 b:7+1@0,3 1>3",
    );
}

#[test]
fn a_page_that_would_begin_with_the_last_prompt_token_needs_no_copy() {
    picture(
        "pages 9 of 4 tokens
         add a b prompt 9 new 3
         step a+9@0,1,2
         step a+1@0,1,2 b:8+1@0,1,3",
    );
}

#[test]
fn groups_copy_without_the_cache_too() {
    picture(
        "pages 9 of 4 tokens, no cache
         add a b prompt 10 new 3
         step a+10@0,1,2
         step a+1@0,1,2 b:9+1@0,1,3 2>3
         stop a
         step b+1@0,1,3
         stats used 3
         stop b
         stats used 0, free 9",
    );
}

#[test]
fn a_group_whose_first_sequence_ended_goes_on_with_the_next() {
    picture(
        "pages 9 of 4 tokens, budget 6
         add a b c prompt 10 new 3
         step a+6@0,1
         cancel a
         step b:4+6@0,1,2
         step b+1@0,1,2 c:9+1@0,1,3 2>3",
    );
}

#[test]
fn a_group_after_a_loss_goes_the_same_way() {
    picture(
        "pages 9 of 4 tokens
         add a b prompt 10 new 3
         step a+10@0,1,2
         lose
         step a+11@0,1,2
         step a+1@0,1,2 b:9+1@0,1,3 2>3",
    );
}

#[test]
fn a_group_computes_its_prompt_logprobs_once() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a b prompt 6 new 3 logprobs
         send a+6@0,1
         send a+1@0,1                  # b waits for a's prompt logprobs
         back -> a.prefilled(0) a.logprobs a.token
         send a+1@0,1 b:5+1@0,2 1>2
         back -> a.token
         back -> a.token a.length b.prefilled(5) b.logprobs b.token",
    );
}

#[test]
fn a_one_token_prompt_with_logprobs_makes_a_group_too() {
    picture(
        "pages 9 of 4 tokens
         add a b prompt 1 new 3 logprobs
         step a+1@0 -> a.prefilled(0) a.token
         step a+1@0 b+1@1 -> a.token b.prefilled(0) b.token",
    );
}

#[test]
fn a_failed_step_unshares_what_it_should_have_filled() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a prompt 9 new 3
         add b prompt 9 like a new 3
         fail a
         send a+9@0,1,2
         send a+1@0,1,2 b:8+1@0,1,3    # b reads what a's step should have filled
         back -> a.failed
         stats running 0, preempted 1  # b starts again
         nothing                       # but not while its old row is in flight
         back ->                       # and what it sampled means nothing
         stats cached 0, used 0
         step b+9@0,1,2 -> b.prefilled(8) b.token",
    );
}

#[test]
fn copies_of_a_failed_step_start_again() {
    picture(
        "pages 9 of 4 tokens, budget 8, flight 2
         add a b prompt 12 new 3
         step a+8@0,1
         fail a
         send a+4@0,1,2
         send a+1@0,1,2,3 b:11+1@0,1,4 2>4
         back -> a.failed
         back ->
         step b:8+4@0,1,2 -> b.prefilled(11) b.token",
    );
}

#[test]
fn what_a_copy_of_a_failed_page_published_is_forgotten_too() {
    picture(
        "pages 4 of 4 tokens, flight 2
         add d prompt 12 new 1
         step d+12@0,1,2
         add a b prompt 12 like d new 1
         fail a
         send a:8+4@0,1,3              # its content is known already, as page 2
         send b:11+1@0,1,2 3>2         # but b takes page 2 away, and fills it from the failed page 3
         back -> a.failed
         back ->
         step b:8+4@0,1,3 -> b.prefilled(11) b.token b.length
         add c prompt 13 like d new 1
         step c:12+1@0,1,3,2",
    );
}

#[test]
fn a_failure_is_undone_even_if_its_sequence_was_cancelled() {
    picture(
        "pages 9 of 4 tokens, flight 2
         add a prompt 9 new 3
         add b prompt 9 like a new 3
         fail a
         send a+9@0,1,2
         cancel a
         send b:8+1@0,1,3
         back ->
         back ->
         stats cached 0
         step b+9@0,1,3 -> b.prefilled(8) b.token",
    );
}
