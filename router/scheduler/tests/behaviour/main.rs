//! What the scheduler does, seen from outside: as pictures, one rule each, and as a long random run.
#![allow(clippy::unwrap_used)]

mod fairness;
mod fake_worker;
mod picture;
mod pictures;
mod pictures_of_length;
mod pictures_of_sharing;
mod pictures_of_tenants;
mod pictures_without_pages;
mod random;
mod refusals;
mod rng;
