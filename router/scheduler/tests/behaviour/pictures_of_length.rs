//! What happens to a sequence because of its length: pages behind its window go back, and beyond the position switch it is
//! computed anew.

use crate::picture::picture;

#[test]
fn pages_behind_the_window_go_back_while_the_sequence_runs() {
    picture(
        "pages 9 of 2 tokens, budget 8, window 4
         add   a prompt 6 new 9
         step  a+6@0,1,2 -> a.prefilled(0) a.token
         stats used 2                   # position 6 sees 3 to 6: page 0 is of no use any more
         step  a+1@-,1,2,3
         step  a+1@-,-,2,3              # 4 to 7
         stats used 2
         step  a+1@-,-,2,3,4
         stop  a
         stats used 0",
    );
}

#[test]
fn a_sequence_may_be_longer_than_the_pool() {
    picture(
        "pages 3 of 2 tokens, budget 8, window 4, no cache
         add   a prompt 9 new 3         # 11 tokens to compute, room for 6
         step  a+6@0,1,2
         step  a+2@-,1,2,0              # as far as pages have come back
         step  a+1@-,-,2,0,1 -> a.prefilled(0) a.token
         step  a+1@-,-,-,0,1
         step  a+1@-,-,-,0,1,2 -> a.token a.length
         stats used 0, preemptions 0",
    );
}

#[test]
fn what_does_not_fit_at_once_is_refused() {
    for (pages, is_enough) in [(2, false), (3, true)] {
        let text = format!("pages {pages} of 2 tokens, window 4\nadd a prompt 100");
        assert_eq!(std::panic::catch_unwind(|| picture(&text)).is_ok(), is_enough);
    }
}

#[test]
fn pages_that_a_step_in_flight_reads_are_held() {
    picture(
        "pages 3 of 2 tokens, budget 2, window 2, flight 2, no cache
         add   a prompt 6
         add   b prompt 6
         send  a+2@0
         send  a+2@0,1                  # reads position 1
         nothing
         back                           # so page 0 is not free yet
         stats used 2
         send  a+2@-,1,2
         back
         stats used 2, preemptions 0",
    );
}

#[test]
fn nobody_is_preempted_for_pages_that_a_window_is_about_to_leave() {
    picture(
        "pages 4 of 2 tokens, budget 4, rows 2, window 2, no cache
         add  a prompt 4
         add  b prompt 3
         send a+4@0,1
         send a+1@-,1,2 b+2@3
         nothing                        # b needs a page, and the steps in flight will bring it
         back
         send a+1@-,-,2 b+1@3,0
         stats preemptions 0",
    );
}

#[test]
fn a_preempted_sequence_comes_back_with_the_pages_of_its_window_only() {
    picture(
        "pages 8 of 2 tokens, budget 16, window 3
         add   a prompt 9 new 9
         step  a+9@0,1,2,3,4
         lose
         step  a+10@0,1,2,3,4           # nothing is left of what was computed
         stop  a
         add   b prompt 9, like a
         step  b:8+1@-,-,-,3,5          # its first token sees 6 to 8
         stats hits 8, used 2",
    );
}

#[test]
fn a_page_that_a_step_in_flight_copies_is_held_though_its_sequence_has_left_it() {
    picture(
        "pages 6 of 2 tokens, budget 4, window 1, flight 2
         add   a b prompt 4
         send  a+4@0,1
         send  a+1@-,-,2 b:3+1@-,3 1>3  # a needs page 1 no more, but its copy is still to be made
         back
         stats used 4                   # page 0 is b's, 1 the step's, 2 a's, 3 b's
         back
         stats used 1",
    );
}

#[test]
fn a_sequence_that_grows_beyond_the_switch_is_computed_anew() {
    picture(
        "pages 9 of 2 tokens, budget 8, switch 5
         add   a prompt 4 new 9
         step  a+4@0,1 -> a.prefilled(0) a.token
         step  a+1@0,1,2 -> a.token     # five tokens known: the sixth is sampled
         step  a+6@2,3,4 -> a.token     # six: nothing of before is used, nor told again
         step  a+1@2,3,4,5
         stats switches 1, preemptions 0",
    );
}

#[test]
fn the_step_planned_ahead_waits_for_the_token_that_crosses() {
    picture(
        "pages 9 of 2 tokens, budget 8, switch 5, flight 2
         add   a prompt 5 new 9
         add   b prompt 2 new 9
         send  a+5@0,1,2 b+2@3
         send  b+1@3,4                  # a's sixth token is in flight: a is going to be long
         stats switches 1, rows 2
         back
         eos   a
         send  b+1@3,4 a+6@2,5,6        # its row and its pages are free again
         back
         back -> b.token a.token a.eos",
    );
}

#[test]
fn short_and_long_computations_are_not_shared() {
    picture(
        "pages 20 of 2 tokens, budget 32, switch 5
         add   a prompt 4 new 9
         step  a+4@0,1
         add   b prompt 8, like a       # the same four tokens, of a longer sequence
         step  a+1@0,1,2 b+8@3,4,5,6
         add   c prompt 8, like b
         add   d prompt 5, like a
         step  b+1@3,4,5,6,2 a:4+2@3,4,7 c:6+2@3,4,5,8 d:4+1@0,1,9
         stats hits 10",
    );
}

#[test]
fn a_donor_that_has_become_long_gives_nothing_to_its_siblings() {
    picture(
        "pages 20 of 2 tokens, budget 32, rows 1, switch 5
         add   a b prompt 5 new 2
         step  a+5@0,1,2
         step  a+6@2,3,4 -> a.token a.length
         step  b:4+1@0,1,5 -> b.prefilled(4) b.token",
    );
}

#[test]
fn what_is_still_to_be_computed_is_told() {
    picture(
        "pages 20 of 2 tokens, budget 4, no cache
         add   a prompt 6
         stats uncomputed 0             # who waits is not counted
         step  a+4@0,1
         stats uncomputed 2
         step  a+2@0,1,2 -> a.prefilled(0) a.token
         stats uncomputed 0             # the last token aside
         lose
         stats uncomputed 7",
    );
}
