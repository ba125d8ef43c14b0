//! What several tenants change in the engine. How well it works is shown in virtual time (`guests`).

use super::*;

/// Steps that a prompt of 600 tokens takes after a short request of this tenant.
async fn steps_after(other: Arc<Tenant>) -> f64 {
    let server = start(&options(), "--max-batch-prefill-tokens 4096");
    collect(server.generate(ValidRequest { tenant: other, ..request(prompt(1, 5), 1) }), 1).await;
    let before = server.metric("millrace_steps_total");
    collect(server.generate(ValidRequest { tenant: tenant(7), ..request(prompt(2, 600), 1) }), 1).await;
    let steps = server.metric("millrace_steps_total") - before;
    server.end().await;
    steps
}

#[tokio::test]
async fn a_prompt_is_computed_in_short_steps_while_somebody_else_may_come() {
    let alone = steps_after(tenant(7)).await;
    assert!((alone - 1.0).abs() < f64::EPSILON, "{alone}");
    let beside = steps_after(tenant(3)).await;
    assert!(beside >= 4.0, "{beside}");
}

#[tokio::test]
async fn tenants_beside_each_other_get_their_own_tokens() {
    let server = start(&FakeOptions { max_rows: 3, ..options() }, "--max-batch-prefill-tokens 64");
    server.workers.rank(0).inject(9, Fault::Die);
    let requests = mixed_load(48).into_iter().zip(0..);
    let of = |(request, number): (ValidRequest, u32)| ValidRequest { tenant: tenant(number % 3), ..request };
    check_all(&server, requests.map(of).collect()).await;
    assert!(server.metric("millrace_preemptions_total") > 0.0, "rows change hands");
    server.end().await;
}
