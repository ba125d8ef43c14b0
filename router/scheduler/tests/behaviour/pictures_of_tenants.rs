//! One picture per rule of fairness among tenants. The language: `picture.rs`.

use crate::picture::picture;

#[test]
fn the_tenant_with_less_service_joins_first() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 2
         add a prompt 1 tenant 1 new 2
         add b prompt 1 tenant 1 new 2
         add c prompt 1 tenant 1 new 2
         add d prompt 4 tenant 2 new 2
         step a+1@0 d+4@1              # equal so far: both get a row, though b came before d
         step a+1@0 d+1@1,2            # d has had five tokens by then, a's tenant two
         step b+1@2 c+1@0",
    );
}

#[test]
fn a_newcomer_gets_a_row_of_a_tenant_that_holds_more_than_its_part() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 3
         add a prompt 3 tenant 1
         add b prompt 3 tenant 1
         step a+3@0 b+3@1
         add c prompt 1 tenant 1
         step a+1@0 b+1@1 c+1@2
         add d prompt 2 tenant 2
         step a+1@0,2 b+1@1,3 d+2@4    # c gives its row up
         add e prompt 2 tenant 2
         step d+1@4 a+1@0,2 b+1@1,3    # to put b out for e would be no fairer
         stop a
         step d+1@4 b+1@1,3 e+2@2      # nor to wait for c, whose tenant has had more",
    );
}

#[test]
fn nobody_is_put_out_for_a_row_that_would_not_be_fairer() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 1
         add a prompt 3 tenant 1 new 3
         step a+3@0
         add b prompt 3 tenant 2
         step a+1@0
         step a+1@0,1
         step b+3@1",
    );
}

#[test]
fn weights_count_in_rows_too() {
    picture(
        "pages 20 of 4 tokens, budget 9, rows 3
         add a prompt 1 tenant 1 weight 2
         add b prompt 1 tenant 1 weight 2
         add c prompt 1 tenant 1 weight 2
         step a+1@0 b+1@1 c+1@2
         add d prompt 1 tenant 2
         step a+1@0 b+1@1 d+1@2        # two rows for weight 2, one for weight 1
         add e prompt 1 tenant 2
         step d+1@2 a+1@0 b+1@1
         stats waiting 1, preempted 1",
    );
}

#[test]
fn prompts_that_run_come_after_those_of_a_tenant_with_less_service() {
    picture(
        "pages 30 of 4 tokens, budget 8
         add a prompt 40 tenant 1
         add b prompt 1 tenant 1
         step a+8@0,1
         add c prompt 6 tenant 2
         step c+6@2,3 a+2@0,1,4        # c does not wait for the end of a
         step a+7@0,1,4,5,6 c+1@2,3    # equal again",
    );
}

#[test]
fn a_long_prompt_is_a_guest_while_another_tenant_decodes() {
    picture(
        "pages 30 of 4 tokens, budget 64
         guests 3
         add a prompt 4 tenant 1 new 5
         step a+4@0                    # alone: all at once
         add b prompt 10 tenant 2
         guests 3 used 1 3
         step a+1@0,1 b+3@2
         step a+1@0,1 b+3@2,3
         guests 3 used 4 5             # a quarter more is not enough: nobody is a guest any more
         add c prompt 9 tenant 2
         step a+1@0,1 b+4@2,3,4 c+9@5,6,7",
    );
}

#[test]
fn equals_share_the_tokens_of_a_step() {
    picture(
        "pages 30 of 4 tokens, budget 64
         guests 1 step 8 used 8 9 10 11
         add a prompt 2 tenant 1
         step a+2@0
         send a+1@0
         add b prompt 3 tenant 2
         add c prompt 3 tenant 3
         add d prompt 3 tenant 4
         send a+1@0 b+3@1 c+3@2 d+1@3  # the last one is a guest of the first only",
    );
}

#[test]
fn who_waits_for_a_prefix_stops_no_prompt() {
    picture(
        "pages 40 of 4 tokens, budget 12
         add c prompt 2 tenant 3
         step c+2@0
         guests 4 used 9 0 9
         add a prompt 40 tenant 1
         send c+1@0 a+11@1,2,3
         add b prompt 40 like a tenant 2
         send c+1@0 a+11@1,2,3,4,5,6   # what b waits for
         back
         send c+1@0,7 a+11@1,2,3,4,5,6,8,9,10
         back
         send c+1@0,7 a+7@1,2,3,4,5,6,8,9,10,11
         back
         send c+1@0,7 a+1@1,2,3,4,5,6,8,9,10,11,12 b:36+4@1,2,3,4,5,6,8,9,10,13",
    );
}

#[test]
fn who_waits_for_the_gate_or_for_memory_stops_no_prompt() {
    for (pool, b) in [("ratio 10", "prompt 4 tenant 2"), ("total 60", "prompt 9 tenant 2")] {
        picture(&format!(
            "pages 0 of 0, budget 12, {pool}
             add c prompt 2 tenant 1
             add a prompt 30 tenant 3 new 2
             step c+2@ a+10@
             guests 4 used 9 0 9
             send c+1@ a+11@
             add b {b}
             send c+1@ a+9@
             stats waiting 1"
        ));
    }
}

