//! Routes under which clouds know a model server. Each is another way in to what the other routes do.

mod invocations;
mod vertex;

pub(super) use invocations::invocations;
pub(super) use vertex::vertex;
