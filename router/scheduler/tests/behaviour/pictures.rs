//! One picture per rule. The language: `picture.rs`.

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