#[test]
fn what_comes_back_needs_no_ration_though_a_sooner_one_waits_for_one() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 2
         add a prompt 3 tenant 2
         add b prompt 3 tenant 2
         step a+3@0 b+3@1
         add h prompt 2 tenant 1
         step a+1@0 h+2@1
         stop a
         add y prompt 2 tenant 2 priority -1
         guests 0 used 0 9
         step h+1@1 b+3@2",
    );
}

#[test]
fn a_guest_gives_way_to_a_prompt_and_to_one_who_waits_for_steps_in_flight() {
    picture(
        "pages 30 of 4 tokens, budget 6, rows 2
         add a prompt 2 tenant 1
         add b prompt 20 tenant 1
         step a+2@0 b+4@1
         guests 3 used 9 1
         send a+1@0 b+5@1,2,3
         add c prompt 8 tenant 2
         send a+1@0                    # b gives its row up, and nobody else's prompt makes the step longer
         back
         send a+1@0,3 c+5@4,5
         back
         back
         step c+3@4,5 a+1@0,3",
    );
}

#[test]
fn who_has_used_twice_as_much_keeps_one_row_only() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 3
         add a prompt 3 tenant 1
         add b c prompt 1 tenant 1
         step a+3@0 b+1@1
         step a+1@0 b+1@1 c+1@2
         guests none used 9 4
         add d prompt 2 tenant 2
         add e prompt 2 tenant 2
         add f prompt 2 tenant 2
         step a+1@0,2 b+1@1 d+2@3
         step d+1@3 a+1@0,2 e+2@1
         stats preempted 2
         step d+1@3 e+1@1 a+1@0,2      # nobody gives his only row up for a third one
         stats preempted 2, waiting 1",
    );
}

#[test]
fn prompts_of_all_tenants_have_a_bound_in_a_step() {
    picture(
        "pages 30 of 4 tokens, budget 64
         guests none step 6 used 2 1
         add a prompt 4 tenant 1
         step a+4@0
         add b prompt 9 tenant 2
         add c prompt 9 tenant 1
         step a+1@0,1 b+6@2,3
         step b+3@2,3,4 a+1@0,1 c+3@5",
    );
}

#[test]
fn when_pages_run_out_the_tenant_with_more_service_goes_first() {
    picture(
        "pages 3 of 4 tokens, budget 8, no cache
         add a prompt 2 tenant 1
         add b prompt 2 tenant 1
         step a+2@0 b+2@1
         add c prompt 3 tenant 2
         step a+1@0 b+1@1 c+3@2
         step a+1@0 b+1@1 c+1@2        # eight tokens each: whoever has fewer rows is first
         step c+1@2,1                  # b, the newest of tenant 1, goes for c, who is newer
         stats preempted 1",
    );
}

#[test]
fn an_idle_tenant_saves_nothing_up() {
    picture(
        "pages 60 of 4 tokens, budget 8, rows 2
         add a prompt 8 tenant 1 new 5
         step a+8@0,1
         step a+1@0,1,2
         step a+1@0,1,2
         add b c d e prompt 1 tenant 2 new 2
         add f g h i prompt 1 tenant 1 new 2
         step a+1@0,1,2 b+1@3",
    );
}

#[test]
fn priority_orders_those_who_wait_and_nobody_who_runs() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 1
         add a prompt 1 new 2 priority 5
         step a+1@0
         add b prompt 1 new 2
         add c prompt 1 new 2 priority -1
         add d prompt 1 new 2
         step a+1@0
         step c+1@0
         step c+1@0
         step b+1@0
         step b+1@0
         step d+1@0",
    );
}

#[test]
fn priority_orders_only_within_a_tenant() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 1
         add a prompt 1 new 2 tenant 1
         step a+1@0
         add b prompt 1 new 2 tenant 2
         add c prompt 1 new 2 tenant 1 priority -1000
         step a+1@0
         step b+1@0",
    );
}

#[test]
fn a_tenant_without_a_row_gets_one_however_small_its_weight() {
    picture(
        "pages 20 of 4 tokens, budget 9, rows 2
         add a prompt 1 tenant 1 weight 9
         add b prompt 1 tenant 1 weight 9
         step a+1@0 b+1@1
         add c prompt 1 tenant 2
         step a+1@0 c+1@1
         step a+1@0 c+1@1              # b does not take it back",
    );
}

#[test]
fn a_sooner_priority_goes_before_what_comes_back_and_a_later_one_does_not() {
    picture(
        "pages 20 of 4 tokens, budget 8, rows 1
         add a prompt 2 priority 5
         step a+2@0
         lose
         add b prompt 1 new 1 priority 5
         add c prompt 1 new 1 priority 4
         step c+1@0
         step a+3@0
         stop a
         step b+1@0",
    );
}

#[test]
fn a_ration_does_not_close_the_gate_on_those_who_waited_when_it_opened() {
    picture(
        "pages 20 of 4 tokens, budget 8, ratio 2, patience 100
         add a prompt 2 tenant 1 new 50
         step a+2@0
         guests 2 used 0 9
         add b prompt 2 tenant 2 new 50
         add c prompt 2 tenant 2 new 50
         add d prompt 2 tenant 2 new 50
         step a+1@0 b+2@1
         step a+1@0 b+1@1 c+2@2        # one for two, but it was there
         step a+1@0,3 b+1@1 c+1@2 d+2@4",
    );
}
